"""The source `internvl`: a meta file that names annotations and the folders of their media, as InternVL has it.

    {"name": {"root": "folder", "annotation": "file.jsonl", "data_augment": false, "repeat_time": 1, "length": 100}}

`repeat_time` below 1 takes so much of the beginning of the file; from 2 on, every conversation is there so often,
each as a sample of its own. `max_dynamic_patch` is the most tiles of a picture of this annotation.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.data.formats import Bad, Row, read_internvl
from harness.data.media_folders import MediaFolders, media_roots
from harness.data.packed import Rows
from harness.data.records import RecordError, read_json
from harness.data.sample import SamplingPolicy
from harness.data.sources.source import EXPECTED, Annotations, cache_file, missing_files, pack

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.data import InternVLData
    from harness.config.recipe import Paths
    from harness.data.check import Expected

_READ: Final = frozenset(("root", "annotation", "data_augment", "repeat_time", "length", "max_dynamic_patch"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a meta file.

    Attributes:
        root: folder of its media below data.media; empty or ending with "/".
        annotation: relative to paths.data.
        repeat: how often its conversations are there; below 1, which part of them.
        length: how many it has by the meta file; None where it does not say.
    """

    name: str
    root: str
    annotation: str
    repeat: float
    length: int | None
    max_tiles: int | None


@dataclass(frozen=True, slots=True)
class InternVLSource:
    """Implements `harness.data.sources.source.Source`."""

    data: InternVLData
    paths: Paths
    seed: int
    made_here: bool = False
    origin: str = (
        "conversations of yours in InternVL's form (docs/your_data.md); OpenGVLab/InternVL-Chat-V1-2-SFT-Data on the "
        "Hugging Face hub has this form, its media are fetched from each source set under its own licence"
    )
    repositories: tuple[tuple[str, str], ...] = ()
    asked_subset: str | None = None
    blank: int = 224
    one_modality: bool = False

    @property
    def stated_samples(self) -> int | None:
        return self.data.samples

    @property
    def stated_targets(self) -> float | None:
        return self.data.targets_per_sample

    @property
    def sampling(self) -> SamplingPolicy:
        """The middle of each part of a video, or frames drawn from the parts, as in the official training."""
        if self.data.frame_sampling == "random":
            return SamplingPolicy("random", least=self.data.least_frames)
        return SamplingPolicy("middle")

    def identity(self) -> list[Any]:
        return []

    def missing(self) -> list[str]:
        base = Path(self.paths.data)
        meta = base / self.data.meta
        if not meta.is_file():
            return [f"{meta}: named by data.meta; from {self.origin}"]
        entries = read_meta(meta)
        return missing_files(
            [base / entry.annotation for entry in entries],
            [base / self.data.media / entry.root for entry in entries],
            folders_key="data.meta",
            origin=self.origin,
            roots=self.paths.media_roots,
        )

    def make(self, progress: Progress | None) -> Path:
        raise AssertionError("brought, not made")

    def read(self) -> Annotations:
        """One annotation file after the other, each packed before the next is read."""
        base = Path(self.paths.data)
        root, roots = base / self.data.media, media_roots(self.paths.media_roots)
        folders = MediaFolders(root, roots)
        rows, bad, unread = Rows(self.data.source), list[Bad](), Counter[str]()
        entries = read_meta(base / self.data.meta, unread)
        for origin, entry in enumerate(entries):
            read = read_internvl(base / entry.annotation, entry.root, unread, folders, entry.max_tiles)
            if entry.length is not None and entry.length != len(read):
                raise DataError(
                    f"{base / self.data.meta}: {entry.name}: length is {entry.length}, and {entry.annotation} has "
                    f"{len(read)} records",
                    hint="the annotation is cut off or another one; mend it, or leave length out",
                )
            bad += pack(rows, _repeated(read, entry.repeat), entry.name, origin)
        caches: dict[Path, dict[str, Expected]] = {}
        for origin, files in rows.media().items():
            place = f"{self.data.media}/{entries[origin].root}"
            known = caches.setdefault(cache_file(self.paths, f"{self.data.source}-{digest(place)[:8]}"), {})
            known.update((file, EXPECTED[kind]) for file, kind in files.items())
        files_read = (base / self.data.meta, *(base / entry.annotation for entry in entries))
        return Annotations(root, rows, tuple(bad), caches, unread=unread, roots=roots, files_read=files_read)


def _repeated(read: list[Row | Bad], times: float) -> list[Row | Bad]:
    if times < 1:
        return read[: int(len(read) * times)]
    again = [
        replace(row, key=f"{row.key}~{number}")
        for number in range(2, int(times) + 1)
        for row in read
        if isinstance(row, Row)
    ]
    return [*read, *again]


def read_meta(path: Path, unread: Counter[str] | None = None) -> list[Entry]:
    """The entries of a meta file, in its order.

    Args:
        unread: counts the entries by keys that are not read.

    Raises:
        DataError: it is no JSON, with file:line:column; or an entry cannot be used, with its name.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path}: an object with an entry for each annotation is expected")
    entries = []
    for name, fields in content.items():
        try:
            entries.append(_entry(name, fields))
        except RecordError as error:
            raise DataError(f"{path}: {name}: {error}") from None
        if unread is not None:
            unread.update(f"{key} of the meta file" for key in fields.keys() - _READ)
    return entries


def _entry(name: str, fields: Any) -> Entry:
    if not isinstance(fields, dict):
        raise RecordError("an object is expected")
    root, annotation = (_path(fields, key) for key in ("root", "annotation"))
    if not annotation.endswith(".jsonl"):
        raise RecordError(f"annotation {annotation} is no .jsonl file: write one conversation a line")
    if fields.get("data_augment") not in (None, False):
        raise RecordError("data_augment, another quality of JPEG at each visit, is not done here: set it to false")
    repeat = fields.get("repeat_time", 1)
    number = isinstance(repeat, int | float) and not isinstance(repeat, bool) and repeat > 0
    if not number or (repeat > 1 and repeat != int(repeat)):
        raise RecordError(f"repeat_time must be a part below 1 or a whole number of times, not {repeat}")
    length, most = (fields.get(key) for key in ("length", "max_dynamic_patch"))
    for key, value in (("length", length), ("max_dynamic_patch", most)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RecordError(f"{key} must be a whole number of at least 1, not {value}")
    folder = "" if root in ("", ".") else f"{root.rstrip('/')}/"
    return Entry(name, folder, annotation, float(repeat), length, most)


def _path(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or (key == "annotation" and not value):
        raise RecordError(f"{key} must be a path")
    if value.startswith(("/", "~")) or "\\" in value or ".." in value.split("/"):
        raise RecordError(f"{key} {value} must be relative, with /: to paths.data, a root to data.media")
    return value
