"""The processes that load data: they outlive a signal to the whole process group, their faults are errors of ours,
and nobody waits for them for ever.

A scheduler, torchrun or a terminal signals every process of a group. The training answers with a checkpoint, and goes
on loading until that is written; a loading process that ended at once would take the checkpoint with it. So loading
processes ignore SIGTERM and SIGINT: the training ends them, and torch's watch does where the training is gone.

What a loading process has made goes through shared memory. torch moves it there in a thread, whose failure prints a
traceback and loses the batch, and then the training waits without end. Here it is moved before, where a failure can
be told.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import resource
import signal
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import get_worker_info

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torch.utils.data import DataLoader

TIMEOUT_S: Final = 600.0
"""How long the training waits for one micro-batch, its files' second and third attempts included."""
_OPENED: Final = Path("/proc/self/fd")
_FILES: Final = 8
_FILES_EACH: Final = 6
"""Of all loading processes together, and of each: pipes, and what is passed through them."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SHARED_MEMORY: Final = re.compile(r"shared memory|unable to (open|mmap|resize)|Too many open files")
_SHORT_OF_MEMORY: Final = (
    "give the machine more shared memory (a container: --shm-size=8g; otherwise: mount -o remount,size=8g /dev/shm) "
    "and open files (ulimit -n 65536), or lower train.workers or train.micro_batch; train.workers=0 needs neither"
)


def ignore_stop_requests(_worker: int) -> None:
    """The first thing that a loading process does; it was started with these signals held back."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def loaded(loader: DataLoader[Any]) -> Generator[Iterator[Any], None, None]:
    """What `loader` gives, its processes ended with the block. `loader` has `ignore_stop_requests` as its
    `worker_init_fn`.

    Raises:
        EnvironmentProblem: shared memory or open files ran out, a loading process died, or none answered in time.
    """
    _check_open_files(loader.num_workers)
    before = set(multiprocessing.active_children())
    items: Iterator[Any] = iter(())
    try:
        # Held back while they start: none is lost, and none finds a loading process that does not ignore it yet.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            items = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield _explained(items, loader.timeout)
    finally:
        end = getattr(items, "_shutdown_workers", None)  # torch's own, which waits for each at most five seconds
        if end is not None:
            end()
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()


def _check_open_files(workers: int) -> None:
    """Ask for what starting the processes opens: torch, which starts some and fails, prints a traceback of its own.

    Raises:
        EnvironmentProblem: this process may not open so many more.
    """
    opened = len(list(_OPENED.iterdir())) if _OPENED.is_dir() else 0
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = opened + _FILES + workers * _FILES_EACH
    if workers and limit != resource.RLIM_INFINITY and limit < needed:
        raise EnvironmentProblem(
            f"this process may have {limit} files open (ulimit -n), {opened} are, and {workers} loading processes "
            f"need {needed - opened} more",
            hint=_SHORT_OF_MEMORY,
        )


def shared(value: Any) -> Any:
    """`value` with its tensors in shared memory, in a loading process; as it is in any other.

    Raises:
        EnvironmentProblem: there is not enough of it.
    """
    if get_worker_info() is None:
        return value
    try:
        for tensor in tensors_in(value):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"a loading process cannot put a batch into shared memory (/dev/shm): {error}", hint=_SHORT_OF_MEMORY
        ) from error
    return value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a value, in dataclasses, mappings, lists and tuples too."""
    if isinstance(value, torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def _explained(items: Iterator[Any], timeout: float) -> Iterator[Any]:
    """The items, and torch's errors about its processes as ours."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (RuntimeError, OSError) as error:
            message = str(error)
            if "timed out" in message:
                raise EnvironmentProblem(
                    f"no loading process has made a micro-batch within {timeout:.0f} s",
                    hint="a medium on a disk that does not answer, or a file that is no file (a pipe, a device): "
                    "`harness data check` reads every medium; the same command resumes",
                ) from error
            if "exited unexpectedly" in message or "is killed by signal" in message or _SHARED_MEMORY.search(message):
                raise EnvironmentProblem(f"a loading process ended: {message}", hint=_SHORT_OF_MEMORY) from error
            raise
        yield item
