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
from itertools import pairwise
from typing import TYPE_CHECKING, Final, overload

import numpy as np

from harness.common.errors import DataError
from harness.data.sample import Media, Sample, Turn, sample_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from harness.data.formats import File, MediaKind, Row
    from harness.data.media_folders import MediaFolders

MODALITIES: Final = ("text", "image", "video")
"""What a sample is about, by number."""


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
    def sizes(self) -> NDArray[np.int64]:
        """Packed bytes of each row."""
        ends = np.array(self._ends, np.int64)
        return ends[1:] - ends[:-1]

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
        self._ends = np.zeros(len(order) + 1, np.int64)
        np.cumsum(rows.sizes[order], out=self._ends[1:])
        self._bytes = bytearray(int(self._ends[-1]))
        for place, (start, end) in zip(order.tolist(), pairwise(self._ends.tolist()), strict=True):
            self._bytes[start:end] = rows.packed(place)

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
        key, media, turns, spans, *openings = json.loads(self._bytes[self._ends[place] : self._ends[place + 1]])
        return Sample(
            id=int(self._ids[place]),
            key=key,
            media=tuple(Media(kind, self.folders.path(name), *more) for kind, name, *more in media),
            turns=tuple(Turn(role, text) for role, text in turns),
            spans=tuple((turn, first, end, name) for turn, first, end, name in spans),
            openings=tuple(openings[0]) if openings else (),
        )

    def taken(self, places: Sequence[int]) -> PackedSamples:
        """The samples at some places, in the order of their ids."""
        part = PackedSamples.__new__(PackedSamples)
        order = np.array(sorted(places), np.int64)
        part.folders, part._ids, part.modality = self.folders, self._ids[order], self.modality[order]
        part._ends = np.zeros(len(order) + 1, np.int64)
        np.cumsum((self._ends[1:] - self._ends[:-1])[order], out=part._ends[1:])
        part._bytes = bytearray(int(part._ends[-1]))
        for place, (start, end) in zip(order.tolist(), pairwise(part._ends.tolist()), strict=True):
            part._bytes[start:end] = self._bytes[self._ends[place] : self._ends[place + 1]]
        return part

    def digest(self) -> str:
        """sha256 over ids, keys, text, and the media's names and known hashes."""
        hasher = hashlib.sha256(self._ids.astype("<i8").tobytes())
        hasher.update(self._bytes)
        return hasher.hexdigest()

    @property
    def nbytes(self) -> int:
        """Memory of the packed samples."""
        return len(self._bytes) + self._ids.nbytes + self._ends.nbytes + self.modality.nbytes


def _pack(row: Row, sha256: Mapping[str, str]) -> bytes:
    media = [
        [m.kind, m.name, m.start, m.end, sha256.get(m.name), *([] if m.max_tiles is None else [m.max_tiles])]
        for m in row.media
    ]
    value = [row.key, media, [[turn.role, turn.text] for turn in row.turns], row.spans]
    if row.openings:
        value.append(row.openings)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
