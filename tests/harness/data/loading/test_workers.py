"""Loading processes: a stop request to all of them, memory that runs out, and one that never answers."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from harness.common.errors import EnvironmentProblem
from harness.data.loading import workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Items(Dataset[Any]):
    """Ten items that a function makes."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        try:
            return workers.shared(self.make(index))
        except EnvironmentProblem as error:
            return error


def loader(make: Callable[[int], Any], *, processes: int = 2, timeout: float = 60) -> DataLoader[Any]:
    return DataLoader(
        Items(make),
        batch_size=None,
        num_workers=processes,
        timeout=timeout if processes else 0,
        worker_init_fn=workers.ignore_stop_requests,
    )


def pid_of(_: int) -> torch.Tensor:
    return torch.tensor(os.getpid())


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file of this process and of those that it starts may be larger: for torch, shared memory that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stuck(index: int) -> torch.Tensor:
    if index:
        time.sleep(3600)
    return torch.zeros(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_loading_processes_go_on_when_all_are_asked_to_stop(number: int) -> None:
    with workers.loaded(loader(pid_of)) as items:
        pids = {int(next(items))}
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, number)
        pids |= {int(item) for item in items}
    assert len(pids) == 2
    assert not multiprocessing.active_children()


def test_full_shared_memory_is_told_with_what_to_do() -> None:
    with file_limit(64 * 1024), workers.loaded(loader(lambda _: {"pixels": [torch.zeros(1 << 20)]})) as items:
        first = next(items)
    assert isinstance(first, EnvironmentProblem)
    assert "shared memory" in str(first)
    assert "train.workers" in str(first.hint)


def test_few_open_files_are_told_before_a_process_is_started() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 15, hard))
    few = pytest.raises(EnvironmentProblem, match="2 loading processes need 20 more")
    try:
        with few, workers.loaded(loader(pid_of)):
            pass
        with workers.loaded(loader(pid_of, processes=0)) as items:
            assert int(next(items)) == os.getpid()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not multiprocessing.active_children()


def test_a_loading_process_that_dies_is_told() -> None:
    with (
        pytest.raises(EnvironmentProblem, match="a loading process ended"),
        workers.loaded(loader(lambda _: os.kill(os.getpid(), signal.SIGKILL))) as items,
    ):
        next(items)
    assert not multiprocessing.active_children()


def test_one_that_never_answers_is_waited_for_a_while_and_ended() -> None:
    with (
        pytest.raises(EnvironmentProblem, match="within 1 s"),
        workers.loaded(loader(stuck, processes=1, timeout=1)) as items,
    ):
        list(items)
    assert not multiprocessing.active_children()
