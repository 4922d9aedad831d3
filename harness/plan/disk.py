"""The disk that a run fills: in all, for its plan; and what is not written yet, for its start. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.common.numbers import GB
from harness.plan.figures import Figure, counted, estimated
from harness.plan.memory import tower_bytes
from harness.plan.work import lengths_in
from harness.records.ledger import finished_step
from harness.records.record import RECORD_FILE
from harness.records.run_folder import frames_room, run_dir_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.footprint import Footprint
    from harness.plan import Plan
    from harness.plan.work import Lengths

STORE_BYTES: Final = 2
"""Of a reference loss or a running loss: float16."""
RESUMABLE: Final = 2
"""Checkpoints to resume from that are on the disk at once: the newest, and the next while it is written."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a run has yet to write below a folder, and what they are, in words."""

    folder: Path
    what: str
    size: int


def disk_figures(recipe: Recipe, plan: Plan, footprint: Footprint, lengths: Lengths) -> list[Figure]:
    """What the run writes."""
    points = len(plan.evaluations)
    targets = plan.samples * lengths.targets
    stores = sum((plan.teacher_pass, recipe.gate is not None and recipe.gate.needs_difficulty))
    figures = [
        counted("kept models", model_bytes(footprint) * points / GB, "GB", f"{points} points, float32"),
        counted(
            "checkpoints to resume from", RESUMABLE * resume_bytes(footprint) / GB, "GB",
            "trained weights and AdamW's moments; the newest, and the next while it is written",
        ),
    ]
    if stores:
        what = "reference and running losses" if stores == 2 else "reference or running losses"
        figures.append(
            estimated(what, stores * STORE_BYTES * targets / GB, "GB", f"{STORE_BYTES} bytes a target and store")
        )
    size = tower_bytes(footprint, plan.samples)
    if size is not None:
        limit = recipe.devices.tower_cache_gb
        judged = "kept on a CPU, within" if size <= limit * GB else "not kept, more than"
        source = f"float32, at most a clip a sample; {judged} devices.tower_cache_gb {limit:g}"
        figures.append(counted("tower features", size / GB, "GB", source))
    if recipe.devices.frame_cache_gb and plan.benchmarks:
        source = "devices.frame_cache_gb: at most, for all runs that share paths.stores"
        figures.append(counted("frames of evaluated videos", recipe.devices.frame_cache_gb, "GB", source))
    return figures


def disk_needs(
    recipe: Recipe, plan: Plan, footprint: Footprint, data: DataSet, *, reference_store: bool
) -> Iterator[Need]:
    """What the run has yet to write; nothing of what is there already.

    Args:
        reference_store: whether the reference losses are still to be computed.
    """
    run_dir = run_dir_of(recipe)
    checkpoints = run_dir / "checkpoints"
    missing = [step for step in plan.evaluation_steps if not (checkpoints / f"step-{step:06d}").is_dir()]
    yield Need(run_dir, f"kept models ({len(missing)})", len(missing) * model_bytes(footprint))
    if finished_step(run_dir / "ledger.jsonl") != plan.steps:
        resumable = max(0, RESUMABLE - sum(1 for _ in checkpoints.glob("resume-*")))
        yield Need(run_dir, f"checkpoints to resume from ({resumable})", resumable * resume_bytes(footprint))
    store = int(STORE_BYTES * plan.samples * lengths_in(footprint, data).targets)
    if reference_store:
        yield Need(Path(recipe.paths.stores), "the reference losses", store)
    if recipe.gate is not None and recipe.gate.needs_difficulty and not (run_dir / "difficulty").is_dir():
        yield Need(run_dir, "the running losses", store)
    if plan.benchmarks and not (run_dir / RECORD_FILE).exists():
        yield Need(Path(recipe.paths.stores), "the frames of evaluated videos", frames_room(recipe))


def model_bytes(footprint: Footprint) -> int:
    """Of a model kept for evaluation: float32, the trained part alone where that is an adapter."""
    return 4 * (footprint.trained if footprint.adapters else footprint.parameters)


def resume_bytes(footprint: Footprint) -> int:
    """Of a checkpoint to resume from: the trained parameters and AdamW's two moments, in float32."""
    return 12 * footprint.trained
