"""Whether a server answers."""

from __future__ import annotations

import socket
from typing import Final
from urllib.parse import urlsplit

_CONNECT_SECONDS: Final = 3.0


def reachable(uri: str) -> bool:
    """Whether something accepts connections at an http address; True for stores that are no server. Asked before
    MLflow is even imported: its own client would try for minutes.

    Raises:
        ValueError: the address cannot be read (`harness.common.addresses.address_problem`).
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False
