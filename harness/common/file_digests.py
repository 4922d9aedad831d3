"""The sha256 of large files that seldom change: read once, and remembered while size, time and inode are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, EnvironmentProblem
from harness.common.files import read_json, write_json
from harness.common.hashing import digest, file_digest
from harness.common.numbers import gigabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCHEMA: Final = 1
_LONG: Final = 4 * 10**9
"""Bytes whose reading is announced."""


def content_digest(
    files: Sequence[Path], memory: Path, *, say: Callable[[str], None], hint: str | None = None
) -> str:
    """A digest of the names and whole contents of files. Each is read once; the next time its path, size, time of
    change and inode say that it is the same.

    Args:
        memory: file that remembers; damaged or missing it is written anew, and what cannot be written is read again
            the next time.
        say: is told before gigabytes are read.
        hint: what to do about a file that is not there.

    Raises:
        EnvironmentProblem: a file is not there or cannot be read.
    """
    known = _remembered(memory)
    current: dict[str, dict[str, Any]] = {}
    try:
        stamps = {path: _stamp(path) for path in files}
        unread = [path for path in files if known.get(str(path.absolute()), {}).get("stamp") != stamps[path]]
        size = sum(stamps[path][0] for path in unread)
        if size > _LONG:
            say(f"reading {gigabytes(size)} of weights once, for their sha256")
        for path in files:
            sha256 = file_digest(path) if path in unread else known[str(path.absolute())]["sha256"]
            current[str(path.absolute())] = {"stamp": stamps[path], "sha256": sha256}
    except OSError as error:
        raise EnvironmentProblem(f"{error.filename}: cannot be read: {error.strerror}", hint=hint) from None
    if unread:
        _remember(memory, {**known, **current})
    return digest([[path.name, current[str(path.absolute())]["sha256"]] for path in files])


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        files: dict[str, Any] = read_json(memory, "remembered sha256", schema=SCHEMA, shape={"files": dict})["files"]
    except DataError:
        return {}
    return files


def _remember(memory: Path, files: dict[str, Any]) -> None:
    write_json(memory, {"schema": SCHEMA, "files": files}, sealed=True)
