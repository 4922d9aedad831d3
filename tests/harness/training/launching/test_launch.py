"""Which of several processes' endings is the run's error."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from harness.common.errors import DataError, EnvironmentProblem, HarnessError, Preempted
from harness.config.load import load_recipe
from harness.training.launching.launch import MachineFailure, Restarts, _failure, _first_failed
from harness.training.launching.processes import count

if TYPE_CHECKING:
    from pathlib import Path

KILLED = -int(signal.SIGKILL)
ABORTED = -int(signal.SIGABRT)
DATA = (4, 1.0, "the media of 9 of 99 samples cannot be read")
FELT = (1, 2.0, "Traceback: connection closed by peer")
ECC = (1, 1.0, "Traceback: torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered")
ASSERTED = (1, 1.0, "Traceback: torch.AcceleratorError: CUDA error: device-side assert triggered")
FULL = (1, 1.0, "Traceback: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
STOPPED = (75, 1.0, "stopped after step 7 of 60")
WAITED = (1, 3600.0, "Traceback: RuntimeError: [..] Timed out waiting 3600000ms for recv operation to complete")


@pytest.mark.parametrize(
    ("codes", "first_failed", "stopped", "outcomes", "kind", "message"),
    [
        ([1, 4], [0, 1], False, {0: FELT, 1: DATA}, DataError, "the media of 9"),
        ([1, 4], [1], False, {0: FELT, 1: DATA}, DataError, "the media of 9"),
        ([1, KILLED], [0, 1], False, {0: FELT}, MachineFailure, "process 1 ended early .killed by SIGKILL"),
        ([ABORTED, 4], [0, 1], False, {1: DATA}, DataError, "the media of 9"),
        ([ABORTED, None], [0], False, {}, MachineFailure, "process 0 ended early .killed by SIGABRT"),
        ([75, 75], [0], True, {0: STOPPED, 1: STOPPED}, Preempted, "stopped after step 7"),
        ([-int(signal.SIGTERM), None], [0], True, {}, Preempted, "before the first step"),
        ([1, KILLED], [0], False, {0: WAITED}, MachineFailure, "process 1 did not answer: process 0 waited"),
        ([75, 4], [1], True, {0: STOPPED, 1: DATA}, DataError, "the media of 9"),
        ([1, 1], [0], False, {0: ECC, 1: FELT}, MachineFailure, "uncorrectable ECC"),
        ([1, 1], [0], False, {0: ASSERTED, 1: FELT}, HarnessError, "device-side assert"),
        ([1, 1], [0], False, {0: FULL, 1: FELT}, HarnessError, "out of memory"),
        ([-int(signal.SIGTERM), None], [0], False, {}, HarnessError, "killed by SIGTERM"),
    ],
)
def test_the_first_that_failed_is_the_error(
    tmp_path: Path,
    codes: list[int | None],
    first_failed: list[int],
    stopped: bool,
    outcomes: dict[int, tuple[int, float, str]],
    kind: type[HarnessError],
    message: str,
) -> None:
    said = {
        rank: {"message": outcomes[rank][2], "code": outcomes[rank][0], "time": outcomes[rank][1]}
        if rank in outcomes
        else None
        for rank in range(len(codes))
    }
    error = _failure(tmp_path, codes, first_failed, said, each=len(codes), stopped=stopped)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error


@pytest.mark.parametrize("behind_s", [0.0, 3600.0, -3600.0])
def test_clocks_of_nodes_are_not_compared(tmp_path: Path, behind_s: float) -> None:
    """Two nodes of two processes. On the second one a process fails or is killed, and the others feel it; its clock
    is right, or an hour behind or ahead."""

    def error(code: int, own: str | None) -> HarnessError:
        failures = {0: (1, 100.0), 1: (1, 100.0), 2: (1, 100.0 - behind_s), 3: (code, 100.0 - behind_s)}
        felt = {rank: {"message": FELT[2], "code": 1, "time": failures[rank][1] + 0.1} for rank in (0, 1, 2)}
        last = None if own is None else {"message": own, "code": code, "time": failures[3][1] + 0.2}
        codes = [code for code, _ in failures.values()]
        first = _first_failed(failures, each=2)
        assert first == [0, 1, 2, 3]
        return _failure(tmp_path, codes, first, {**felt, 3: last}, each=2, stopped=False)

    assert isinstance(error(4, DATA[2]), DataError)
    assert "uncorrectable ECC" in str(error(1, ECC[2]))
    assert "training process 3 ended early (killed by SIGKILL)" in str(error(KILLED, None))


def test_a_process_that_failed_later_than_others_of_its_node_is_no_cause() -> None:
    assert _first_failed({0: (1, 50.0), 1: (1, 52.0), 2: (4, 9.0), 3: (1, 9.0)}, each=2) == [0, 2, 3]


def test_what_a_silent_process_printed_last_is_shown(tmp_path: Path) -> None:
    (tmp_path / "log-1.txt").write_text("first line\n\nterminate called after throwing\n")
    error = _failure(tmp_path, [None, ABORTED], [1], {0: None, 1: None}, each=2, stopped=False)
    assert f"The end of {tmp_path / 'log-1.txt'}:\n  first line\n  terminate called" in str(error)


def test_restarts_are_counted_wait_longer_each_time_and_need_progress() -> None:
    restarts = Restarts(allowed=5, reached=-1)
    assert restarts.pause(-1) is None, "nothing was done: it would fail there again"
    assert restarts.pause(0) == 10
    assert restarts.pause(0) is None, "no step further than at the last restart"
    assert [restarts.pause(step) for step in (3, 4, 9, 20)] == [60, 300, 300, 300]
    assert restarts.pause(99) is None, "all are used up"
    assert Restarts(allowed=0, reached=-1).pause(7) is None


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert count(load_recipe("tiny_smoke_regate", ["train.micro_batch=4"])) == 4
    assert count(load_recipe("tiny_smoke_regate", ["devices.processes=1"])) == 1
    with pytest.raises(EnvironmentProblem, match=r"devices\.processes is 8, and 4 GPUs"):
        count(load_recipe("tiny_smoke_regate", ["devices.processes=8", "train.micro_batch=2"]))
