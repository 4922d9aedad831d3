"""Where each sample's values stand in a flat array: the index that the two stores share.

Keys are stable sample ids and canonical candidate slots, never positions in a row or in a data set: prompts,
frames and the order of turns may differ from visit to visit (and a loader may replace a sample by another).

Legend: M samples of the store, B rows, S expanded length, n candidates of the batch, row by row.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regate.errors import MismatchError, StoreError
from regate.files import open_array

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from regate.candidates import Candidates

Int64 = NDArray[np.int64]


def stable_id(name: int | str) -> int:
    """A sample's id: an integer as it is, a name by 63 bits of its blake2b hash."""
    if isinstance(name, int):
        return name
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class StoreIndex:
    """Sorted sample ids and the first slot of each.

    Attributes:
        ids_M: int64, ascending.
        offsets_M1: int64, M + 1 entries; sample r's values are [offsets[r], offsets[r + 1]).
    """

    ids_M: Int64
    offsets_M1: Int64

    @classmethod
    def from_counts(
        cls, sample_ids: Sequence[int] | NDArray[Any], counts: Sequence[int] | NDArray[Any]
    ) -> tuple[StoreIndex, Int64]:
        """The index, and the order that sorts the arguments."""
        ids_M = np.asarray(sample_ids, dtype=np.int64)
        counts_M = np.asarray(counts, dtype=np.int64)
        if ids_M.ndim != 1 or ids_M.shape != counts_M.shape:
            raise StoreError(f"{ids_M.shape} sample ids and {counts_M.shape} counts: one count for each id")
        if (counts_M < 0).any():
            raise StoreError("a sample cannot have a negative number of targets")
        order_M = ids_M.argsort(kind="stable")
        ids_M = ids_M[order_M]
        if not counts_M.any():
            raise StoreError(
                f"none of the {ids_M.size} samples has a target: every label is -100; check the labels that the "
                "collator makes, and the truncation"
            )
        twice = ids_M[1:][ids_M[1:] == ids_M[:-1]]
        if twice.size:
            raise StoreError(f"sample id {int(twice[0])} occurs twice; every sample needs its own stable id")
        offsets_M1 = np.zeros(ids_M.size + 1, dtype=np.int64)
        np.cumsum(counts_M[order_M], out=offsets_M1[1:])
        return cls(ids_M, offsets_M1), order_M

    def __len__(self) -> int:
        return int(self.ids_M.size)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.offsets_M1[-1])

    @property
    def crc(self) -> int:
        """Identity of the index."""
        return zlib.crc32(self.offsets_M1.tobytes(), zlib.crc32(self.ids_M.tobytes()))

    def save(self, folder: Path) -> None:
        np.save(folder / "ids.npy", self.ids_M)
        np.save(folder / "offsets.npy", self.offsets_M1)

    @classmethod
    def load(cls, folder: Path, manifest: dict[str, Any]) -> StoreIndex:
        """The index of a store folder; `manifest` gives its size and crc."""
        samples = int(manifest["samples"])
        index = cls(
            open_array(folder / "ids.npy", (samples,), "int64"),
            open_array(folder / "offsets.npy", (samples + 1,), "int64"),
        )
        if index.crc != manifest["index_crc32"]:
            raise StoreError(
                f"{folder}: the index is damaged (checksum differs); delete the folder and make it again"
            )
        return index

    def rows(self, sample_ids_B: Int64, where: Path | str) -> Int64:
        """Place of each sample id in the index.

        Raises:
            StoreError: an id is unknown; names it.
        """
        rows_B = np.searchsorted(self.ids_M, sample_ids_B)
        found_B = rows_B < len(self)
        found_B[found_B] = self.ids_M[rows_B[found_B]] == sample_ids_B[found_B]
        if not found_B.all():
            unknown = int(sample_ids_B[~found_B][0])
            raise StoreError(
                f"sample {unknown} is not in {where} ({len(self)} samples): it was made from other data; "
                "score the data set again"
            )
        return np.asarray(rows_B, dtype=np.int64)

    def slots(self, candidates: Candidates, sample_ids_B: Tensor, where: Path | str) -> Slots:
        """Where the batch's candidates stand in the flat array. Rows without candidates are left aside.

        Raises:
            StoreError: an id is unknown.
            MismatchError: a sample has another number of candidates than the store.
        """
        row_n, column_n = (axis.numpy() for axis in candidates.mask_BS.nonzero(as_tuple=True))
        count_B = candidates.count_B.numpy()
        live_B = count_B > 0
        rows_B = np.full(count_B.shape, -1, dtype=np.int64)
        ids_B = sample_ids_B.numpy()
        rows_B[live_B] = self.rows(ids_B[live_B], where)
        stored_B = np.where(live_B, self.offsets_M1[rows_B + 1] - self.offsets_M1[rows_B], 0)
        if (stored_B != count_B).any():
            wrong = int((stored_B != count_B).nonzero()[0][0])
            raise MismatchError(
                f"sample {int(ids_B[wrong])} has {int(count_B[wrong])} targets here and {int(stored_B[wrong])} in "
                f"{where}: the template, the tokenizer, the truncation or the data changed since; score again"
            )
        slot_n = self.offsets_M1[rows_B[row_n]] + candidates.slot_BS.numpy()[row_n, column_n]
        return Slots(rows_B, row_n, column_n, slot_n, (candidates.mask_BS.shape[0], candidates.mask_BS.shape[1]))


@dataclass(frozen=True, slots=True)
class Slots:
    """A batch's candidates in a store.

    Attributes:
        rows_B: int64, place of the sample in the index, -1 for a row without candidates.
        row_n, column_n: int64, position in the batch.
        slot_n: int64, place in the flat array.
    """

    rows_B: Int64
    row_n: Int64
    column_n: Int64
    slot_n: Int64
    shape: tuple[int, int]

    def spread(self, values_n: NDArray[Any]) -> Tensor:
        """float32 BS, NaN where there is no candidate."""
        out_BS = np.full(self.shape, np.nan, dtype=np.float32)
        out_BS[self.row_n, self.column_n] = values_n
        return torch.from_numpy(out_BS)
