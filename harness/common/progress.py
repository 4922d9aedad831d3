"""Progress on stderr: a bar on a terminal, plain lines elsewhere (a log file, CI)."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

_LINE_SECONDS: Final = 10.0


class Advance(Protocol):
    """Called after each piece of work: how many units are done by now, and a few words."""

    def __call__(self, done: int, words: str = "") -> None: ...


class Progress:
    """One line of work at a time. `say` writes a line that stays."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    @contextmanager
    def task(self, name: str, total: int, *, start: int = 0, late: bool = False) -> Iterator[Advance]:
        """Show `name` from `start` to `total` units.

        Args:
            late: where lines are written, write none of work that is done within ten seconds.
        """
        if self._quiet:
            yield _silent
        elif self._terminal:
            with _bar(name, total, start) as advance:
                yield advance
        else:
            yield self._lines(name, total, start, late=late)

    def _lines(self, name: str, total: int, start: int, *, late: bool) -> Advance:
        began = time.monotonic()
        last = began

        def advance(done: int, words: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < _LINE_SECONDS and (done < total or (late and last == began)):
                return
            last = now
            left = (now - began) / max(1, done - start) * (total - done)
            self.say(f"{name} {done}/{total}" + (f", {left:.0f} s left" if done < total else "") + f"  {words}")

        return advance


def _silent(done: int, words: str = "") -> None:
    return


@contextmanager
def _bar(name: str, total: int, start: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=start, words="")

        def advance(done: int, words: str = "") -> None:
            bar.update(task, completed=done, words=words)

        yield advance
