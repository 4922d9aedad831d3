"""Addresses of servers and stores: whether they can be read, and how they may be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_SHORTEST_SECRET: Final = 3
"""Letters of a password that is replaced wherever it stands alone in a text."""


def address_problem(uri: str) -> str | None:
    """Why an address cannot be used, without anything of it that may be a secret; None where it can be read."""
    if not uri.strip():
        return "it is empty"
    parts = _split(uri)
    if parts is None:
        return "it is no address; an IPv6 host stands in brackets"
    try:
        port = parts.port
    except ValueError:
        return "its port is no number from 1 to 65535 (a / in a password is written %2F)"
    if parts.scheme in ("http", "https") and not parts.hostname:
        return "it names no server"
    return "its port is no number from 1 to 65535" if port == 0 else None


def shown(uri: str) -> str:
    """The address without user name, password, query and fragment, which may hold a key."""
    parts = _split(uri)
    if parts is None:
        return "an address that cannot be read"
    if not parts.netloc:  # a file's: `urlunsplit` would not keep its slashes
        return uri.partition("?")[0].partition("#")[0]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def without_secrets(text: str, uri: str) -> str:
    """A text, such as an error of a library, without what `shown` leaves out of an address: as it stands there, and
    decoded."""
    parts = _split(uri)
    if parts is None:
        return text.replace(uri, shown(uri))
    user, at, _ = parts.netloc.rpartition("@")
    password = user.partition(":")[2]
    for whole in (user + at, f"?{parts.query}", f"#{parts.fragment}"):
        if len(whole) > 1:
            text = text.replace(whole, "").replace(unquote(whole), "")
    secrets = [password, parts.fragment, *(value for _, value in parse_qsl(parts.query))]
    for secret in sorted({form for value in secrets for form in (value, unquote(value))}, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def _split(uri: str) -> SplitResult | None:
    try:
        return urlsplit(uri)
    except ValueError:
        return None


__all__ = ["address_problem", "shown", "without_secrets"]
