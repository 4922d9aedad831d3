"""Commands that stop where a test wants them to."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.halting import Moment, halted

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import json, pathlib, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda number, frame: pathlib.Path("signal").write_text(str(number)))
for number in range(5):
    pathlib.Path(f"file-{number}").write_text(json.dumps(number))
"""
THIRD = Moment("open", r"file-2$")


def program(folder: Path) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    return folder / "program.py"


def files(folder: Path) -> int:
    return len(list(folder.glob("file-*")))


def test_it_stops_there_and_can_be_killed(tmp_path: Path) -> None:
    with halted(THIRD, program(tmp_path), cwd=tmp_path) as command:
        assert files(tmp_path) == 2
        assert command.pid == command.process.pid
        command.process.kill()
        assert command.process.wait() == -signal.SIGKILL
    assert files(tmp_path) == 2


def test_it_goes_on_with_a_signal_or_permission(tmp_path: Path) -> None:
    with halted(THIRD, program(tmp_path), cwd=tmp_path) as command:
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait() == 0
    assert files(tmp_path) == 5
    assert (tmp_path / "signal").read_text() == str(int(signal.SIGTERM))
    (tmp_path / "signal").unlink()
    with halted(THIRD, program(tmp_path), cwd=tmp_path) as command:
        command.go_on()
        assert command.process.wait() == 0
    assert not (tmp_path / "signal").exists()


def test_calls_are_counted_by_their_arguments(tmp_path: Path) -> None:
    """Also in a process that the command starts, and in a module that it imports late."""
    (tmp_path / "late.py").write_text("class It:\n    def do(self, step):\n        print(step, flush=True)\n")
    inner = "import late; [late.It().do(step=i % 3) for i in range(9)]"
    (tmp_path / "outer.py").write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {inner!r}])")
    moment = Moment("call", "late:It.do", count=2, where={"step": 1})
    with halted(moment, "outer.py", cwd=tmp_path, stdout=subprocess.PIPE) as command:
        assert command.pid != command.process.pid
        os.kill(command.pid, signal.SIGKILL)
        said, _ = command.process.communicate()
    assert said.split() == ["0", "1", "2", "0", "1"]


def test_a_command_that_never_gets_there_fails_the_test(tmp_path: Path) -> None:
    moment = Moment("open", r"file-7$")
    with pytest.raises(AssertionError, match=r"ended \(exit 0\) before"), halted(
        moment, program(tmp_path), cwd=tmp_path
    ):
        pass
