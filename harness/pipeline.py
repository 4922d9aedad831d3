"""The stages of a run in their order: prepare, reference, train, evaluate, finish. `harness run` is these five.

A stage is skipped where its result is there and current, so a killed run goes on where it was. Each gets what the
ones before it made, and writes what it cost into the run's ledger.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.analysis.runs import load_runs
from harness.common.errors import HarnessError, StaleError
from harness.common.file_digests import content_digest
from harness.common.files import check_kinds_below, read_json, write_atomic, write_json
from harness.common.hashing import digest
from harness.common.numbers import gigabytes
from harness.data.conversion import RefusedSamples, remember
from harness.data.sources import make_data
from harness.evaluation import evaluate as evaluation
from harness.evaluation.lmms.process import visible_gpus
from harness.models import MODELS, adapter_for
from harness.models.checkpoint_files import weight_files
from harness.models.device import check_evaluated_dtype
from harness.models.other_vlm import folder_of_vlm, name_of_vlm
from harness.plan import Planner, require
from harness.plan.disk import disk_needs
from harness.plan.memory import tower_bytes
from harness.records import provenance, tracking
from harness.records.ledger import BESIDE, Ledger, finished_step, read_events
from harness.records.record import RECORD_FILE, build_record, write_record
from harness.records.run_folder import (
    OWN_FILES,
    RunLocked,
    check_disk,
    check_ledger_kept,
    existing_folder,
    has_started,
    lock_evaluation,
    lock_run,
    pin,
    run_dir_of,
    shown_recipe,
    stage,
)
from harness.report import tables
from harness.report.closing import closing, endings, next_command
from harness.report.figures import build as figures
from harness.report.pages.build import write_report
from harness.training import checkpoint
from harness.training.attachment import check_attachable, check_attention
from harness.training.checkpoint import latest
from harness.training.kept_models import check_before_resuming, check_model
from harness.training.launching import launch, processes
from harness.training.run import Prepared, join, use_settings
from harness.training.stores.gate_stores import (
    compute_reference_losses,
    create_reference,
    gather_reference,
    open_reference,
    reference_facts,
    reference_place,
    scored_samples,
)
from harness.training.stores.sample_lengths import lengths_path, needs_lengths, sample_lengths
from harness.training.stores.tower_cache import keep_tower_features, lacks_tower_features
from regate.selection_file import SelectionFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import regate
    from harness.analysis.runs import Run
    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.config.suite import Suite
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter
    from harness.plan.disk import Need
    from harness.training.launching.nodes import Coordinator

_PROVENANCE: Final = "provenance.json"
_TRAIN_FIRST: Final = "run `harness train` first"
_TRAINS: Final = "another process trains this run: give the command again later"


def prepare(
    recipe: Recipe, progress: Progress, planner: Planner | None = None, others: Coordinator | None = None
) -> Prepared:
    """Make the data and weights that can be made here; name every one that the user must supply.

    Args:
        planner: holds what the command has planned and opened before; None for a command that only prepares.
        others: the other nodes that will work on the run; None where there are none.

    Raises:
        EnvironmentProblem: weights are missing, a disk has less than the run will write, or the nodes do not see the
            same folders.
        DataError: data are missing or damaged, or the ledger of a training that has begun is gone.
        StaleError: the run was started with other data or weights.
    """
    use_settings(recipe)
    check_ledger_kept(run_dir_of(recipe))
    if finished_step(run_dir_of(recipe) / "ledger.jsonl") is None:
        # A batch that cannot be split is refused before anything is made.
        processes.count(recipe, 1 if others is None else others.nodes)
        check_attention(recipe)
        check_evaluated_dtype(recipe.evaluate.dtype)
    planner = planner or Planner()
    plan = planner.plan(recipe)
    require(plan)
    for folder in (
        Path(recipe.paths.results),
        Path(recipe.paths.data),
        Path(recipe.paths.weights),
        Path(recipe.paths.stores),
    ):
        check_disk(folder)
    check_kinds_below(Path(recipe.paths.stores))
    if others is not None:
        others.check_shared([Path(recipe.paths.results), Path(recipe.paths.stores)])
    run_dir = run_dir_of(recipe)
    run_dir.mkdir(parents=True, exist_ok=True)
    if plan.to_make:
        with stage(run_dir, "prepare", "prepare"):
            make_data(recipe.data, recipe.paths, recipe.seed, progress)
    data, adapter = _prepare_model(recipe, planner, run_dir, progress)
    if finished_step(run_dir / "ledger.jsonl") is None:
        check_attachable(adapter, recipe)
    _report_excluded(data, progress)
    write_json(run_dir / "recipe.json", shown_recipe(recipe), sealed=True)
    _keep_own_files(recipe, run_dir)
    pin(run_dir, "data", data.fingerprint)
    pin(run_dir, "weights", adapter.weights_fingerprint)
    if (content := _content(recipe, adapter.weight_files(), progress)) is not None:
        pin(run_dir, "content of the weights", content)
    run = Prepared(recipe, planner.plan(recipe), data, adapter, run_dir, progress, others)
    _check_room(run)
    _keep_tower(run)
    _count_lengths(run)
    return run


def _content(recipe: Recipe, files: Sequence[Path], progress: Progress) -> str | None:
    """Digest of every byte of files of weights: their fingerprint is of beginnings and ends. None of no files."""
    memory = Path(recipe.paths.stores) / "weights-sha256.json"
    return content_digest(files, memory, say=progress.say) if files else None


def _check_room(run: Prepared) -> None:
    """Ask for the disk that the run has yet to fill, folders on the same disk together.

    Raises:
        EnvironmentProblem: a disk has less.
    """
    place = reference_place(run)
    uncomputed = place is not None and not place.complete
    footprint = MODELS[run.recipe.model.adapter].footprint(run.recipe)
    needs = disk_needs(run.recipe, run.plan, footprint, run.data, reference_store=uncomputed)
    by_disk: dict[int, list[Need]] = {}
    for need in needs:
        by_disk.setdefault(existing_folder(need.folder).stat().st_dev, []).append(need)
    for together in by_disk.values():
        words = ", ".join(f"{gigabytes(need.size)} for {need.what}" for need in together if need.size)
        check_disk(together[0].folder, sum(need.size for need in together), words)


def _keep_tower(run: Prepared) -> None:
    """What the training reads in place of frames, where that is kept."""
    trained = finished_step(run.run_dir / "ledger.jsonl") is not None
    if trained or not lacks_tower_features(run):
        return
    size = tower_bytes(MODELS[run.recipe.model.adapter].footprint(run.recipe), run.plan.samples)
    assert size is not None
    check_disk(Path(run.recipe.paths.stores), size, f"{gigabytes(size)} for the tower's features")
    with stage(run.run_dir, "tower features", "prepare"):
        keep_tower_features(run)


def _count_lengths(run: Prepared) -> None:
    """What the training cuts and deals its micro-batches by, where it does."""
    recipe, nodes = run.recipe, run.nodes
    if finished_step(run.run_dir / "ledger.jsonl") is not None:
        return
    processor, folder = run.adapter.processor(), Path(recipe.paths.stores)
    wanted = needs_lengths(recipe, processes.count(recipe, nodes) * nodes)
    if wanted and not lengths_path(folder, run.data, processor).exists():
        with stage(run.run_dir, "lengths", "prepare"):
            sample_lengths(run.data, processor, folder, run.progress)


def _prepare_model(recipe: Recipe, planner: Planner, run_dir: Path, progress: Progress) -> tuple[DataSet, Adapter]:
    """Make or check the model's files together with the data. Samples that the model refuses are left out where
    data.damaged says so, and remembered in any case.

    Raises:
        RefusedSamples: data.damaged says otherwise.
    """
    while True:
        data = planner.open_data(recipe, progress)
        adapter = adapter_for(recipe, data)
        if not adapter.missing() and not adapter.needs_check():
            return data, adapter
        try:
            with stage(run_dir, "prepare", "prepare"):
                adapter.prepare(progress)
            return data, adapter
        except RefusedSamples as error:
            remember(recipe, data, error.refusals)
            if recipe.data.damaged == "refuse":
                raise


def reference(run: Prepared) -> regate.ReferenceStore | None:
    """The reference losses of Eq. 1 for every target of the data set, in as many processes of each node as the recipe
    says; None where the gate reads none."""
    place = reference_place(run)
    if place is None:
        return None
    pin(run.run_dir, "reference", digest(place.made_from))
    other = [] if name_of_vlm(run.recipe) is None else weight_files(folder_of_vlm(run.recipe))
    teacher = _content(run.recipe, [*run.adapter.teacher_files(), *other], run.progress)
    if place.complete:
        place.check_teacher(teacher)
    else:
        began = time.perf_counter()
        each = processes.count(run.recipe, run.nodes)
        devices = each * run.nodes
        gather_reference(run)  # what several nodes have left, of which there may be fewer now
        with stage(run.run_dir, "reference", "reference", devices=devices):
            if devices == 1 and not run.recipe.devices.restarts:
                compute_reference_losses(run)
            else:
                create_reference(run)  # by one process, so that the others find it
                launch.run_workers(run, "reference", each, lambda: scored_samples(run))
                gather_reference(run)
                create_reference(run).finish()
        place.complete_with(seconds=time.perf_counter() - began, devices=devices, teacher=teacher)
    return open_reference(run)


def train(run: Prepared) -> None:
    """Fine-tune, with the reference losses before it, in as many processes as the recipe says. What it is trained on
    and with is written down at its start."""
    _write_provenance(run)
    store = reference(run)
    check_before_resuming(run.run_dir, run.plan.evaluation_steps, latest(run.run_dir / "checkpoints"))
    launch.train(run, store)


def _write_provenance(run: Prepared) -> None:
    """What the first attempt ran on, in a file and in the ledger, which gives the file back where it is gone; and in
    the ledger what another attempt ran on."""
    path, ledger_path = run.run_dir / _PROVENANCE, run.run_dir / "ledger.jsonl"
    here, events = provenance.collect(threads=torch.get_num_threads()), read_events(ledger_path)
    if run.others is not None:
        here["hardware"]["other_nodes"] = run.others.hardware
    if not path.exists():
        first = provenance.first(events)
        write_json(path, here if first is None else first, sealed=True)
        if first is None:
            with Ledger(ledger_path) as ledger:
                ledger.append(provenance.EVENT, where=here)
            return
    before = provenance.last(_read_provenance(path), events)
    if before != here and finished_step(ledger_path) is None:
        with Ledger(ledger_path) as ledger:
            ledger.append(provenance.EVENT, where=here)


def _read_provenance(path: Path) -> dict[str, Any]:
    shape = {"packages": dict, "python": str, "platform": dict, "git": dict | None, "hardware": dict}
    remedy = "delete it and give the command again: it is written anew from the run's ledger"
    content = read_json(path, "what a run ran on", shape=shape, hint=remedy)
    return {key: content[key] for key in shape}


def evaluate(run: Prepared, *, beside: bool = False) -> list[dict[str, Any]]:
    """Score the kept checkpoints; its time is a clock of its own.

    Args:
        beside: another process trains the run: what it has kept so far is scored, and the time is written down beside
            its ledger.
    """
    folders = {point: run.run_dir / "checkpoints" / f"step-{point.step:06d}" for point in run.plan.evaluations}
    jobs = [evaluation.Job(point.step, point.fraction, folder) for point, folder in folders.items()]
    absent = [str(folder) for folder in folders.values() if not folder.exists()]
    if absent and (not beside or len(absent) == len(jobs)):
        raise StaleError(f"no checkpoint to evaluate: {', '.join(absent)}", hint=_TRAINS if beside else _TRAIN_FIRST)
    if absent:
        run.progress.say(f"not kept yet: {', '.join(absent)}; {_TRAINS}")
        jobs = [job for job in jobs if str(job.checkpoint) not in absent]
    for folder in folders.values():
        if str(folder) not in absent:
            check_model(folder)
    devices = len(visible_gpus(run.recipe.devices.processes)) * run.nodes
    ledger_file = BESIDE if beside else "ledger.jsonl"
    with lock_evaluation(run.run_dir, run.progress.say):
        return evaluation.evaluate_checkpoints(
            run.recipe,
            run.run_dir,
            jobs,
            data=run.data,
            progress=run.progress,
            timed=stage(run.run_dir, "eval", "eval", devices=devices, ledger_file=ledger_file),
            nodes=run.others,
        )


def finish(run: Prepared) -> Path:
    """Write the record, and remove what the training could resume from."""
    path = write_record(
        build_record(
            run.recipe,
            run.plan.as_dict(),
            run.run_dir,
            data_fingerprint=run.data.fingerprint,
            weights_fingerprint=run.adapter.weights_fingerprint,
            reference=reference_facts(run),
            where=_read_provenance(run.run_dir / _PROVENANCE),
        ),
        run.run_dir,
    )
    if not run.recipe.devices.keep_resume:
        checkpoint.remove_all(run.run_dir / "checkpoints")
    return path


class _FinalMirrors:
    """The final mirrors of the runs of one command: each goes on beside the next run and the tables, and all are
    waited for at the command's end. A command that fails waits for none: `harness sync` sends what is lacking.

    Args:
        child: does them, beside the mirrors of runs that go on.
    """

    def __init__(self, child: tracking.MirrorChild) -> None:
        self._reports: queue.SimpleQueue[tracking.MirrorReport] = queue.SimpleQueue()
        self._child, self._started = child, 0

    def start(self, run: Prepared) -> None:
        if not run.recipe.track.mlflow:
            return
        self._started += 1

        def send() -> None:
            report = tracking.mirror(run.recipe, run.run_dir, final=True, child=self._child)  # which never raises
            self._reports.put(report)

        threading.Thread(target=send, daemon=True, name=f"mirror-{run.recipe.run_id}").start()

    def wait(self, progress: Progress) -> None:
        for _ in range(self._started):
            report = self._reports.get()
            if report.message:
                progress.say(report.message)


def run_stage(
    recipe: Recipe, name: str | None, progress: Progress, planner: Planner, others: Coordinator | None = None
) -> Path:
    """Prepare a run and do one of its stages (None: no more than that), alone in its folder. Models that a training
    of another process has kept so far are evaluated beside it.

    Args:
        others: other nodes that work on it.

    Returns:
        The run's folder.
    """
    run_dir = run_dir_of(recipe)
    try:
        with lock_run(run_dir):
            prepared = prepare(recipe, progress, planner, others)
            if name is not None:
                _STAGES[name](prepared)
    except RunLocked:
        if name != "evaluate" or others is not None or not has_started(run_dir):
            raise
        evaluate(join(recipe, progress), beside=True)
    return run_dir


def evaluate_more(
    recipe: Recipe, asked: Recipe, progress: Progress, others: Coordinator | None = None
) -> Path:
    """Score the models that a finished training has kept on what else is asked of them. The training and its id stay
    what they are; its record is written anew, with what is scored now beside what its recipe names.

    Args:
        recipe: of the run.
        asked: the same with another `evaluate`.
        others: other nodes that answer.

    Returns:
        The run's folder.

    Raises:
        StaleError: the training has not come to its end, or its models are not kept.
    """
    run_dir = run_dir_of(recipe)
    if finished_step(run_dir / "ledger.jsonl") is None:
        raise StaleError(f"{run_dir}: the training did not come to its end", hint="finish it first: harness run")
    require(Planner().plan(asked))
    with lock_run(run_dir):
        _keep_own_files(asked, run_dir)
        prepared = replace(join(recipe, progress), others=others)
        evaluate(replace(prepared, recipe=asked))
        if (run_dir / RECORD_FILE).is_file():
            progress.say(f"record: {finish(prepared)}")
    return run_dir


_STAGES: Final[dict[str, Callable[[Prepared], Any]]] = {"reference": reference, "train": train, "evaluate": evaluate}


def run(
    recipes: Sequence[Recipe],
    progress: Progress,
    suites: Mapping[str, Suite] | None = None,
    *,
    planner: Planner | None = None,
    others: Coordinator | None = None,
) -> list[tuple[tuple[str, str], ...]]:
    """Every stage of every recipe, then the tables and figures of all results and the reports of these runs.

    Args:
        others: other nodes that work on them.
        suites: definitions of the suites that the runs belong to, by name, for the tables.
        planner: holds what the command has planned and opened before.

    Returns:
        What the runs showed, a closing for each suite and pair: see `harness.report.closing`.
    """
    planner = planner or Planner()
    with tracking.MirrorChild() as child:
        mirrors = _FinalMirrors(child)
        for recipe in recipes:
            with lock_run(run_dir_of(recipe)):
                prepared = replace(prepare(recipe, progress, planner, others), mirrors=child)
                train(prepared)
                evaluate(prepared)
                progress.say(f"record: {finish(prepared)}")
            mirrors.start(prepared)
        closings = _conclude(recipes, progress, suites)
        mirrors.wait(progress)
    return closings


def _conclude(
    recipes: Sequence[Recipe], progress: Progress, suites: Mapping[str, Suite] | None
) -> list[tuple[tuple[str, str], ...]]:
    """Tables and figures of all results, and the reports of these runs."""
    closings = []
    for results in dict.fromkeys(Path(recipe.paths.results) for recipe in recipes):
        # A damaged file of another run is no reason to end this one's command. Records and items are read once.
        finished = load_runs(results, lambda error: _report_left_out(error, progress))
        tables.write_tables(tables.make_tables(results, suites, finished=finished), results)
        figures.build_figures(results, definitions=suites, finished=finished)
        closings += _close(results, finished, [recipe.run_id for recipe in recipes], suites or {})
    return closings


def _close(
    results: Path, finished: Sequence[Run], run_ids: Sequence[str], suites: Mapping[str, Suite]
) -> list[tuple[tuple[str, str], ...]]:
    """Write the report of each suite and pair of these runs, and say what they showed. What is damaged was named with
    the tables."""
    answer = []
    for ending in endings(finished, run_ids, suites):
        report = write_report(results, ending.runs, suites)
        command = next_command(ending, results)
        answer.append(closing(ending, suites, report=report, results=results, next_command=command))
    return answer


def _keep_own_files(recipe: Recipe, run_dir: Path) -> None:
    """A copy of what the recipe names of the user's own: its hash alone would tell nobody what it was."""
    selection = None if recipe.gate is None else recipe.gate.selection
    rules = [selection.file] if isinstance(selection, SelectionFile) else []
    for source in map(Path, [*rules, *(entry.file for entry in recipe.evaluate.files)]):
        write_atomic(run_dir / OWN_FILES / source.name, source.read_bytes())


def _report_left_out(error: HarnessError, progress: Progress) -> None:
    progress.say(f"WARNING: left out of tables and figures: {error}" + (f"\n  {error.hint}" if error.hint else ""))


def _report_excluded(data: DataSet, progress: Progress) -> None:
    for note in data.notes:
        progress.say(note)
    if not data.excluded:
        return
    first = ", ".join(f"{key} ({reason})" for key, reason in data.excluded[:3])
    more = f" and {len(data.excluded) - 3} more" if len(data.excluded) > 3 else ""
    progress.say(f"{len(data.excluded)} damaged samples are left out: {first}{more}")
