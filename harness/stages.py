"""The stages of a run, each skipped where its result is there and current: prepare, reference, train, evaluate,
finish. `harness run` is these five; a killed run goes on where it was.

Every stage is told what the ones before it made, and writes what it cost into the run's ledger.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

import regate
from harness import device, figures, provenance, tables, track
from harness import evaluate as evaluation
from harness.checkpoint import latest
from harness.data.collate import text_batches
from harness.data.sources import make_data, open_data
from harness.errors import StaleError
from harness.models import adapter_for
from harness.plan import Plan, make_plan, require
from harness.recipe import digest
from harness.record import build_record, write_record
from harness.rundir import alone, check_disk, pin, stage, write_json
from harness.targets import TargetIndex, index_targets
from harness.train import TrainJob
from harness.train import train as run_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter
    from harness.progress import Progress
    from harness.recipe import GateConfig, Recipe
    from harness.suite import Suite

_PROVENANCE: Final = "provenance.json"
_COST: Final = "cost.json"
"""Beside a reference store: what the pass took, for the runs that find it there."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose data and starting weights are there."""

    recipe: Recipe
    plan: Plan
    data: DataSet
    adapter: Adapter
    run_dir: Path
    progress: Progress

    @property
    def index(self) -> TargetIndex:
        folder = Path(self.recipe.paths.stores)
        candidates = self.recipe.gate.candidates if self.recipe.gate else "targets"
        return index_targets(self.data, self.adapter.processor(), candidates, folder, self.progress)


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


def reference(run: Prepared) -> regate.ReferenceStore | None:
    """The reference losses of Eq. 1 for every target of the data set; None where the gate reads none.

    The store's place is the hash of all that the losses depend on, so several runs share one.
    """
    gate = run.recipe.gate
    if gate is None or not gate.needs_reference:
        return None
    made_from = {
        "data": run.data.fingerprint,
        "processor": run.adapter.processor().fingerprint,
        "teacher": run.adapter.teacher_fingerprint,
        "candidates": gate.candidates,
        "placeholders": gate.reference.placeholders,
        "dtype": _teacher_dtype(gate),
    }
    path = Path(run.recipe.paths.stores) / f"reference-{digest(made_from)[:16]}"
    pin(run.run_dir, "reference", digest(made_from))
    if not (path / _COST).exists():
        began = time.perf_counter()
        with stage(run.run_dir, "reference", "reference"):
            _score(run, gate, path, made_from)
        write_json(path / _COST, {"schema": 1, "seconds": time.perf_counter() - began, "devices": 1})
    return regate.ReferenceStore.open(path, expect_fingerprint=made_from)


def _teacher_dtype(gate: GateConfig) -> str:
    """What the teacher's forward pass will really compute in, which is what the store is named by."""
    return gate.reference.dtype if device.computes_bfloat16() else "float32"


def _score(run: Prepared, gate: GateConfig, path: Path, made_from: dict[str, Any]) -> None:
    index = run.index
    writer = regate.ReferenceWriter.create(
        path,
        sample_ids=index.sample_ids.tolist(),
        num_targets=index.num_targets.tolist(),
        checksums=index.checksums.tolist(),
        fingerprint=made_from,
    )
    if made_from["dtype"] != gate.reference.dtype:
        run.progress.say(f"the teacher computes in {made_from['dtype']}: this device has no fast bfloat16")
    processor = run.adapter.processor()
    teacher = run.adapter.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
    done = writer.done_ids()
    # All batches, also those that a killed pass has done: which rows share a batch decides the last bits.
    batches = text_batches(run.data, processor, tokens_per_batch=gate.reference.tokens_per_batch)
    scored = len(done)
    with run.progress.task(f"reference losses {run.recipe.name}", len(index.sample_ids), start=scored) as advance:

        def count(samples: int) -> None:
            nonlocal scored
            scored += samples
            advance(scored)

        regate.score_reference(
            teacher,
            batches,
            writer,
            placeholder_id=processor.placeholder_id,
            placeholders=gate.reference.placeholders,
            dtype=made_from["dtype"],
            candidates=gate.candidates,
            progress=count,
        )


def _make_gate(run: Prepared, store: regate.ReferenceStore | None) -> regate.Gate | regate.DenseGate:
    """The recipe's gate, its running losses in the run's folder; called on every process."""
    gate = run.recipe.gate
    if gate is None:
        return regate.DenseGate()
    difficulty = None
    if gate.needs_difficulty:
        folder = run.run_dir / "difficulty"
        if latest(run.run_dir / "checkpoints") is not None:
            difficulty = regate.DifficultyStore.open(folder)
        else:
            state = PartialState()
            if state.is_main_process:
                # What a run observed before its first checkpoint is observed again.
                shutil.rmtree(folder, ignore_errors=True)
            state.wait_for_everyone()
            index = run.index
            difficulty = regate.DifficultyStore.for_gate(
                folder,
                gate,
                reference=store,
                sample_ids=index.sample_ids.tolist(),
                num_targets=index.num_targets.tolist(),
            )
    return regate.Gate(gate, store, difficulty, seed=run.recipe.seed)


def train_job(run: Prepared, store: regate.ReferenceStore | None) -> TrainJob:
    """What the training loop needs."""
    recipe = run.recipe
    return TrainJob(
        recipe=recipe,
        steps=run.plan.steps,
        evaluate_at=run.plan.evaluation_steps,
        adapter=run.adapter,
        data=run.data,
        make_gate=lambda: _make_gate(run, store),
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
            reference=_reference_facts(run),
            where=json.loads((run.run_dir / _PROVENANCE).read_text()),
        ),
        run.run_dir,
    )
    if run.recipe.track.mlflow:
        mirrored = track.mirror(run.recipe, run.run_dir, final=True)
        if mirrored.message:
            run.progress.say(mirrored.message)
    return path


def run(recipes: Sequence[Recipe], progress: Progress, suites: Mapping[str, Suite] | None = None) -> str:
    """Every stage of every recipe, then the tables and figures of all results.

    Args:
        suites: definitions of the suites that the runs belong to, by name, for the tables.

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


def _reference_facts(run: Prepared) -> dict[str, Any] | None:
    """What the record says of the reference losses, and what they cost, whichever run paid for them."""
    store = reference(run)
    if store is None:
        return None
    cost = json.loads((store.path / _COST).read_text())
    made_from = store.manifest["fingerprint"]
    return {
        "fingerprint": digest(made_from),
        "made_from": made_from,
        "targets": store.num_targets_total,
        "seconds": cost["seconds"],
        "devices": cost["devices"],
    }
