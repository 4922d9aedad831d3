"""A list of samples as one block of bytes.

A million small Python objects cost gigabytes, once more in every loading process; a block is shared between
forked processes and costs what its text costs. A sample is made when it is asked for, in some ten microseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, overload

import numpy as np

from harness.data.sample import Media, Sample, Turn
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from harness.data.formats import Row


class PackedSamples(Sequence[Sample]):
    """Samples in the order of their ids; media paths start at `root`."""

    def __init__(self, root: Path, rows: Iterable[tuple[int, Row]], sha256: Mapping[str, str]) -> None:
        ordered = sorted(rows, key=lambda row: row[0])
        for (one, first), (other, second) in pairwise(ordered):
            if one == other:
                raise DataError(f"records {first.key} and {second.key} have one id", hint="rename one of them")
        blocks = [_pack(row, sha256) for _, row in ordered]
        self.root = root
        self._ids = np.array([number for number, _ in ordered], np.int64)
        self._ends = np.cumsum([0, *map(len, blocks)], dtype=np.int64)
        self._bytes = b"".join(blocks)

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
        key, media, turns, spans = json.loads(self._bytes[self._ends[place] : self._ends[place + 1]])
        return Sample(
            id=int(self._ids[place]),
            key=key,
            media=tuple(Media(kind, self.root / name, a, b, digest) for kind, name, a, b, digest in media),
            turns=tuple(Turn(role, text) for role, text in turns),
            spans=tuple((turn, first, end, name) for turn, first, end, name in spans),
        )

    def digest(self) -> str:
        """sha256 over ids, keys, text, and the media's names and known hashes."""
        return hashlib.sha256(self._ids.astype("<i8").tobytes() + self._bytes).hexdigest()


def _pack(row: Row, sha256: Mapping[str, str]) -> bytes:
    media = [[m.kind, m.name, m.start, m.end, sha256.get(m.name)] for m in row.media]
    value = [row.key, media, [[turn.role, turn.text] for turn in row.turns], row.spans]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
