"""The fingerprint that every made thing is known by."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a plain value (keys sorted, no spaces, UTF-8), as 64 hexadecimal digits.

    Raises:
        TypeError, ValueError: the value is not plain JSON, or holds NaN or an infinity.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content, read in pieces, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_digest(path: Path, sha256: str) -> bool:
    """Whether a file is there, can be read and has that `file_digest`; a pipe or device is not read."""
    try:
        return path.is_file() and file_digest(path) == sha256
    except OSError:
        return False
