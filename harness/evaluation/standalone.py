"""A model evaluated as it is: no training before it, and a record that tables can show beside those of runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.benchmarks import BENCHMARKS, AnyBenchmark
from harness.common.errors import EnvironmentProblem
from harness.common.files import write_json
from harness.common.hashing import digest
from harness.common.numbers import gigabytes
from harness.config.weight_files import missing_checkpoint
from harness.evaluation.evaluate import Job, checkpoint_digest, evaluate_checkpoints
from harness.evaluation.lmms.process import CHILD
from harness.records import provenance
from harness.records.record import evaluation_record, write_record
from harness.records.run_folder import check_disk, frames_room, lock_run, pin, run_dir_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.common.progress import Progress
    from harness.config.evaluation import EvaluationRecipe
    from harness.evaluation.shares import OtherNodes


def evaluate_standalone(
    recipe: EvaluationRecipe,
    progress: Progress,
    *,
    benchmarks: Mapping[str, AnyBenchmark] = BENCHMARKS,
    child: Sequence[str] = CHILD,
    nodes: OtherNodes | None = None,
) -> Path:
    """Score the model on every benchmark and write its record; results that are current are not made again.

    Args:
        benchmarks, child, nodes: as for `evaluate_checkpoints`.

    Returns:
        The record's file.

    Raises:
        EnvironmentProblem: weights are missing, or the disk is nearly full.
        StaleError: the evaluation was started with other weights.
    """
    missing = missing_checkpoint(recipe)
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        raise EnvironmentProblem(f"{recipe.name}: weights are missing\n{lines}")
    check_disk(Path(recipe.paths.results))
    room = frames_room(recipe)
    if room:
        check_disk(recipe.paths.frames, room, f"{gigabytes(room)} for the frames of evaluated videos")
    run_dir = run_dir_of(recipe)
    job = Job(0, 0.0, checkpoint_of(recipe))
    if nodes is not None:
        nodes.check_shared([Path(recipe.paths.results)])
    with lock_run(run_dir):
        write_json(run_dir / "recipe.json", recipe.identity(), sealed=True)
        weights = weights_of(recipe)
        pin(run_dir, "weights", weights)
        evaluate_checkpoints(
            recipe, run_dir, [job], data=None, progress=progress, benchmarks=benchmarks, child=child, nodes=nodes
        )
        where = provenance.collect(threads=recipe.devices.threads)
        finished = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = evaluation_record(recipe, run_dir, weights_fingerprint=weights, where=where, finished=finished)
        return write_record(record, run_dir)


def weights_of(recipe: EvaluationRecipe) -> str:
    """What tells the model's weights from others: the digest of its checkpoint, and of the weights that it does not
    hold."""
    checkpoint = checkpoint_digest(checkpoint_of(recipe))
    if not recipe.model.weights_beside:
        return checkpoint
    from harness.models.checkpoint_files import fingerprint, weight_files

    folders = [Path(recipe.paths.weights) / getattr(recipe.model, key) for key in recipe.model.weights_beside]
    return digest([checkpoint, *(fingerprint(weight_files(folder)) for folder in folders)])


def checkpoint_of(recipe: EvaluationRecipe) -> Path | None:
    """Where the evaluated weights lie; None for a model without."""
    checkpoint = recipe.model.checkpoint
    return None if checkpoint is None else Path(recipe.paths.weights) / checkpoint
