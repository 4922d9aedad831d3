"""What a frozen vision tower said of the clips of a data set, kept in a folder and mapped into memory.

A training that shows the same frames in every epoch has its frozen tower compute the same numbers each time. Kept,
they stand in for frames and tower alike: nothing is decoded and no convolution is run, and the losses are the same
to the bit, since the kept numbers are those that the step would have computed.

Files: features.npy (float32, a row a clip), sums.npy (uint32, CRC-32 of each row), rows.npy (int64, for each sample
the row of its clip, -1 where none is kept), card.json (what they were made from, and the sha256 of sums and rows).

Legend: M samples, R rows, ... the tower's own shape.
"""

from __future__ import annotations

import zlib
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from harness.common.errors import DataError
from harness.common.files import atomic_folder, check_kinds_below, read_json, write_json
from harness.common.hashing import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

SCHEMA: Final = 1
CARD: Final = "card.json"
_WHAT: Final = "kept tower features"


class TowerFeatures:
    """The kept features of a data set's samples. Arrays are mapped by each process when it first reads one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None

    @classmethod
    def open(cls, folder: Path, made_from: Mapping[str, Any]) -> TowerFeatures | None:
        """What lies in `folder`; None where nothing does.

        Raises:
            DataError: it is damaged, or was made from something else.
        """
        path = folder / CARD
        check_kinds_below(folder)
        if not path.is_file():
            return None
        hint = f"delete {folder}: the same command makes it again"
        card = read_json(path, _WHAT, schema=SCHEMA, shape={"made_from": dict}, hint=hint)
        if card["made_from"] != dict(made_from):
            raise DataError(f"{path}: made from something else", hint=hint)
        features = cls(folder)
        try:
            features._map()
            wanted = card.get("sha256", {})  # cards of an earlier version have none
            changed = [name for name, sha256 in wanted.items() if file_digest(folder / name) != sha256]
            if changed:
                raise ValueError(f"{', '.join(changed)} has changed")
        except (OSError, ValueError, EOFError, SyntaxError, TypeError, TokenError) as error:  # what numpy raises
            raise DataError(f"{folder}: {_WHAT} are damaged ({error})", hint=hint) from error
        return features

    def of(self, places: Sequence[int]) -> Tensor | None:
        """float32 [samples, ...] of the samples at these places of the data set; None where one of them has none, or
        its row is not as it was written."""
        features_R, sums_R, rows_M = self._map()
        picked = rows_M[list(places)]
        if (picked < 0).any():
            return None
        taken = np.array(features_R[picked])
        if any(zlib.crc32(part) != expected for part, expected in zip(taken, sums_R[picked], strict=True)):
            return None
        return torch.from_numpy(taken)

    @property
    def samples(self) -> int:
        """How many samples have features."""
        return int((self._map()[2] >= 0).sum())

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_arrays": None}

    def _map(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if self._arrays is None:
            features_R = np.load(self.folder / "features.npy", mmap_mode="r", allow_pickle=False)
            sums_R, rows_M = (np.load(self.folder / f"{name}.npy", allow_pickle=False) for name in ("sums", "rows"))
            if len(features_R) != len(sums_R) or rows_M.max(initial=-1) >= len(sums_R):
                raise ValueError("its files do not belong together")
            self._arrays = features_R, sums_R, rows_M
        return self._arrays


def write_features(
    folder: Path, count: int, chunks: Iterable[Tensor], rows_M: NDArray[np.int64], made_from: Mapping[str, Any]
) -> None:
    """Write a folder that `TowerFeatures.open` reads, in one step.

    Args:
        count: rows in all, at least one.
        chunks: float32 [clips, ...] each, all rows in order.
        rows_M: for each sample the number of its row, -1 for none; read after the last chunk, whose maker may have
            changed it.
    """
    sums: list[int] = []
    with atomic_folder(folder, keep_existing=True) as aside:
        with (aside / "features.npy").open("wb") as file:
            for chunk in chunks:
                if not sums:
                    shape = (count, *chunk.shape[1:])
                    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                for row in chunk.contiguous().numpy():
                    sums.append(zlib.crc32(row))
                    file.write(row.data)
        assert len(sums) == count
        np.save(aside / "sums.npy", np.array(sums, np.uint32))
        np.save(aside / "rows.npy", rows_M)
        sha256 = {name: file_digest(aside / name) for name in ("sums.npy", "rows.npy")}
        write_json(aside / CARD, {"schema": SCHEMA, "made_from": dict(made_from), "sha256": sha256}, sealed=True)
