"""The text-only encodings of a data set, made by one pass and read by every process that needs them afterwards.

Counting the targets encodes every conversation; the teacher needs the same rows, in each of its processes. They are
kept as a packed file (`harness.data.packed_file`): of each row the token ids (int32) and kinds (uint8), a run of
visual positions as one entry whose id is its length. Labels and ordinals follow from the kinds.

Legend: S expanded length, E entries of a row, M rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.data import packed_file
from harness.data.loading.batches import cut_into_batches
from harness.data.packed_file import row_sum
from harness.data.sample import Encoded
from regate.types import IGNORE, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.data.processor import Processor
    from harness.data.sample import Batch
    from harness.data.sources import DataSet

SCHEMA: Final = 1
_ENTRY: Final = 5
"""Bytes of an entry: int32 and uint8."""
_SIGN: Final = (1 << 64) - 1


def path_of(folder: Path, data: DataSet, processor: Processor) -> Path:
    """Where the rows of these data under this processor are kept."""
    made_from = {"schema": SCHEMA, "data": data.fingerprint, "processor": processor.fingerprint}
    return folder / f"tokens-{digest(made_from)[:16]}.bin"


class TextRowsWriter:
    """Takes rows in the order of the data set. A row that could not be made again from ids and kinds alone (a family
    with further inputs of its own) makes the whole pass unusable: nothing is written then."""

    def __init__(self, placeholder_id: int) -> None:
        self._placeholder_id = placeholder_id
        self._rows = bytearray()
        self._ids: list[int] = []
        self._ends: list[int] = [0]
        self._lengths: list[int] = []
        self._sums: list[int] = []
        self.usable = True

    def add(self, row: Encoded) -> None:
        """Keep a row."""
        if not self.usable:
            return
        ids_S, kind_S = row.input_ids_S.numpy(), row.kind_S.numpy()
        entries = _collapsed(ids_S, kind_S)
        again = _row(row.sample_id, *entries, self._placeholder_id)
        same = all(
            torch.equal(getattr(row, name), getattr(again, name))
            for name in ("input_ids_S", "labels_S", "kind_S", "ordinal_S")
        )
        if not same or row.extra or row.pixels is not None or row.failed:
            self.usable = False
            self._rows.clear()
            return
        content = entries[0].tobytes() + entries[1].tobytes()
        self._rows += content
        self._ids.append(row.sample_id)
        self._ends.append(len(self._rows))
        self._lengths.append(len(ids_S))
        self._sums.append(row_sum(row.sample_id & _SIGN, content))

    def save(self, path: Path) -> None:
        """Write them, unless they are of no use."""
        if not self.usable:
            return
        values = {"ids": self._ids, "ends": self._ends, "sums": self._sums, "lengths": self._lengths}
        arrays = {name: np.array(part, np.int64) for name, part in values.items()}
        packed_file.write(path, arrays, [self._rows], {"placeholder_id": self._placeholder_id})


class TextRows:
    """Rows that a `TextRowsWriter` wrote, mapped into memory.

    Attributes:
        sample_ids_M: int64, in the order of the data set.
        lengths_M: int64, expanded length of each row.
    """

    def __init__(
        self, path: Path, arrays: dict[str, NDArray[Any]], content: mmap, begin: int, placeholder: int
    ) -> None:
        self._path, self._content, self._begin, self._placeholder_id = path, content, begin, placeholder
        self.sample_ids_M, self.lengths_M = arrays["ids"], arrays["lengths"]
        self._ends, self._sums = arrays["ends"].view(np.int64), arrays["sums"]

    @classmethod
    def open(cls, path: Path, samples: int) -> TextRows | None:
        """None where there is no whole file with so many rows."""
        description, content = packed_file.description_of(path), packed_file.mapped(path)
        if description is None or content is None or len(content[0]["ids"]) != samples:
            return None
        return cls(path, *content, description["placeholder_id"])

    def row(self, place: int) -> Encoded:
        """The text-only encoding of a sample; how many of its targets were cut off is not known here.

        Raises:
            DataError: it is not what was written; the file is removed, and the next pass encodes again.
        """
        number = int(self.sample_ids_M[place])
        raw = self._content[self._begin + int(self._ends[place]) : self._begin + int(self._ends[place + 1])]
        if row_sum(number & _SIGN, raw) != self._sums[place]:
            self._path.unlink(missing_ok=True)
            raise DataError(
                f"{self._path}: row {place} is not what was written (checksum)",
                hint="give the command again: the file is removed, and the conversations are encoded again",
            )
        entries = len(raw) // _ENTRY
        ids_E = np.frombuffer(raw, "<i4", entries)
        return _row(number, ids_E, np.frombuffer(raw, np.uint8, entries, 4 * entries), self._placeholder_id)

    def batches(
        self, processor: Processor, *, tokens_per_batch: int, part: int = 0, parts: int = 1
    ) -> Iterator[Batch]:
        """The batches of `harness.data.loading.batches.text_batches`, of which every `parts`-th is made, from the
        `part`-th on: no row of the others is touched."""
        order = cut_into_batches(self.sample_ids_M.tolist(), self.lengths_M.tolist(), tokens_per_batch)
        for place, batch in enumerate(order):
            if place % parts == part:
                yield processor.collate([self.row(row) for row in batch])


def _collapsed(ids_S: NDArray[np.int64], kind_S: NDArray[np.uint8]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Ids and kinds with each run of visual positions as one entry, whose id is its length."""
    visual_S = kind_S == int(Kind.VISUAL)
    first_S = np.ones(len(kind_S), bool)
    first_S[1:] = ~(visual_S[1:] & visual_S[:-1])
    starts_E = np.flatnonzero(first_S)
    runs_E = np.diff(np.append(starts_E, len(kind_S)))
    return np.where(visual_S[starts_E], runs_E, ids_S[starts_E]).astype("<i4"), kind_S[starts_E]


def _row(number: int, ids_E: NDArray[np.int32], kind_E: NDArray[np.uint8], placeholder_id: int) -> Encoded:
    visual_E = kind_E == int(Kind.VISUAL)
    runs_E = np.where(visual_E, ids_E, 1)
    ids_S = torch.from_numpy(np.repeat(np.where(visual_E, placeholder_id, ids_E).astype(np.int64), runs_E))
    kind_S = torch.from_numpy(np.repeat(kind_E, runs_E))
    target_S = kind_S == Kind.TARGET
    return Encoded(
        sample_id=number,
        input_ids_S=ids_S,
        labels_S=torch.where(target_S, ids_S, IGNORE),
        kind_S=kind_S,
        ordinal_S=torch.where(target_S, target_S.long().cumsum(0) - 1, -1),
    )
