"""The front of a warm process: `launcher.py SOCKET -m MODULE ...`, or a script in its place, has the server fork it,
hands its own files over, passes signals on and ends as it ends. Any other option is for the interpreter."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def open_files() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - nothing but the quick modules is imported here
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the listing itself
        found.append(int(name))
    return found


def main() -> None:
    address, *argv = sys.argv[1:]
    if not argv or (argv[0].startswith("-") and argv[0] != "-m"):
        os.execv(sys.executable, [sys.executable, *argv])
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    files = open_files()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    request = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ), "files": files}  # noqa: PTH109
    socket.send_fds(connection, [json.dumps(request).encode()], files)
    pid = int(connection.recv(64))

    def forward(number: int, _frame: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended, and its answer is on the way
            os.kill(pid, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    answer = connection.recv(64)
    code = int(answer) if answer else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


main()
