"""The stages of a run, each skipped where its result is there and current: prepare, reference, train, evaluate,
finish. `harness run` is these five; a killed run goes on where it was.

Every stage is told what the ones before it made, and writes what it cost into the run's ledger.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.utils.logging import disable_progress_bar

from harness import device, figures, provenance, tables, track
from harness import evaluate as evaluation
from harness.data.sources import make_data, open_data
from harness.errors import StaleError
from harness.gating import make_gate, reference, reference_facts
from harness.models import adapter_for
from harness.plan import make_plan, require
from harness.prepared import Prepared
from harness.record import build_record, write_record
from harness.rundir import alone, check_disk, pin, stage, write_json
from harness.train import TrainJob
from harness.train import train as run_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    import regate
    from harness.data.sources import DataSet
    from harness.progress import Progress
    from harness.recipe import Recipe

_PROVENANCE: Final = "provenance.json"


def prepare(recipe: Recipe, progress: Progress) -> Prepared:
    """Make the data and weights that can be made here; name every one that must be brought.

    Raises:
        EnvironmentProblem: weights are missing, or the disk is nearly full.
        DataError: data are missing or damaged.
        StaleError: the run was started with other data or weights.
    """
    device.use_threads(recipe.devices.threads)
    disable_progress_bar()  # transformers' own, for every file it reads or writes; ours tell what matters
    plan = make_plan(recipe)
    require(plan)
    results = Path(recipe.paths.results)
    for folder in (results, Path(recipe.paths.data), Path(recipe.paths.weights), Path(recipe.paths.stores)):
        check_disk(folder)
    run_dir = results / "runs" / recipe.run_id
    run_dir.mkdir(parents=True, exist_ok=True)
    if plan.to_make:
        with stage(run_dir, "prepare", "prepare"):
            make_data(recipe.data, recipe.paths, recipe.seed, progress)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    _tell_excluded(data, progress)
    adapter = adapter_for(recipe, data)
    if adapter.missing():
        with stage(run_dir, "prepare", "prepare"):
            adapter.prepare(progress)
    write_json(run_dir / "recipe.json", recipe.model_dump(mode="json"))
    pin(run_dir, "data", data.fingerprint)
    pin(run_dir, "weights", adapter.weights_fingerprint)
    return Prepared(recipe, make_plan(recipe), data, adapter, run_dir, progress)


def train_job(run: Prepared, store: regate.ReferenceStore | None) -> TrainJob:
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
    )


def train(run: Prepared) -> None:
    """Fine-tune, with the reference losses before it. What it was trained on and with is noted at its start."""
    where = run.run_dir / _PROVENANCE
    if not where.exists():
        write_json(where, provenance.collect(threads=torch.get_num_threads()))
    run_training(train_job(run, reference(run)))


def evaluate(run: Prepared) -> list[dict[str, Any]]:
    """Score the kept checkpoints; its time is a clock of its own."""
    jobs = [
        evaluation.Job(point.step, point.fraction, run.run_dir / "checkpoints" / f"step-{point.step:06d}")
        for point in run.plan.evaluations
    ]
    absent = [str(job.checkpoint) for job in jobs if not job.checkpoint.exists()]
    if absent:
        raise StaleError(f"no checkpoint to evaluate: {', '.join(absent)}", hint="run `harness train` first")
    return evaluation.evaluate_checkpoints(
        run.recipe,
        run.run_dir,
        jobs,
        data=run.data,
        progress=run.progress,
        timed=stage(run.run_dir, "eval", "eval"),
    )


def finish(run: Prepared) -> Path:
    """Write the record and mirror it to MLflow."""
    path = write_record(
        build_record(
            run.recipe,
            run.plan.as_dict(),
            run.run_dir,
            data_fingerprint=run.data.fingerprint,
            weights_fingerprint=run.adapter.weights_fingerprint,
            reference=reference_facts(run),
            where=json.loads((run.run_dir / _PROVENANCE).read_text()),
        ),
        run.run_dir,
    )
    if run.recipe.track.mlflow:
        mirrored = track.mirror(run.recipe, run.run_dir, final=True)
        if mirrored.message:
            run.progress.say(mirrored.message)
    return path


def run(recipes: Sequence[Recipe], progress: Progress) -> str:
    """Every stage of every recipe, then the tables and figures of all results.

    Returns:
        The tables as Markdown.
    """
    for recipe in recipes:
        with alone(Path(recipe.paths.results) / "runs" / recipe.run_id):
            prepared = prepare(recipe, progress)
            train(prepared)
            evaluate(prepared)
            progress.say(f"record: {finish(prepared)}")
    places = list(dict.fromkeys(Path(recipe.paths.results) for recipe in recipes))
    for results in places:
        tables.build_tables(results)
        figures.build_figures(results)
    return "\n".join(tables.tables_markdown(results) for results in places)


def _tell_excluded(data: DataSet, progress: Progress) -> None:
    if not data.excluded:
        return
    named = ", ".join(f"{key} ({reason})" for key, reason in data.excluded[:3])
    more = f" and {len(data.excluded) - 3} more" if len(data.excluded) > 3 else ""
    progress.say(f"{len(data.excluded)} damaged samples are left out: {named}{more}")
