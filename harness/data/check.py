"""What state media files are in: there, unchanged, decodable. Every file is read once, then remembered.

A file that decodes without an error can still be damaged in its middle, so its sha256 is compared with that of a
manifest, or with that of the first time it was found good. A folder of numbered pictures counts as one file: it is
known by its own time of change, so a picture that is overwritten in place is found by a fresh check only.
"""

from __future__ import annotations

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.common.errors import DataError
from harness.common.files import write_atomic

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from harness.data.formats import MediaKind

SCHEMA: Final = 1
_SAVE_SECONDS: Final = 60.0
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Expected:
    """A file to look at; `sha256` is what a manifest says of it, None where there is no manifest."""

    kind: MediaKind
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a probe found.

    Attributes:
        files: how many were asked for.
        read: how many of them were read and decoded now, the others being known.
        unknown: how many were not looked into (only without `decode`).
        bytes: of all files that are there.
        damaged: (name, what is wrong) of each damaged or missing file, in the order of the names.
        cache: where the results are kept.
    """

    files: int
    read: int
    unknown: int
    bytes: int
    damaged: tuple[tuple[str, str], ...]
    cache: Path


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of a file: `first` is its sha256 when it was first found good."""

    size: int
    mtime_ns: int
    sha256: str
    reason: str | None
    first: str | None


def probe(
    root: Path,
    files: Mapping[str, Expected],
    cache: Path,
    *,
    decode: bool = True,
    fresh: bool = False,
    jobs: int = 2,
    advance: Callable[[int], None] | None = None,
) -> Report:
    """Look at every file below `root`.

    Args:
        cache: JSON file of what is known, by size and time of change.
        decode: read and decode what is not known; else only say what is known.
        fresh: read every file again.
        jobs: threads that read and decode.
        advance: told how many files are done.
    """
    known = _load(cache)
    damaged: dict[str, str] = {}
    todo: dict[str, os.stat_result] = {}
    total = 0
    for name, expected in files.items():
        try:
            stat = (root / name).stat()
        except OSError:
            damaged[name] = "not there"
            continue
        total += stat.st_size
        seen = known.get(name)
        if fresh or seen is None or (seen.size, seen.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            todo[name] = stat
        elif (reason := _verdict(seen, expected)) is not None:
            damaged[name] = reason
    if todo and decode:
        _read_all(root, files, todo, known, cache, jobs, advance)
        for name in todo:
            if (reason := _verdict(known[name], files[name])) is not None:
                damaged[name] = reason
    read = len(todo) if decode else 0
    return Report(len(files), read, len(todo) - read, total, tuple(sorted(damaged.items())), cache)


def merged(reports: Sequence[Report], cache: Path) -> Report:
    """Several reports as one."""
    return Report(
        files=sum(report.files for report in reports),
        read=sum(report.read for report in reports),
        unknown=sum(report.unknown for report in reports),
        bytes=sum(report.bytes for report in reports),
        damaged=tuple(sorted(line for report in reports for line in report.damaged)),
        cache=cache,
    )


def refuse(report: Report, what: str, hint: str) -> DataError:
    """The error that names the damaged files, ten at most."""
    return DataError(_listing(f"{len(report.damaged)} of {report.files} {what}", report.damaged), hint=hint)


def _listing(head: str, lines: Sequence[tuple[str, str]]) -> str:
    shown = "".join(f"\n  {name}: {reason}" for name, reason in lines[:10])
    return f"{head}:{shown}" + (f"\n  and {len(lines) - 10} more" if len(lines) > 10 else "")


def _verdict(seen: _Seen, expected: Expected) -> str | None:
    if expected.sha256 is not None and seen.sha256 != expected.sha256:
        return f"its content changed: sha256 {seen.sha256[:12]}, the manifest says {expected.sha256[:12]}"
    if seen.reason is None and expected.sha256 is None and seen.first not in (None, seen.sha256):
        return "its content changed since it was first checked"
    return seen.reason


def _read_all(
    root: Path,
    files: Mapping[str, Expected],
    todo: Mapping[str, os.stat_result],
    known: dict[str, _Seen],
    cache: Path,
    jobs: int,
    advance: Callable[[int], None] | None,
) -> None:
    """Read what is to be read, saving now and then, so that a killed check goes on where it was."""

    def look(name: str) -> tuple[str, _Seen]:
        return name, _look(root / name, files[name].kind, todo[name], known.get(name))

    saved = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:  # reading, hashing and decoding run outside the interpreter lock
        for done, (name, seen) in enumerate(pool.map(look, todo), start=1):
            known[name] = seen
            if advance is not None:
                advance(done)
            if time.monotonic() - saved > _SAVE_SECONDS:
                _save(cache, known)
                saved = time.monotonic()
    _save(cache, known)


def _look(path: Path, kind: MediaKind, stat: os.stat_result, before: _Seen | None) -> _Seen:
    from harness.data.loading.video import probe_folder, probe_image, probe_video

    digest, reason = "", None
    folder = kind == "video" and path.is_dir()
    try:
        digest = _sha256([path] if not folder else sorted(file for file in path.iterdir() if file.is_file()))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    if reason is None and stat.st_size == 0 and not folder:
        reason = "it is empty"
    if reason is None:
        reason = (probe_folder if folder else probe_video if kind == "video" else probe_image)(path)
    first = before.first if before is not None else None
    if first is None and reason is None:
        first = digest
    return _Seen(stat.st_size, stat.st_mtime_ns, digest, reason, first)


def _sha256(files: Sequence[Path]) -> str:
    """sha256 of the files' bytes, one after the other; the names of several go in too."""
    hasher = hashlib.sha256()
    for path in files:
        if len(files) > 1:
            hasher.update(f"{path.name}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                hasher.update(block)
    return hasher.hexdigest()


def _load(cache: Path) -> dict[str, _Seen]:
    """What is known; nothing where the file is absent, of another version, or damaged: it is made anew then."""
    try:
        value = json.loads(cache.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        return {}
    return {name: _Seen(*fields) for name, fields in value["files"].items()}


def _save(cache: Path, known: Mapping[str, _Seen]) -> None:
    files = {name: [s.size, s.mtime_ns, s.sha256, s.reason, s.first] for name, s in known.items()}
    write_atomic(cache, json.dumps({"schema": SCHEMA, "files": files}))
