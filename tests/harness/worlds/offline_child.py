"""The evaluation's own child process, without a network."""

from __future__ import annotations

import socket
import sys

from harness.evaluation.lmms.child import main
from tests.harness.worlds.known_models import without_network

if __name__ == "__main__":
    socket.getaddrinfo = without_network  # type: ignore[assignment]
    socket.socket.connect = without_network  # type: ignore[assignment,method-assign]
    sys.exit(main(sys.argv[1:]))
