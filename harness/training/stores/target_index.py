"""The index of a data set's targets: how many each sample has, and a checksum of their ids.

Both stores are laid out by it. It is made by one pass over the text alone and kept beside the stores, under the
hash of what it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.common.hashing import digest
from harness.data.loading.batches import text_batches
from harness.data.loading.text_rows import TextRows, TextRowsWriter, path_of
from harness.training.stores.arrays_of_samples import read_arrays, write_arrays
from harness.training.stores.sample_lengths import LengthsWriter, lengths_path
from regate.candidates import store_keys

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.common.progress import Progress
    from harness.data.processor import Processor
    from harness.data.sample import Encoded
    from harness.data.sources import DataSet
    from regate.config import Candidates

SCHEMA: Final = 1
_NAMES: Final = ("sample_ids", "num_targets", "checksums")
_POSITIONS: Final = 65536
"""Padded positions of a batch in the pass."""


@dataclass(frozen=True, slots=True)
class TargetIndex:
    """One entry a sample, in the order of the pass.

    Attributes:
        sample_ids: int64.
        num_targets: int64, number of candidates.
        checksums: int64, of the candidates' token ids in canonical order (`regate.candidates.store_keys`).
    """

    sample_ids: NDArray[np.int64]
    num_targets: NDArray[np.int64]
    checksums: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.num_targets.sum())


def index_targets(
    data: DataSet,
    processor: Processor,
    candidates: Candidates,
    folder: Path,
    progress: Progress,
    *,
    keep_rows: bool = False,
) -> TargetIndex:
    """The index of `data` under `processor`'s template, read from `folder` or made and kept there.

    Args:
        candidates: which positions compete for the budget; the stores hold one value for each.
        keep_rows: keep the encodings beside it, for the teacher (`harness.data.loading.text_rows`).
    """
    made_from = {
        "schema": SCHEMA,
        "data": data.fingerprint,
        "processor": processor.fingerprint,
        "candidates": candidates,
    }
    path = folder / f"targets-{digest(made_from)[:16]}.npz"
    if path.exists():
        kept = read_arrays(path, _NAMES, len(data.samples))
        if kept is not None:
            return TargetIndex(*kept)
        progress.say(f"{path}: damaged; the targets are counted again")
    index = _make(data, processor, candidates, progress, folder, keep_rows)
    write_arrays(path, {name: getattr(index, name) for name in _NAMES})
    return index


def _make(
    data: DataSet, processor: Processor, candidates: Candidates, progress: Progress, folder: Path, keep_rows: bool
) -> TargetIndex:
    rows = path_of(folder, data, processor)
    ids: list[int] = []
    counts: list[int] = []
    checksums: list[int] = []
    with progress.task("count targets", len(data.samples)) as advance:
        kept = TextRows.open(rows, len(data.samples))
        writer = TextRowsWriter(processor.placeholder_id)
        lengths = LengthsWriter()

        def seen(row: Encoded) -> None:
            lengths.add(row)
            if keep_rows:
                writer.add(row)

        batches = (
            text_batches(data, processor, tokens_per_batch=_POSITIONS, seen=seen)
            if kept is None
            else kept.batches(processor, tokens_per_batch=_POSITIONS)
        )
        for batch in batches:
            count_B, checksum_B = store_keys(batch.layout, candidates)
            ids += batch.sample_ids_B.tolist()
            counts += count_B
            checksums += checksum_B
            advance(len(ids))
    if kept is None:
        lengths.save(lengths_path(folder, data, processor))
        if keep_rows:
            writer.save(rows)
    as_int64 = (np.asarray(values, dtype=np.int64) for values in (ids, counts, checksums))
    return TargetIndex(*as_int64)
