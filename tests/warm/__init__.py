"""A `python` that has imported everything already.

Importing torch, transformers and lmms-eval takes a process about eight seconds of computing, and the slow tests start
nearly a hundred processes. `warm_python()` starts one server that imports them once, and is a program that takes
`-m MODULE ...` or a script as python does. Each such command is a process of its own, forked from the server: with
the caller's files, folder, environment and signals, and with its exit code. What it starts by `sys.executable` is
warm too.

The first run of everything, and the commands that a test kills, are left to the interpreter itself.
"""

from __future__ import annotations

import atexit
import functools
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.waiting import until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OFFLINE = {
    "DO_NOT_TRACK": "true",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}
"""What the libraries read when they are imported, and the project sets for the processes that import them."""


@functools.cache
def warm_python() -> str:
    """The program, for the rest of the session."""
    python = WarmPython()
    atexit.register(python.close)
    return python.executable


class WarmPython:
    """The server, started when the first command asks for it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._server: subprocess.Popen[bytes] | None = None
        folder = Path(self._folder.name)
        self._socket = folder / "socket"
        self._program = folder / "python"
        self._program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -IS "{HERE / "launcher.py"}" "{self._socket}" "$@"\n'
        )
        self._program.chmod(self._program.stat().st_mode | stat.S_IXUSR)

    @property
    def executable(self) -> str:
        """The program; stands where `sys.executable` would."""
        if self._server is None:
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.warm.server", str(self._socket), str(self._program)],
                stdin=subprocess.PIPE,
                env={**os.environ, **OFFLINE, "PYTHONPATH": path},
                cwd=ROOT,
                start_new_session=True,
            )
            until(self._socket.exists, self._server)
        return str(self._program)

    def close(self) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()
        self._folder.cleanup()
