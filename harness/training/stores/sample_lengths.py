"""How long each sample is, and what a step is expected to compute of it: what micro-batches are cut and dealt by.

The lengths come from the pass over the text that counts the targets, or from one of their own that keeps the
encodings for it: no conversation is encoded twice.

Legend: M samples, N some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.common.hashing import digest
from harness.data.loading.text_rows import TextRows, TextRowsWriter, path_of
from harness.plan.sparse import visual_part
from harness.training.stores.arrays_of_samples import read_arrays, write_arrays
from regate.schedule import DualCycle
from regate.types import Kind

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.processor import Processor
    from harness.data.sample import Encoded
    from harness.data.sources import DataSet

SCHEMA: Final = 1
_NAMES: Final = ("positions", "visual", "targets")


@dataclass(frozen=True, slots=True)
class SampleLengths:
    """Of each sample of a data set, in its order, all turns shown.

    Attributes:
        positions_M: int64, in expanded length.
        visual_M, targets_M: int64, how many of them are visual, and how many targets.
    """

    positions_M: NDArray[np.int64]
    visual_M: NDArray[np.int64]
    targets_M: NDArray[np.int64]


class LengthsWriter:
    """Takes the rows of a pass over the text, in the order of the data set."""

    def __init__(self) -> None:
        self._counts: list[tuple[int, int, int]] = []

    def add(self, row: Encoded) -> None:
        kinds = row.kind_S.numpy()
        visual, targets = (int((kinds == int(kind)).sum()) for kind in (Kind.VISUAL, Kind.TARGET))
        self._counts.append((len(kinds), visual, targets))

    def save(self, path: Path) -> SampleLengths:
        """Write what was taken, and give it."""
        columns = np.array(self._counts, np.int64).reshape(-1, len(_NAMES)).T
        write_arrays(path, dict(zip(_NAMES, columns, strict=True)))
        return SampleLengths(*columns)


def lengths_path(folder: Path, data: DataSet, processor: Processor) -> Path:
    """Where the lengths of these data under this processor are kept."""
    made_from = {"schema": SCHEMA, "data": data.fingerprint, "processor": processor.fingerprint}
    return folder / f"lengths-{digest(made_from)[:16]}.npz"


def sample_lengths(data: DataSet, processor: Processor, folder: Path, progress: Progress) -> SampleLengths:
    """The lengths of `data` under `processor`'s template, read from `folder` or counted and kept there.

    Raises:
        DataError: the processor refuses a sample.
    """
    path = lengths_path(folder, data, processor)
    if path.exists():
        kept = read_arrays(path, _NAMES, len(data.samples))
        if kept is not None:
            return SampleLengths(*kept)
        progress.say(f"{path}: damaged; the positions are counted again")
    lengths = LengthsWriter()
    rows = TextRows.open(path_of(folder, data, processor), len(data.samples))
    writer = TextRowsWriter(processor.placeholder_id)
    with progress.task("count positions", len(data.samples)) as advance:
        for place, sample in enumerate(data.samples):
            row = processor.encode(sample, None) if rows is None else rows.row(place)
            lengths.add(row)
            if rows is None:
                writer.add(row)
            if (place + 1) % 1000 == 0 or place + 1 == len(data.samples):
                advance(place + 1)
    if rows is None:
        writer.save(path_of(folder, data, processor))
    return lengths.save(path)


@dataclass(frozen=True, slots=True)
class StepSizes:
    """`harness.data.sampler.Sizes` of a run.

    Attributes:
        schedule: of the gate; None where nothing is elided.
        visual_kept: the part of the visual positions that a sparse step computes.
        keeps_targets: a sparse step computes all of them.
    """

    lengths: SampleLengths
    schedule: DualCycle | None
    visual_kept: float = 1.0
    keeps_targets: bool = False

    def whole(self, index_N: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        positions_N: NDArray[np.int64] = self.lengths.positions_M[index_N]
        return positions_N

    def executed(self, index_N: NDArray[np.integer[Any]], step: int) -> NDArray[np.float64]:
        positions_N: NDArray[np.float64] = self.whole(index_N).astype(np.float64)
        if self.schedule is None or self.schedule.dense_at(step):
            return positions_N
        kept = 1.0 if self.keeps_targets else self.schedule.keep_ratio_at(step)
        positions_N -= (1.0 - kept) * self.lengths.targets_M[index_N]
        positions_N -= (1.0 - self.visual_kept) * self.lengths.visual_M[index_N]
        return positions_N


def needs_lengths(recipe: Recipe, processes: int) -> bool:
    """Whether a training with so many processes in all cuts or deals its micro-batches by their lengths.

    InternVL's reductions divide by sums over the micro-batches that the processes compute at the same time, so there
    they are dealt in turn.
    """
    train = recipe.train
    several = processes > 1 and train.global_batch > processes * train.micro_batch
    dealt = recipe.devices.balance and several and train.loss_norm in ("global_tokens", "micro_batch")
    return dealt or (train.cut == "level" and train.global_batch > train.micro_batch)


def step_sizes(recipe: Recipe, lengths: SampleLengths) -> StepSizes:
    """What the gate of a recipe is expected to leave of samples of these lengths."""
    gate = recipe.gate
    if gate is None or not gate.has_sparse_steps or gate.execution == "loss_only":
        return StepSizes(lengths, None)
    return StepSizes(lengths, DualCycle.from_config(gate), visual_part(gate), keeps_targets=not gate.elides)
