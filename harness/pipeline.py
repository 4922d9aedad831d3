"""The stages of a run, each skipped where its result is there and current: prepare, reference, train, evaluate,
finish. `harness run` is these five; a killed run goes on where it was.

Every stage is told what the ones before it made, and writes what it cost into the run's ledger.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.common.errors import RecipeError, StaleError
from harness.common.files import write_json
from harness.common.progress import Progress
from harness.data.sources import make_data, open_data
from harness.evaluation import evaluate as evaluation
from harness.models import adapter_for
from harness.plan import make_plan, require
from harness.records import provenance
from harness.records import tracking as track
from harness.records.ledger import finished_step
from harness.records.record import build_record, write_record
from harness.records.run_folder import alone, check_disk, pin, stage
from harness.report import tables
from harness.report.figures import build as figures
from harness.training import launch, processes
from harness.training.gate_stores import open_reference, reference, reference_facts
from harness.training.loop import train as run_training
from harness.training.prepared import Prepared
from harness.training.run import join, run_dir_of, train_here, train_job, use_settings
from regate import process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.config.recipe import Recipe
    from harness.config.suite import Suite
    from harness.data.sources import DataSet

_PROVENANCE: Final = "provenance.json"


def prepare(recipe: Recipe, progress: Progress) -> Prepared:
    """Make the data and weights that can be made here; name every one that must be brought.

    Raises:
        EnvironmentProblem: weights are missing, or the disk is nearly full.
        DataError: data are missing or damaged.
        StaleError: the run was started with other data or weights.
    """
    use_settings(recipe)
    if finished_step(run_dir_of(recipe) / "ledger.jsonl") is None and not processes.under_torchrun():
        processes.count(recipe)  # what cannot be split is told before anything is made
    plan = make_plan(recipe)
    require(plan)
    for folder in (
        Path(recipe.paths.results),
        Path(recipe.paths.data),
        Path(recipe.paths.weights),
        Path(recipe.paths.stores),
    ):
        check_disk(folder)
    run_dir = run_dir_of(recipe)
    run_dir.mkdir(parents=True, exist_ok=True)
    if plan.to_make:
        with stage(run_dir, "prepare", "prepare"):
            make_data(recipe.data, recipe.paths, recipe.seed, progress)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    _tell_excluded(data, progress)
    adapter = adapter_for(recipe, data)
    if adapter.missing() or adapter.needs_check():
        with stage(run_dir, "prepare", "prepare"):
            adapter.prepare(progress)
    write_json(run_dir / "recipe.json", recipe.model_dump(mode="json"))
    pin(run_dir, "data", data.fingerprint)
    pin(run_dir, "weights", adapter.weights_fingerprint)
    return Prepared(recipe, make_plan(recipe), data, adapter, run_dir, progress)


def train(run: Prepared) -> None:
    """Fine-tune, with the reference losses before it, in as many processes as the recipe says. What it was trained
    on and with is noted at its start."""
    _note_provenance(run)
    job = train_job(run, reference(run))
    count = processes.count(run.recipe)
    if count == 1 or job.finished:
        run_training(job)
        return
    _count_targets(run)
    launch.run_workers(run.recipe, run.run_dir, "train", count)


def _count_targets(run: Prepared) -> None:
    """Made by one process, so that several find it."""
    gate = run.recipe.gate
    if gate is not None and gate.needs_difficulty:
        _ = run.index


def _note_provenance(run: Prepared) -> None:
    where = run.run_dir / _PROVENANCE
    if not where.exists():
        write_json(where, provenance.collect(threads=torch.get_num_threads()))


def evaluate(run: Prepared) -> list[dict[str, Any]]:
    """Score the kept checkpoints; its time is a clock of its own."""
    places = {point: run.run_dir / "checkpoints" / f"step-{point.step:06d}" for point in run.plan.evaluations}
    jobs = [evaluation.Job(point.step, point.fraction, place) for point, place in places.items()]
    absent = [str(place) for place in places.values() if not place.exists()]
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


def do(recipe: Recipe, name: str | None, progress: Progress) -> Path | None:
    """Prepare a run and do one of its stages, alone in its folder.

    Returns:
        The run's folder; None on all but the main process of those that torchrun started.
    """
    if processes.under_torchrun():
        return _train_together(recipe, name, progress)
    with alone(run_dir_of(recipe)):
        prepared = prepare(recipe, progress)
        if name is not None:
            _VERBS[name](prepared)
    return prepared.run_dir


_VERBS: Final[dict[str, Callable[[Prepared], Any]]] = {"reference": reference, "train": train, "evaluate": evaluate}


def _train_together(recipe: Recipe, name: str | None, progress: Progress) -> Path | None:
    """The training stage, on every process that torchrun started; the main one prepares, and holds the lock."""
    if name != "train":
        raise _alone_only()
    processes.meet()
    main = process.rank() == 0
    processes.check_split(recipe, process.world())
    with ExitStack() as stack:
        if main:
            stack.enter_context(alone(run_dir_of(recipe)))
            prepared = prepare(recipe, progress)
            _note_provenance(prepared)
            open_reference(prepared)
            _count_targets(prepared)
        process.barrier()
        train_here(prepared if main else join(recipe, Progress(quiet=True)))
        processes.part()
    return prepared.run_dir if main else None


def _alone_only() -> RecipeError:
    return RecipeError(
        "torchrun started this command in several processes, and only `harness train` works so",
        hint="start the same command without torchrun before it (reference) and after it (run); see docs/devices.md",
    )


def run(recipes: Sequence[Recipe], progress: Progress, suites: Mapping[str, Suite] | None = None) -> str:
    """Every stage of every recipe, then the tables and figures of all results.

    Args:
        suites: definitions of the suites that the runs belong to, by name, for the tables.

    Returns:
        The tables as Markdown.
    """
    if processes.under_torchrun():
        raise _alone_only()
    for recipe in recipes:
        with alone(run_dir_of(recipe)):
            prepared = prepare(recipe, progress)
            train(prepared)
            evaluate(prepared)
            progress.say(f"record: {finish(prepared)}")
    places = list(dict.fromkeys(Path(recipe.paths.results) for recipe in recipes))
    shown = []
    for results in places:
        made = tables.make_tables(results, suites)
        tables.write_tables(made, results)
        figures.build_figures(results)
        shown.append(tables.printed(made))
    return "\n".join(shown)


def _tell_excluded(data: DataSet, progress: Progress) -> None:
    if not data.excluded:
        return
    named = ", ".join(f"{key} ({reason})" for key, reason in data.excluded[:3])
    more = f" and {len(data.excluded) - 3} more" if len(data.excluded) > 3 else ""
    progress.say(f"{len(data.excluded)} damaged samples are left out: {named}{more}")
