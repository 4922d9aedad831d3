"""A list of samples as one block of bytes.

A million small Python objects cost gigabytes, once more in every loading process; a block is shared between
forked processes and costs what its text costs. A sample is made when it is asked for, in some ten microseconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np

from harness.common.errors import DataError
from harness.data import packed_file
from harness.data.packed_file import row_sum
from harness.data.sample import Media, Sample, Turn, sample_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from mmap import mmap
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.data.formats import File, MediaKind, Row
    from harness.data.media_folders import MediaFolders

MODALITIES: Final = ("text", "image", "video")
"""What a sample is about, by number."""
_UNSIGNED: Final = (1 << 64) - 1


class Rows:
    """Rows on their way to a data set, each packed as it is read: what a file was read into can be dropped."""

    def __init__(self, source: str, sha256: Mapping[str, str] | None = None) -> None:
        self._source = source
        self._sha256 = sha256 or {}
        self._kinds: dict[str, MediaKind] = {}
        self._parts: dict[int, tuple[File, ...]] = {}
        self._files: list[tuple[str, ...]] = []
        self._ids = array("q")
        self._pairs = array("I")
        self._origins = array("H")
        self._mediums = bytearray()
        self._bytes = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, row: Row, origin: int = 0) -> None:
        """`origin` says which annotation file the row is from."""
        files = tuple(sys.intern(file.name) for file in row.media)
        for file in row.media:
            self._kinds.setdefault(file.name, file.kind)
        parts = tuple(file for file in row.media if file.start is not None or file.end is not None)
        if parts:
            self._parts[len(self)] = parts
        medium = MODALITIES.index(row.media[0].kind) if row.media else 0
        self._append(_pack(row, self._sha256), sample_id(self._source, row.key), row.pairs, origin, medium, files)

    @property
    def ids(self) -> NDArray[np.int64]:
        return np.array(self._ids, np.int64)

    @property
    def pairs(self) -> NDArray[np.int64]:
        """Number of answers of each row."""
        return np.array(self._pairs, np.int64)

    @property
    def modality(self) -> NDArray[np.uint8]:
        """What each row is about, an index into `MODALITIES`."""
        return np.array(self._mediums, np.uint8)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Where each row ends in `content`, behind a 0."""
        return np.array(self._ends, np.int64)

    @property
    def content(self) -> bytearray:
        """The bytes of all rows, in the order in which they were added."""
        return self._bytes

    def packed(self, place: int) -> bytearray:
        """A row's bytes."""
        return self._bytes[self._ends[place] : self._ends[place + 1]]

    def key(self, place: int) -> str:
        key: str = json.loads(self.packed(place))[0]
        return key

    def files(self, place: int) -> tuple[str, ...]:
        """Names of a row's media."""
        return self._files[place]

    @property
    def parts(self) -> Mapping[int, tuple[File, ...]]:
        """By place, the media of which a row shows a part."""
        return self._parts

    def media(self) -> dict[int, dict[str, MediaKind]]:
        """By origin, the names and kinds of its rows' media."""
        media: dict[int, dict[str, MediaKind]] = {}
        for origin, names in zip(self._origins, self._files, strict=True):
            media.setdefault(origin, {}).update((name, self._kinds[name]) for name in names)
        return media

    def taken(self, places: Iterable[int]) -> Rows:
        """The rows at some places."""
        part = Rows(self._source, self._sha256)
        part._kinds = self._kinds
        for i in places:
            origin, medium = self._origins[i], self._mediums[i]
            if i in self._parts:
                part._parts[len(part)] = self._parts[i]
            part._append(self.packed(i), self._ids[i], self._pairs[i], origin, medium, self._files[i])
        return part

    def _append(
        self, block: bytes | bytearray, number: int, pairs: int, origin: int, medium: int, files: tuple[str, ...]
    ) -> None:
        self._bytes += block
        self._ends.append(len(self._bytes))
        self._ids.append(number)
        self._pairs.append(pairs)
        self._origins.append(origin)
        self._mediums.append(medium)
        self._files.append(files)


