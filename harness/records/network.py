"""Addresses of servers: whether one answers, and how it may be shown."""

from __future__ import annotations

import socket
from typing import Final
from urllib.parse import urlsplit, urlunsplit

_CONNECT_SECONDS: Final = 3.0


def reachable(uri: str) -> bool:
    """Whether something accepts connections at an http address; True for stores that are no server. Asked before
    MLflow is even imported: its own client would try for minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False


def shown(uri: str) -> str:
    """The address without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def without_password(text: str, uri: str) -> str:
    """A text, such as an error of a library, without the user name and password of an address in it."""
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    return text.replace(user + at, "") if at else text
