"""The training of a prepared run, as each of its processes does it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from harness.data.sources import open_data
from harness.models import adapter_for, device
from harness.plan import make_plan
from harness.training.gate_stores import make_gate, open_reference
from harness.training.loop import TrainJob
from harness.training.loop import train as run_training
from harness.training.prepared import Prepared

if TYPE_CHECKING:
    import regate
    from harness.common.progress import Progress
    from harness.config.recipe import Recipe


def run_dir_of(recipe: Recipe) -> Path:
    return Path(recipe.paths.results) / "runs" / recipe.run_id


def join(recipe: Recipe, progress: Progress) -> Prepared:
    """The same run on another process, which writes nothing: everything is there."""
    use_settings(recipe)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    return Prepared(recipe, make_plan(recipe), data, adapter_for(recipe, data), run_dir_of(recipe), progress)


def use_settings(recipe: Recipe) -> None:
    """What is the same for every process of a run."""
    device.use_threads(recipe.devices.threads)
    disable_progress_bar()  # transformers' own, for every file it reads or writes; ours tell what matters


def train_job(run: Prepared, store: regate.ReferenceStore | None, *, began: float | None = None) -> TrainJob:
    """What the training loop needs."""
    recipe = run.recipe
    return TrainJob(
        recipe=recipe,
        steps=run.plan.steps,
        evaluate_at=run.plan.evaluation_steps,
        adapter=run.adapter,
        data=run.data,
        make_gate=lambda: make_gate(run, store),
        run_dir=run.run_dir,
        progress=run.progress,
        began=began,
    )


def train_here(run: Prepared, *, began: float | None = None) -> None:
    """This process's part of the training, on one of several; the reference losses are there."""
    run_training(train_job(run, open_reference(run), began=began))
