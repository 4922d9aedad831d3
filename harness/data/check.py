"""What state media files are in: there, unchanged, decodable. Every file is read once, then remembered.

A file that decodes without an error can still be damaged in its middle, so its sha256 is compared with that of a
manifest, or with that of the first time it was found good. A folder of numbered pictures counts as one file: it is
known by its own time of change, so a picture that is overwritten in place is found by a fresh check only.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from unicodedata import normalize

from harness.common.errors import DataError
from harness.common.files import odd_kind, read_json, seal, write_atomic
from harness.data.records import short

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from harness.data.formats import MediaKind
    from harness.data.media_folders import MediaFolders

SCHEMA: Final = 2
"""Raised whenever the reader reads files in another way, so that they are read again."""
_SIBLINGS: Final = 50_000
"""Names of a folder, at most, that a missing one is compared with."""
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
        lengths: (frames, frames a second) of the files whose parts are asked for, as far as they are known.
        notes: by what the reader leaves out of a file, the number of such files.
        remarks: what is not read though it is there, one line each.
        cache: where the results are kept.
    """

    files: int
    read: int
    unknown: int
    bytes: int
    damaged: tuple[tuple[str, str], ...]
    cache: Path
    lengths: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of a file: `first` is its sha256 when it was first found good, `frames` and the rest are as
    in `harness.data.loading.video.Facts`."""

    size: int
    mtime_ns: int
    sha256: str
    reason: str | None
    first: str | None
    frames: int = 0
    fps: float = 0.0
    notes: tuple[str, ...] = ()


def probe(
    folders: MediaFolders,
    files: Mapping[str, Expected],
    cache: Path,
    *,
    decode: bool = True,
    fresh: bool = False,
    jobs: int = 2,
    advance: Callable[[int], None] | None = None,
    parts_of: Collection[str] = (),
) -> Report:
    """Look at every file, by its stored name.

    Args:
        cache: JSON file of what is known, by size and time of change.
        decode: read and decode what is not known; else only say what is known.
        fresh: read every file again.
        jobs: threads that read and decode.
        advance: told how many files are done.
        parts_of: names of the files whose length is asked for.
    """
    known = _load(cache)
    damaged: dict[str, str] = {}
    siblings = _Siblings(folders)
    todo: dict[str, os.stat_result] = {}
    total = 0
    for name, expected in files.items():
        try:
            stat = folders.path(name).stat()
        except (OSError, ValueError):
            damaged[name] = f"not there{siblings.hint(name)}"
            continue
        total += stat.st_size
        seen = known.get(name)
        if fresh or seen is None or (seen.size, seen.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            todo[name] = stat
        elif (reason := _verdict(seen, expected)) is not None:
            damaged[name] = reason
    if todo and decode:
        _read_all(folders, files, todo, known, cache, jobs, advance)
        for name in todo:
            if (reason := _verdict(known[name], files[name])) is not None:
                damaged[name] = reason
    read = len(todo) if decode else 0
    good = [name for name in files if name in known and name not in damaged and (decode or name not in todo)]
    return Report(
        files=len(files),
        read=read,
        unknown=len(todo) - read,
        bytes=total,
        damaged=tuple(sorted(damaged.items())),
        cache=cache,
        lengths={name: (known[name].frames, known[name].fps) for name in good if name in parts_of},
        notes=Counter(note for name in good for note in known[name].notes),
    )


def merged(reports: Sequence[Report], cache: Path) -> Report:
    """Several reports as one."""
    return Report(
        files=sum(report.files for report in reports),
        read=sum(report.read for report in reports),
        unknown=sum(report.unknown for report in reports),
        bytes=sum(report.bytes for report in reports),
        damaged=tuple(sorted(line for report in reports for line in report.damaged)),
        cache=cache,
        lengths={name: length for report in reports for name, length in report.lengths.items()},
        notes=sum((Counter(report.notes) for report in reports), Counter[str]()),
    )


class _Siblings:
    """The file that was probably meant by a name that is not there. Looks into a folder once."""

    def __init__(self, folders: MediaFolders) -> None:
        self._folders = folders
        self._names: dict[str, list[str]] = {}

    def hint(self, name: str) -> str:
        folder, _, last = name.rpartition("/")
        if folder not in self._names:
            try:
                with os.scandir(self._folders.path(folder)) as entries:
                    self._names[folder] = [entry.name for entry in islice(entries, _SIBLINGS)]
            except (OSError, ValueError):
                self._names[folder] = []
        siblings = self._names[folder]
        same = next((other for other in siblings if _folded(other) == _folded(last)), None)
        if same is not None:
            form = "in another Unicode form" if same.lower() != last.lower() else "in other capitals"
            return f"; a file of this name {form} is: rename it, or write {same!a}"
        near = get_close_matches(last, siblings, n=1, cutoff=0.75)
        return f"; is {short(near[0])} meant?" if near else ""


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()


def refuse(report: Report, what: str, hint: str) -> DataError:
    """The error that names the damaged files, ten at most."""
    return DataError(listing(f"{len(report.damaged)} of {report.files} {what}", report.damaged), hint=hint)


def listing(head: str, lines: Sequence[tuple[str, str]]) -> str:
    """A line for each of ten at most, and how many more there are."""
    shown = "".join(f"\n  {short(name)}: {reason}" for name, reason in lines[:10])
    return f"{head}:{shown}" + (f"\n  and {len(lines) - 10} more" if len(lines) > 10 else "")


def _verdict(seen: _Seen, expected: Expected) -> str | None:
    if expected.sha256 is not None and seen.sha256 != expected.sha256:
        return f"its content changed: sha256 {seen.sha256[:12]}, the manifest says {expected.sha256[:12]}"
    if seen.reason is None and expected.sha256 is None and seen.first not in (None, seen.sha256):
        return "its content changed since it was first checked"
    return seen.reason


def _read_all(
    folders: MediaFolders,
    files: Mapping[str, Expected],
    todo: Mapping[str, os.stat_result],
    known: dict[str, _Seen],
    cache: Path,
    jobs: int,
    advance: Callable[[int], None] | None,
) -> None:
    """Read what is to be read, saving now and then, so that a killed check goes on where it was."""

    def look(name: str) -> tuple[str, _Seen]:
        return name, _look(folders.path(name), files[name].kind, todo[name], known.get(name))

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
    from harness.data.loading.errors import VideoError
    from harness.data.loading.video import Facts, inspect_folder, inspect_picture, inspect_video

    digest, reason, facts = "", None, Facts(0)
    folder = kind == "video" and path.is_dir()
    odd = odd_kind(path)
    try:
        files = [path] if not folder else sorted(file for file in path.iterdir() if file.is_file())
        digest = "" if odd else _sha256(files)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    if odd is not None:
        reason = f"{odd}, not a file"
    elif reason is None and stat.st_size == 0 and not folder:
        reason = "it is empty"
    if reason is None:
        inspect = inspect_folder if folder else inspect_video if kind == "video" else inspect_picture
        try:
            facts = inspect(path)
        except VideoError as error:
            reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path}/")
    first = before.first if before is not None else None
    if first is None and reason is None:
        first = digest
    return _Seen(stat.st_size, stat.st_mtime_ns, digest, reason, first, facts.frames, facts.fps, facts.notes)


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
        value = read_json(cache, "what is known of media", schema=SCHEMA)
    except DataError:
        return {}
    try:
        return {name: _seen(*fields) for name, fields in value["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _seen(*fields: Any) -> _Seen:
    size, mtime_ns, sha256, reason, first, frames, fps, notes = fields
    return _Seen(size, mtime_ns, sha256, reason, first, frames, fps, tuple(notes))


def _save(cache: Path, known: Mapping[str, _Seen]) -> None:
    files = {name: list(astuple(seen)) for name, seen in known.items()}
    content = seal({"schema": SCHEMA, "files": files})
    write_atomic(cache, json.dumps(content))
