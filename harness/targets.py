"""The index of a data set's targets: how many each sample has, and a checksum of their ids.

Both stores are laid out by it. It is made by one pass over the text alone and kept beside the stores, under the
hash of what it was made from.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.recipe import digest
from regate.reference import target_checksum

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.data.sources import DataSet
    from harness.models.adapter import Processor
    from harness.progress import Progress

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class TargetIndex:
    """One entry a sample, in the order of the data set.

    Attributes:
        sample_ids: int64.
        num_targets: int64.
        checksums: int64, `regate.reference.target_checksum` of the target ids in canonical order.
    """

    sample_ids: NDArray[np.int64]
    num_targets: NDArray[np.int64]
    checksums: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.num_targets.sum())


def index_targets(data: DataSet, processor: Processor, folder: Path, progress: Progress) -> TargetIndex:
    """The index of `data` under `processor`'s template, read from `folder` or made and kept there."""
    made_from = {"schema": SCHEMA, "data": data.fingerprint, "processor": processor.fingerprint}
    path = folder / f"targets-{digest(made_from)[:16]}.npz"
    if path.exists():
        with np.load(path) as arrays:
            return TargetIndex(arrays["sample_ids"], arrays["num_targets"], arrays["checksums"])
    index = _make(data, processor, progress)
    folder.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".tmp")
    with work.open("wb") as file:
        np.savez(file, sample_ids=index.sample_ids, num_targets=index.num_targets, checksums=index.checksums)
        file.flush()
        os.fsync(file.fileno())
    work.replace(path)
    return index


def _make(data: DataSet, processor: Processor, progress: Progress) -> TargetIndex:
    count = len(data.samples)
    index = TargetIndex(np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64))
    with progress.task("count targets", count) as advance:
        for row, sample in enumerate(data.samples):
            encoded = processor.encode(sample, None)
            is_target_S = encoded.ordinal_S >= 0
            order = encoded.ordinal_S[is_target_S].argsort()
            ids_N = encoded.labels_S[is_target_S][order]
            index.sample_ids[row] = sample.id
            index.num_targets[row] = len(ids_N)
            index.checksums[row] = target_checksum(ids_N)
            advance(row + 1)
    return index
