"""Commands that stop at a moment of their own work, so that a test can kill or signal them exactly there.

A test that waits a while, or looks now and then, meets a loaded machine at another moment than it meant. Here the
process itself stops: after the n-th call of a function, or where it is about to open a file. It runs the ordinary
command; an import hook that its environment brings (`site/sitecustomize.py`) does the stopping, in it and in the
processes that it starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SITE = Path(__file__).parent / "site"
ROOT = Path(__file__).parents[2]
VARIABLE = "REGATE_TEST_HALT"


@dataclass(frozen=True)
class Moment:
    """Where a process stops.

    Attributes:
        kind: "call", after a call of a function; "open", before a file is opened by Python.
        what: the function as "package.module:name", or a regular expression that is searched in the path.
        count: which call or opening of a process it is, from 1.
        where: keyword arguments that a call must have to count.
    """

    kind: str
    what: str
    count: int = 1
    where: Mapping[str, Any] = field(default_factory=dict)


def step(number: int) -> Moment:
    """A training step is in the ledger, flushed, and nothing was done after it."""
    return Moment("call", "harness.records.ledger:Ledger.append", where={"step": number})


def environment(moment: Moment, reached: Path) -> dict[str, str]:
    """The environment of a command that is to stop at a moment and to say so in the file `reached`."""
    content = {"kind": moment.kind, "what": moment.what, "count": moment.count, "where": dict(moment.where)}
    path = os.pathsep.join(filter(None, (str(SITE), str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, VARIABLE: json.dumps({**content, "reached": str(reached)})}


@dataclass
class Halted:
    """A command, one of whose processes has reached its moment and waits there."""

    process: subprocess.Popen[str]
    reached: Path

    @property
    def pid(self) -> int:
        """The process that waits."""
        return int(self.reached.read_text())

    def go_on(self) -> None:
        go_on(self.reached)


def go_on(reached: Path) -> None:
    """Let the process that waits go on with its work."""
    reached.with_suffix(".go").touch()


@contextmanager
def halted(
    moment: Moment, *arguments: str | Path, cwd: Path, python: str = sys.executable, **settings: Any
) -> Iterator[Halted]:
    """Start `python *arguments` and wait until it has come to the moment. It and its children end with the block.

    Args:
        settings: of `subprocess.Popen`.
    """
    with tempfile.TemporaryDirectory() as folder:
        reached = Path(folder) / "reached"
        process = subprocess.Popen(
            [python, *map(str, arguments)],
            cwd=cwd,
            env=environment(moment, reached),
            text=True,
            start_new_session=True,
            **settings,
        )
        try:
            until(reached.exists, process)
            yield Halted(process, reached)
        finally:
            end(process)
            if reached.exists():  # it may have been left over by the command that was killed
                _kill(int(reached.read_text()))


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process with all that it started, also what has a session of its own."""
    if process.poll() is None:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            _kill(member.pid)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
