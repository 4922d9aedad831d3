"""The smoke run in two processes is the run of one, also when a process, the command or a scheduler ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from harness.records.ledger import read_events, read_steps
from harness.training.launching.agent import pid_of
from tests import halting
from tests.waiting import HUNG_S
from tests.warm import warm_python

from .conftest import PAIR, Ran, harness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.halting import Halted

pytestmark = pytest.mark.slow
ALONE = "tiny_smoke_regate"
TRAIN = ("train", str(PAIR[1]), "train.micro_batch=4", "devices.threads=1")
TWO = (*TRAIN, "devices.processes=2")


@contextmanager
def halted(pair: Ran, step: int, *overrides: str, python: str) -> Iterator[Halted]:
    """The training in two processes, the first of which waits where a step has just been done."""
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    command = ("-m", "harness", *TWO, *overrides)
    with halting.halted(halting.step(step), *command, cwd=pair.folder, python=python, **pipes) as training:
        yield training


def workers_of(pair: Ran, name: str) -> list[psutil.Process]:
    """The training processes of a run, by rank."""
    folder = pair.run_dir(name) / "workers"
    return [psutil.Process(pid_of(folder, rank)) for rank in (0, 1)]


def gone(processes: list[psutil.Process], within: float = HUNG_S) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def same_run(pair: Ran, name: str, *, devices: frozenset[int] = frozenset({2})) -> None:
    """Losses, counts, running losses and weights of the run that one process made."""
    ours, theirs = (pair.run_dir(which) for which in (name, ALONE))
    steps, wanted = read_steps(ours / "ledger.jsonl"), read_steps(theirs / "ledger.jsonl")
    assert len(steps) == len(wanted) == 60
    for step, want in zip(steps, wanted, strict=True):
        assert step["loss"] == pytest.approx(want["loss"], abs=1e-5)
        assert step["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)
        assert step["keep_ratio"] == want["keep_ratio"]
        assert step["devices"] in devices
        for count in ("valid", "visual", "target", "active", "scored"):
            assert step["counts"][count] == want["counts"][count]
    one, two = (np.load(folder / "difficulty" / "m.e1.npy") for folder in (ours, theirs))
    np.testing.assert_array_equal(one != 0, two != 0)  # what the gate let compute is the same, target by target
    np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-4)
    for step in (30, 60):
        one, two = (
            load_file(folder / "checkpoints" / f"step-{step:06d}" / "model.safetensors") for folder in (ours, theirs)
        )
        assert one.keys() == two.keys()
        for tensor, value in one.items():
            torch.testing.assert_close(value, two[tensor], rtol=1e-3, atol=2e-5)


def test_two_processes_are_one_run(pair: Ran) -> None:
    done = harness(pair.folder, *TWO, "name=whole")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("train whole 60/60") == 1
    same_run(pair, "whole")
    stages = [event for event in read_events(pair.run_dir("whole") / "ledger.jsonl") if event["event"] == "stage"]
    steps = read_steps(pair.run_dir("whole") / "ledger.jsonl")
    assert all(1.0 <= step["imbalance"] < 1.1 for step in steps)
    assert all(event["devices"] == 2 for event in stages if event["stage"] in ("load", "checkpoint"))


def test_a_run_goes_on_with_another_number_of_processes(pair: Ran) -> None:
    """One, two sharded, one again and two whole: samples, choices and losses are those of one process."""
    command = (*TRAIN, "name=changing")
    for number, *devices in ((12, "processes=1"), (24, "processes=2", "sharding=full"), (36, "processes=1")):
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
        moment, options = halting.step(number), [f"devices.{setting}" for setting in devices]
        arguments = ("-m", "harness", *command, *options)
        with halting.halted(moment, *arguments, cwd=pair.folder, python=warm_python(), **pipes) as training:
            training.process.send_signal(signal.SIGTERM)
            _, stderr = training.process.communicate()
            assert training.process.returncode == 75, stderr
    done = harness(pair.folder, *command, "devices.processes=2")
    assert done.returncode == 0, done.stderr[-4000:]
    steps = read_steps(pair.run_dir("changing") / "ledger.jsonl")
    assert [steps[number]["devices"] for number in (12, 24, 36, 59)] == [1, 2, 1, 2]
    same_run(pair, "changing", devices=frozenset({1, 2}))


def test_a_sharded_run_ended_in_every_way_is_still_the_same_run(pair: Ran) -> None:
    full = ("name=parts", "devices.sharding=full")
    # A process dies: the run ends with one message, and takes the other processes with it.
    with halted(pair, 21, *full, python=sys.executable) as training:
        workers = workers_of(pair, "parts")
        workers[1].kill()
        _, stderr = training.process.communicate()
        assert training.process.returncode == 1, stderr
        assert "training process 1 ended early (killed by SIGKILL)" in stderr
        assert "Traceback" not in stderr
        assert gone(workers)
    # A process hangs: the others wait no longer than they may, and the message says for which one.
    with halted(pair, 22, *full, "devices.timeout_minutes=0.2", python=warm_python()) as training:
        workers = workers_of(pair, "parts")
        workers[1].suspend()
        training.go_on()
        _, stderr = training.process.communicate()
        assert training.process.returncode == 1, stderr
        assert "training process 1 did not answer" in stderr
        assert "Traceback" not in stderr
        assert gone(workers)
    # The command itself dies: nothing goes on without it.
    with halted(pair, 24, *full, python=warm_python()) as training:
        workers = workers_of(pair, "parts")
        training.process.kill()
        assert gone(workers, within=5.0)
    # A scheduler's notice: one checkpoint after the same step of all, and the code that says so.
    with halted(pair, 29, *full, python=warm_python()) as training:
        workers = workers_of(pair, "parts")
        training.process.send_signal(signal.SIGTERM)
        _, stderr = training.process.communicate()
        assert training.process.returncode == 75, stderr
        assert gone(workers)
    folder = pair.run_dir("parts")
    kept = len(read_steps(folder / "ledger.jsonl"))
    assert kept == 31
    assert f"stopped after step {kept} of 60" in stderr
    checkpoints = sorted((folder / "checkpoints").glob("resume-*"))
    assert [path.name for path in checkpoints] == ["resume-000020", f"resume-{kept:06d}"]
    # What only one process can see is told once, with its own code.
    journal = folder / "difficulty" / ("journal.e0.rank1" if kept < 45 else "journal.e1.rank1")
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    failed = harness(pair.folder, *TWO, *full)
    assert failed.returncode == 5, failed.stderr
    assert failed.stderr.count("the journal is damaged") == 1
    assert "Traceback" not in failed.stderr
    journal.write_bytes(whole)
    # A process dies, and the command may start them again: it does so itself.
    with halted(pair, 41, *full, "devices.restarts=1", python=warm_python()) as training:
        workers_of(pair, "parts")[1].kill()
        _, stderr = training.process.communicate()
        assert training.process.returncode == 0, stderr
        assert f"at step {kept}" in stderr
        assert "starting again in 10 s (devices.restarts: 1 of 1)" in stderr
        assert "Traceback" not in stderr
    (again,) = (event for event in read_events(folder / "ledger.jsonl") if event["event"] == "restart")
    assert again["reached"] == 41
    same_run(pair, "parts")
