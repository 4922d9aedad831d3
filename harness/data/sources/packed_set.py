"""A data set packed once and opened in milliseconds by every later command, process and worker.

Packed are the samples that a run may train on, with what was left out and why. They are those of the annotations as
long as everything that they were made from is as it was: the annotation files, what is known of the media, and the
media themselves by size and time, or their folders by time where there are very many files.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.files import check_kind
from harness.common.hashing import digest
from harness.data import check, packed_file
from harness.data.media_folders import MediaFolders, media_roots
from harness.data.packed import PackedSamples
from harness.data.sample import Media, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from harness.common.progress import Progress
    from harness.config.data import Data
    from harness.config.recipe import Paths
    from harness.data.sources.source import Annotations

SCHEMA: Final = 1
"""Raised whenever annotations are read in another way, so that they are read again."""
_MOST_FILES: Final = 20_000
"""Media files, at most, that are looked at one by one whenever the set is opened."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A data set as it was packed; `complete` says that every media file had been looked into.

    The rest is as in `harness.data.sources.DataSet`.
    """

    root: Path
    samples: PackedSamples
    questions: tuple[Question, ...]
    excluded: tuple[tuple[str, str], ...]
    fingerprint: str
    subset: str | None
    notes: tuple[str, ...]
    complete: bool


def path_of(data: Data, paths: Paths, seed: int | None) -> Path:
    """Where a recipe's data are packed; `seed` is None where they do not depend on it."""
    made_from = [SCHEMA, check.SCHEMA, data.model_dump(mode="json"), paths.media_roots, seed]
    return Path(paths.data) / ".packed" / f"{data.source}-{digest(made_from)[:16]}.bin"


def load(path: Path, paths: Paths, *, complete: bool) -> Kept | None:
    """What was packed, if nothing that it was made from has changed since.

    Args:
        complete: take only what was packed after every media file had been looked into.
    """
    description = packed_file.description_of(path)
    if description is None or (complete and not description["complete"]):
        return None
    base = Path(paths.data)
    root = base / description["root"]
    folders = MediaFolders(root, media_roots(paths.media_roots))
    if any(_file_stamp(base / name) != stamp for name, stamp in description["files"]):
        return None
    if description["media"] != _media_stamp(folders, description["media_names"]):
        return None
    samples = PackedSamples.from_file(folders, path)
    if samples is None:
        return None
    return Kept(
        root=root,
        samples=samples,
        questions=tuple(_question(root, *fields) for fields in description["questions"]),
        excluded=tuple((key, why) for key, why in description["excluded"]),
        fingerprint=description["fingerprint"],
        subset=description["subset"],
        notes=tuple(description["notes"]),
        complete=description["complete"],
    )


def save(path: Path, kept: Kept, annotations: Annotations, paths: Paths, began_ns: int) -> bool:
    """Pack a data set; False where that is not possible, or a file that it was made from changed since `began_ns`.

    Args:
        began_ns: time at which reading began, nanoseconds since 1970.
    """
    base, folders = Path(paths.data), annotations.folders
    if not annotations.files_read:
        return False
    stamped = [(file, _file_stamp(file)) for file in (*annotations.files_read, *annotations.caches)]
    if any(stamp is not None and stamp[-1] >= began_ns for _, stamp in stamped[: len(annotations.files_read)]):
        return False  # it may not be what was read
    names = _looked_at(annotations)
    description = {
        "complete": kept.complete,
        "root": _below(annotations.root, base),
        "files": [[_below(file, base), stamp] for file, stamp in stamped],
        "media_names": names,
        "media": _media_stamp(folders, names),
        "questions": [_plain(annotations.root, question) for question in kept.questions],
        "excluded": [list(line) for line in kept.excluded],
        "fingerprint": kept.fingerprint,
        "subset": kept.subset,
        "notes": list(kept.notes),
    }
    kept.samples.save(path, description)
    return True


@contextmanager
def locked(path: Path, *, wait: bool, progress: Progress | None) -> Iterator[bool]:
    """Whether this process may pack: one does at a time. The others wait, or go on without packing."""
    check_kind(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("ab")
    except OSError as error:
        if progress is not None:
            progress.say(f"{path}: the data cannot be packed ({error.strerror}); every command reads them anew")
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if wait:
                if progress is not None:
                    progress.say(f"{path.parent}: another command is reading these data; waiting for it")
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
            else:
                yield False
                return
        yield True


def _below(path: Path, base: Path) -> str:
    """A path within paths.data without that, so that the folder may move."""
    return str(path.relative_to(base) if path.is_relative_to(base) else path)


def _looked_at(annotations: Annotations) -> list[str]:
    """Stored names of what is looked at when the set is opened: all files, or else their folders."""
    files = sorted({name for known in annotations.caches.values() for name in known})
    if len(files) <= _MOST_FILES:
        return files
    return sorted({name.rpartition("/")[0] for name in files})


def _file_stamp(path: Path) -> list[int] | None:
    """Size and times; the time of a file's last change cannot be set back."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _media_stamp(folders: MediaFolders, names: Iterable[str]) -> str:
    stamps = []
    for name in names:
        try:
            stat = folders.path(name).stat()
        except (OSError, ValueError):
            stamps.append((0, 0))
        else:
            stamps.append((stat.st_size, stat.st_mtime_ns))
    return digest(stamps)


def _plain(root: Path, question: Question) -> list[Any]:
    media = [[m.kind, os.path.relpath(m.path, root), m.start, m.end, m.sha256] for m in question.media]
    return [question.key, question.ability, media, question.text, list(question.options), question.answer]


def _question(root: Path, key: str, ability: str, media: Any, text: str, options: Any, answer: int) -> Question:
    files = tuple(Media(kind, root / name, start, end, sha256) for kind, name, start, end, sha256 in media)
    return Question(key, ability, files, text, tuple(options), answer)
