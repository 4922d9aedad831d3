"""Imports everything, then forks a process for every request: `python -m tests.warm.server SOCKET PROGRAM`.

It computes nothing itself and starts no thread, so that a fork of it is as good as a new interpreter.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
import traceback
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORTED = (
    "accelerate",
    "harness.cli.main",
    "harness.models.tiny.adapter",
    "harness.models.videochat2.adapter",
    "harness.models.videollama2.adapter",
    "harness.pipeline",
    "lmms_eval.evaluator",
    "lmms_eval.tasks",
    "matplotlib.figure",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "peft",
    "torch",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip",
)
FIRST_FREE = 500
"""Number of an open file that no caller has."""


def become(request: dict[str, Any], files: list[int], program: str) -> int:
    """Be the process that was asked for; its exit code."""
    os.setsid()
    aside = [fcntl.fcntl(file, fcntl.F_DUPFD, FIRST_FREE) for file in files]
    os.closerange(3, FIRST_FREE)
    for file, number in zip(aside, request["files"], strict=True):
        os.dup2(file, number)
        os.close(file)
    # Those of the server know whether its own files can be sought in, which the caller's need not be.
    sys.stdout = open(1, "w", buffering=-1, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    os.chdir(request["cwd"])
    homes = {name for name in {*os.environ, *request["env"]} if name.startswith(("HF_", "XDG_"))}
    moved = any(os.environ.get(name) != request["env"].get(name) for name in homes)
    os.environ.clear()
    os.environ.update(request["env"])
    *option, program_name = request["argv"][: 1 + (request["argv"][0] == "-m")]
    first = request["cwd"] if option else str(Path(program_name).resolve().parent)
    sys.path[:0] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.executable = program
    random.seed()
    sys.modules["numpy"].random.seed()
    if moved:  # they read the environment when they are imported
        for name in ("huggingface_hub.constants", "datasets.config"):
            importlib.reload(sys.modules[name])
    if "REGATE_TEST_HALT" in os.environ:
        halting = Path(__file__).parents[1] / "halting" / "site"
        sys.path.insert(0, str(halting))
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    sys.argv = request["argv"][len(option) :]
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
    return ended(program_name, is_module=bool(option))


def ended(name: str, *, is_module: bool) -> int:
    """Run a module or a script as the interpreter does, to its very end."""
    code = 0
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            run_script(name)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)  # noqa: T201
    except BaseException:  # noqa: BLE001 - the end of the process
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run_script(name: str) -> None:
    main = ModuleType("__main__")
    main.__file__ = os.path.abspath(name)  # noqa: PTH100 - as the interpreter does, without following links
    sys.modules["__main__"] = main
    exec(compile(Path(name).read_bytes(), main.__file__, "exec"), main.__dict__)


class Server:
    """Forks, and tells every caller how its process ended. A caller that is killed takes its process with it, and
    what that forked to load its data."""

    def __init__(self, listener: socket.socket, program: str) -> None:
        self.listener = listener
        self.program = program
        self.events = selectors.DefaultSelector()
        self.events.register(listener, selectors.EVENT_READ, self.accept)
        self.events.register(0, selectors.EVENT_READ, lambda: os._exit(0))
        self.running: dict[int, socket.socket] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self.events.select():
                key.data()

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        message, files, _, _ = socket.recv_fds(connection, 1 << 20, 250)
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                self.events.close()
                code = become(request, files, self.program)
            except BaseException:  # noqa: BLE001 - nothing of a child may reach the server's loop
                traceback.print_exc()
            finally:
                os._exit(code)
        for file in files:
            os.close(file)
        self.running[pid] = connection
        ended = os.pidfd_open(pid)
        self.events.register(ended, selectors.EVENT_READ, lambda: self.reap(pid, ended))
        self.events.register(connection, selectors.EVENT_READ, lambda: self.abandoned(pid))
        connection.send(str(pid).encode())

    def abandoned(self, pid: int) -> None:
        self.events.unregister(self.running[pid])
        os.killpg(pid, signal.SIGKILL)

    def reap(self, pid: int, pidfd: int) -> None:
        _, status = os.waitpid(pid, 0)
        self.events.unregister(pidfd)
        os.close(pidfd)
        connection = self.running.pop(pid)
        if connection in self.events.get_map():
            self.events.unregister(connection)
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        connection.close()


def main() -> None:
    address, program = sys.argv[1:]
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    temporary = Path(f"{address}.tmp")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(temporary))
    listener.listen(64)
    temporary.replace(address)
    Server(listener, program).serve()


if __name__ == "__main__":
    main()
