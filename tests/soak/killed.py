"""A run that is killed or asked to stop at a random moment of its own work, and given again.

A moment is a number: how many files the run has opened, made, renamed or removed, and lines of the ledger it has
written, in all of its stages. The same seed gives the same moments, so a failure can be had again. Of a run in two
processes it is the number of lines that its ledger has, looked at from outside.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.common.exits import STOPPED, guarded
from harness.records.ledger import Ledger
from tests.forked import context

from .stopped import go_on, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

EVENTS: Final = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"})
KINDS: Final = (
    *[(signal.SIGKILL, False)] * 15,
    *[(signal.SIGKILL, True)] * 5,
    *[(signal.SIGTERM, False), (signal.SIGTERM, True)] * 5,
    *[(signal.SIGINT, True), (signal.SIGINT, False)] * 2,
    (signal.SIGINT, True),
)
"""Signals with whether they go to the whole process group: 20, 10 and 5."""


TOGETHER: Final = (
    *[(signal.SIGKILL, False), (signal.SIGKILL, True)] * 5,
    *[(signal.SIGTERM, False), (signal.SIGTERM, True)] * 2,
    *[(signal.SIGINT, True), (signal.SIGINT, False)] * 2,
    (signal.SIGINT, True),
)
"""The same for a run in two processes: 10, 4 and 5."""
WORLD: Final = 2


@dataclass(frozen=True, slots=True)
class Stop:
    """A signal at a moment."""

    number: signal.Signals
    group: bool
    moment: int

    def __str__(self) -> str:
        return f"{self.number.name} to the {'group' if self.group else 'process'} at moment {self.moment}"


def stops(moments: int, seed: int, kinds: Sequence[tuple[signal.Signals, bool]] = KINDS) -> Iterator[Stop]:
    rng = random.Random(seed)
    return (Stop(number, group, rng.randint(1, moments)) for number, group in kinds)


def attempt(folder: Path, stop: Stop | None) -> int | None:
    """The exit code of the run's command in a process group of its own; negative where a signal ended it."""
    child = context().Process(target=_attempt, args=(folder, stop))
    child.start()
    child.join()
    return child.exitcode


def attempt_together(folder: Path, stop: Stop | None, python: str) -> int | None:
    """The same of a run in two processes, which that python starts; a process group is that of the command."""
    child = context().Process(target=_attempt_together, args=(folder, python))
    child.start()
    assert child.pid is not None
    if stop is not None:
        while child.is_alive() and lines_of(folder) < stop.moment:
            time.sleep(0.005)
        with suppress(ProcessLookupError):
            (os.killpg if stop.group else os.kill)(child.pid, stop.number)
    child.join()
    return child.exitcode


def lines_of(folder: Path) -> int:
    """Lines of the run's ledger; 0 where there is none yet."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / "results" / "runs").glob("*/ledger.jsonl"))


def _attempt_together(folder: Path, python: str) -> None:
    os.setsid()
    sys.executable = python
    guarded(go_on)(folder, WORLD)


def moments_of(folder: Path) -> int:
    """In how many moments a run that nobody stops comes to its end."""
    assert attempt(folder, None) == 0
    return int((folder / "moments").read_text())


def _attempt(folder: Path, stop: Stop | None) -> None:
    os.setsid()
    os.environ["OMP_NUM_THREADS"] = "1"
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if stop is not None and count == stop.moment and os.getpid() == pid:
            (os.killpg if stop.group else os.kill)(os.getpid(), stop.number)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            step()

    append: Callable[..., None] = Ledger.append

    def append_and_count(ledger: Ledger, event: str, **fields: Any) -> None:
        append(ledger, event, **fields)
        step()

    pid = os.getpid()
    Ledger.append = append_and_count  # type: ignore[method-assign]
    sys.addaudithook(watch)
    guarded(go_on)(folder)
    (folder / "moments").write_text(str(count))


def survives_stop(
    stop: Stop,
    folder: Path,
    whole: dict[str, Any],
    attempt: Callable[[Path, Stop | None], int | None] = attempt,
    *,
    late: bool = False,
) -> str | None:
    """What went wrong with a run that was stopped; None where the same command then came to the same end.

    Args:
        late: a signal may come when the run is over, as the moment is seen from outside.
    """
    code = attempt(folder, stop)
    wanted = (-signal.SIGKILL,) if stop.number == signal.SIGKILL else (STOPPED, 0)
    if code not in wanted and not (late and code == 0):
        return f"{stop}: exit {code}"
    code = attempt(folder, None)
    if code != 0:
        return f"{stop}: the second attempt: exit {code}"
    after = outcome(folder)
    differing = [key for key in whole if after[key] != whole[key]]
    return f"{stop}: other {', '.join(differing)}" if differing else None
