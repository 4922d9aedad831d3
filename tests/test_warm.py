"""A warm python is a python: its processes get what they are given, and end as they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.halting import Moment, halted
from tests.waiting import until
from tests.warm import warm_python

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
SHOW = """
import json, os, sys
if __name__ == "__main__":
    print(json.dumps([sys.argv, os.getcwd(), os.environ.get("SHOWN"), sys.stdin.read(), __file__, os.getsid(0) != 1]))
    print("to stderr", file=sys.stderr)
    os.write(int(sys.argv[1]), b"to a pipe")
    import helper
    sys.exit(helper.CODE)
"""


@pytest.mark.parametrize("how", ["module", "script"])
def test_files_folder_environment_and_exit_code_are_those_of_a_python(tmp_path: Path, how: str) -> None:
    (tmp_path / "show.py").write_text(SHOW)
    (tmp_path / "helper.py").write_text("CODE = 7")
    answers = []
    for python in (sys.executable, warm_python()):
        reading, writing = os.pipe()
        program = ["-m", "show"] if how == "module" else ["show.py"]
        done = subprocess.run(
            [python, *program, str(writing), "an argument"],
            cwd=tmp_path, env={**os.environ, "SHOWN": "yes"}, input="typed", capture_output=True, text=True,
            pass_fds=(writing,), check=False,
        )  # fmt: skip
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        fd = str(writing)
        answers.append((done.returncode, done.stdout.replace(fd, "N"), done.stderr, said))
    assert answers[0] == answers[1]
    assert answers[0][0] == 7


def test_errors_and_deaths_are_told(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise ValueError('seven')")
    done = subprocess.run([warm_python(), "fails.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: seven\n")
    (tmp_path / "dies.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert subprocess.run([warm_python(), "dies.py"], cwd=tmp_path, check=False).returncode == -signal.SIGKILL


WAITS = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: exit(3))\nopen('here')\nsignal.pause()"


def test_signals_reach_it_and_a_killed_front_takes_it_along(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "here").touch()
    moment = Moment("open", "here$")
    with halted(moment, "waits.py", cwd=tmp_path, python=warm_python()) as command:
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait() == 3
    with halted(moment, "waits.py", cwd=tmp_path, python=warm_python()) as command:
        process = command.pid
        assert process != command.process.pid
        command.process.kill()
        until(lambda: not os.path.exists(f"/proc/{process}"))  # noqa: PTH110