class PackedSamples(Sequence[Sample]):
    """Samples in the order of their ids; `folders` say where their media lie.

    Raises:
        DataError: two rows have one id.
    """

    def __init__(self, folders: MediaFolders, rows: Rows) -> None:
        order = np.argsort(rows.ids, kind="stable")
        self.folders = folders
        self._ids = rows.ids[order]
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            first, second = (rows.key(int(order[twice[0] + i])) for i in (0, 1))
            raise DataError(f"records {first} and {second} have one id", hint="rename one of them")
        self.modality = rows.modality[order]
        ends = rows.ends
        self._starts, self._ends = ends[:-1][order], ends[1:][order]
        # The rows stay where they were read to: a second copy in the order of the ids would be as large as the set.
        self._bytes: bytearray | mmap = rows.content
        self._begin = 0
        self._sums: NDArray[np.uint32] | None = None
        self._file: Path | None = None

    @classmethod
    def from_file(cls, folders: MediaFolders, path: Path) -> PackedSamples | None:
        """Samples that `save` wrote, mapped into memory; None where the file is not there or not whole."""
        content = packed_file.mapped(path)
        if content is None:
            return None
        arrays, whole, begin = content
        samples = cls.__new__(cls)
        samples.folders, samples._file, samples._bytes, samples._begin = folders, path, whole, begin
        samples._ids, samples._sums, samples.modality = arrays["ids"], arrays["sums"], arrays["modality"]
        ends = arrays["ends"].view(np.int64)
        samples._starts, samples._ends = ends[:-1], ends[1:]
        return samples

    def save(self, path: Path, description: dict[str, Any]) -> None:
        """Write them into one file, with a plain value; see `harness.data.packed_file`."""
        view = memoryview(self._bytes)[self._begin :]
        sums = self._sums
        if sums is None:
            places = zip(self._ids.tolist(), self._starts.tolist(), self._ends.tolist(), strict=True)
            sums_of_rows = (row_sum(number, view[start:end]) for number, start, end in places)
            sums = np.fromiter(sums_of_rows, np.uint32, len(self))
        ends = np.concatenate([[0], np.cumsum(self._ends - self._starts)])
        arrays = {"ids": self._ids, "ends": ends, "sums": sums, "modality": self.modality}
        spans = zip(self._starts.tolist(), self._ends.tolist(), strict=True)
        packed_file.write(path, arrays, (view[start:end] for start, end in spans), description)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        key, media, turns, spans, *openings = json.loads(self._row(place))
        return Sample(
            id=int(self._ids[place]),
            key=key,
            media=tuple(Media(kind, self.folders.path(name), *more) for kind, name, *more in media),
            turns=tuple(Turn(role, text) for role, text in turns),
            spans=tuple((turn, first, end, name) for turn, first, end, name in spans),
            openings=tuple(openings[0]) if openings else (),
        )

    def taken(self, places: Sequence[int]) -> PackedSamples:
        """The samples at some places, in the order of their ids; their bytes are shared."""
        part = PackedSamples.__new__(PackedSamples)
        order = np.array(sorted(places), np.int64)
        part.folders, part._bytes, part._begin, part._file = self.folders, self._bytes, self._begin, self._file
        part._ids, part.modality = self._ids[order], self.modality[order]
        part._starts, part._ends = self._starts[order], self._ends[order]
        part._sums = None if self._sums is None else self._sums[order]
        return part

    def digest(self) -> str:
        """sha256 over ids, keys, text, and the media's names and known hashes."""
        hasher = hashlib.sha256(self._ids.astype("<i8").tobytes())
        for place in range(len(self)):
            hasher.update(self._row(place))
        return hasher.hexdigest()

    @property
    def nbytes(self) -> int:
        """Memory of the packed samples, or size of their file."""
        arrays = (self._ids, self._starts, self.modality, *(() if self._sums is None else (self._sums,)))
        beside: int = sum(array.nbytes for array in arrays)
        return int((self._ends - self._starts).sum()) + beside

    def _row(self, place: int) -> bytes | bytearray:
        """A row's bytes.

        Raises:
            DataError: they are not what was written; the file is removed, so that it is made again.
        """
        row = self._bytes[self._begin + int(self._starts[place]) : self._begin + int(self._ends[place])]
        if self._sums is not None and row_sum(int(self._ids[place]) & _UNSIGNED, row) != self._sums[place]:
            assert self._file is not None
            with suppress(OSError):
                self._file.unlink()
            raise DataError(
                f"{self._file}: packed record {place} is not what was written (checksum)",
                hint="give the command again: the file is removed, and made again from the annotations",
            )
        return row

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are not forked: a mapped file is opened again there, not sent."""
        if self._file is None:
            return self.__dict__
        return {**self.__dict__, "_bytes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            content = packed_file.mapped(self._file)
            if content is None:
                raise DataError(f"{self._file}: is gone or damaged", hint="give the command again")
            self._bytes, self._begin = content[1], content[2]


def _pack(row: Row, sha256: Mapping[str, str]) -> bytes:
    media = [
        [m.kind, m.name, m.start, m.end, sha256.get(m.name), *([] if m.max_tiles is None else [m.max_tiles])]
        for m in row.media
    ]
    value = [row.key, media, [[turn.role, turn.text] for turn in row.turns], row.spans]
    if row.openings:
        value.append(row.openings)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
