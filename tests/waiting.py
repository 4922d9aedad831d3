"""Waiting for what happens, not for a time to pass."""

from __future__ import annotations

import random
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

HUNG_S = 900.0
"""Seconds after which what a test waits for will never come. It says nothing about speed: a machine that is busy
with other things may take a long time for everything."""


def until(happened: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until it has happened.

    Args:
        process: is to make it happen; ending before that is a failure, told with its stderr where that is a pipe.
    """
    gives_up = time.monotonic() + HUNG_S
    while not happened():
        if process is not None and process.poll() is not None and not happened():
            said = process.stderr.read() if process.stderr is not None else ""
            raise AssertionError(f"the process ended (exit {process.returncode}) before that: {said[-4000:]}")
        assert time.monotonic() < gives_up, "it hangs"
        time.sleep(0.01)


def refused_port() -> tuple[socket.socket, int]:
    """A port of 127.0.0.1 that refuses connections and that nobody else gets while the socket is open.

    It is outside the range from which the system hands out ports, so that it is free also after the socket is closed.
    """
    while True:
        held = socket.socket()
        port = random.randrange(20000, 32000)
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
        else:
            return held, port
