"""Evaluation of checkpoints: lmms-eval in child processes, judged here by counting.

lmms-eval takes five to ten seconds to import and a gigabyte of memory, exits with 0 after a failure and swallows
errors. So one child scores every checkpoint that has no current result, each result is on disk as soon as it is
there, and no result counts before `read_result` has counted its items. Where there are several GPUs, of this machine
or of several nodes, a child on each answers its share of the items first (`harness.evaluation.shares`); the answers
lie on disk one by one, and whoever scores finds them there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.benchmarks import BENCHMARKS, AnyBenchmark
from harness.common.errors import DataError, HarnessError, StaleError
from harness.common.files import check_kind, read_json, write_atomic
from harness.common.hashing import digest
from harness.evaluation import shares
from harness.evaluation.lmms.process import CHILD, run_child, visible_gpus
from harness.evaluation.task import LmmsEvalTask, build_tasks, task_of
from harness.records.evaluations import SCHEMA, read_item_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from harness.common.progress import Progress
    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.evaluation.shares import OtherNodes
    from harness.evaluation.task import EvalTask


QUESTIONS_SCHEMA: Final = 1
QUESTIONS_KIND: Final = "questions of an evaluation"


@dataclass(frozen=True, slots=True)
class Job:
    """A checkpoint to score.

    Attributes:
        step: optimizer steps behind it; 0 is the untrained start.
        fraction: the same as a part of the training, 0 to 1.
        checkpoint: directory that `Adapter.save` wrote, or a file or directory as published; None for a model of
            lmms-eval's without weights.
    """

    step: int
    fraction: float
    checkpoint: Path | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One result file and what it must be made of to count."""

    task: EvalTask
    job: Job
    identity: dict[str, Any]
    path: Path


def evaluate_checkpoints(
    recipe: Recipe | EvaluationRecipe,
    run_dir: Path,
    jobs: Sequence[Job],
    *,
    data: DataSet | None,
    progress: Progress,
    timed: AbstractContextManager[Any] | None = None,
    benchmarks: Mapping[str, AnyBenchmark] = BENCHMARKS,
    child: Sequence[str] = CHILD,
    nodes: OtherNodes | None = None,
) -> list[dict[str, Any]]:
    """Score the checkpoints on the recipe's benchmarks, in the order of `jobs` and benchmarks.

    Results lie in run_dir/eval/step-<step>/<benchmark>.json, the items and the answers beside them. A result that was
    made from the same checkpoint, questions, prompts and scoring is read, any other is made again; an answer that was
    given by the same checkpoint to the same question is not asked again. One process at a time may evaluate a run.

    Args:
        data: what this project's benchmarks ask about; None where nothing is trained.
        timed: held open while the child works, and not entered when every result is current.
        benchmarks: what the names in the recipe mean.
        child: the command that gets the job file and the number of the events' file descriptor.
        nodes: other nodes that answer their shares; None where there are none.

    Raises:
        RecipeError: an unknown benchmark, or one for other data.
        DataError: media files or questions are missing, or media cannot be read; they are named.
        HarnessError: a child failed, or its result does not hold what was asked; a part of its log is shown.
    """
    settings = recipe.evaluate
    tasks = build_tasks(
        settings.benchmarks,
        benchmarks,
        data=data,
        data_folder=recipe.paths.data,
        prompts=settings.prompts,
        limit=settings.limit,
    )
    for task in tasks:
        keep_questions(run_dir, task)
    digests = {job: checkpoint_digest(job.checkpoint) for job in jobs}  # once: it reads all of the weights
    all_wanted = [make_wanted(run_dir, job, task, digests[job]) for task in tasks for job in jobs]
    pending = [wanted for wanted in all_wanted if not _current(wanted, progress)]
    if pending:
        with timed or nullcontext():
            _evaluate(recipe, run_dir / "eval", pending, progress, child, nodes)
    results = {(wanted.job.step, wanted.task.name): read_result(wanted) for wanted in all_wanted}
    return [results[job.step, name] for job in jobs for name in settings.names]


def checkpoint_digest(directory: Path | None) -> str:
    """sha256 of model.safetensors, or of the checkpoint where it is one file; of the names and sha256 of all weights
    where there are several files, or where another file changes what they mean (a LoRA adapter's settings).

    Raises:
        HarnessError: the directory holds no weights.
    """
    if directory is None:
        return digest(None)
    if directory.is_file():
        with directory.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    kinds = ("*.safetensors", "*.bin", "*.pth")
    files = next((paths for kind in kinds if (paths := sorted(directory.glob(kind)))), [])
    if not files:
        raise HarnessError(f"{directory} holds no *.safetensors to evaluate", hint="train again or restore it")
    files += sorted(directory.glob("adapter_config.json"))
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes["model.safetensors"] if list(hashes) == ["model.safetensors"] else digest(hashes)


def make_wanted(run_dir: Path, job: Job, task: EvalTask, checkpoint: str) -> Wanted:
    """Where a result belongs and what it must be made of.

    Args:
        checkpoint: `checkpoint_digest` of the job's.
    """
    identity = {
        "schema": SCHEMA,
        "benchmark": task.name,
        "step": job.step,
        "fraction": job.fraction,
        "checkpoint": checkpoint,
        **task.identity(),
    }
    path = run_dir / "eval" / f"step-{job.step:06d}" / f"{task.name}.json"
    return Wanted(task, job, identity, path)


# --- the questions behind the items ------------------------------------------------------------------------


def questions_file(run_dir: Path, benchmark: str) -> Path:
    """Where the questions of a benchmark are kept for those who read its items."""
    return run_dir / "eval" / f"{benchmark}.questions.json.gz"


def keep_questions(run_dir: Path, task: EvalTask) -> None:
    """Write down what is asked: the items say which question they answer by its key alone."""
    text = json.dumps({"schema": QUESTIONS_SCHEMA, "kind": QUESTIONS_KIND, "task": task.job()}, ensure_ascii=False)
    path, content = questions_file(run_dir, task.name), gzip.compress(text.encode(), mtime=0)
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)


def kept_task(run_dir: Path, benchmark: str) -> EvalTask | None:
    """What `keep_questions` wrote down; None where it is not kept.

    Raises:
        DataError: the file is damaged, or of another schema.
    """
    path = questions_file(run_dir, benchmark)
    check_kind(path)
    if not path.exists():
        return None
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        if content["schema"] != QUESTIONS_SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {QUESTIONS_SCHEMA}")
        return task_of(content["task"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error})", hint="evaluate again: harness eval") from error


def ask_again(
    recipe: Recipe | EvaluationRecipe,
    folder: Path,
    job: Job,
    task: EvalTask,
    progress: Progress,
    child: Sequence[str] = CHILD,
) -> list[dict[str, Any]]:
    """The items of a task, asked anew by a checkpoint; the result is written below `folder`, not to the run."""
    wanted = make_wanted(folder, job, task, checkpoint_digest(job.checkpoint))
    _evaluate(recipe, folder / "eval", [wanted], progress, child)
    result = read_result(wanted)
    lines = read_item_bytes(wanted.path.parent / result["items"])
    return [json.loads(line) for line in lines.splitlines()]


# --- judging a result ------------------------------------------------------------------------------------


def _current(wanted: Wanted, progress: Progress) -> bool:
    if not wanted.path.exists():
        return False
    try:
        read_result(wanted)
    except HarnessError as error:
        progress.say(f"evaluating step {wanted.job.step} again: {error}")
        return False
    return True


def read_result(wanted: Wanted) -> dict[str, Any]:
    """The result, its items counted.

    Raises:
        StaleError: it was made from another checkpoint, other questions, prompts or scoring.
        HarnessError: it is absent, damaged or incomplete, or an answer is empty; the item is named.
    """
    path = wanted.path
    if not path.exists():
        raise HarnessError(f"{path}: not written by the evaluation")
    try:
        result = read_json(path, "an evaluation")
        lines = read_item_bytes(path.parent / result["items"])
        items = [json.loads(line) for line in lines.splitlines()]
    except FileNotFoundError as error:
        raise HarnessError(f"{error.filename}: not written by the evaluation") from None
    except DataError as error:
        raise HarnessError(f"{path}: damaged ({str(error).partition(': ')[2]})") from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise HarnessError(f"{path}: damaged ({error})") from None
    if result.get("schema") != SCHEMA:
        raise StaleError(f"{path}: made from another schema ({result.get('schema')}, now {SCHEMA})")
    for name, value in wanted.identity.items():
        if result.get(name) != value:
            raise StaleError(f"{path}: made from another {name} ({result.get(name)}, now {value})")
    if hashlib.sha256(lines).hexdigest() != result.get("items_sha256"):
        raise HarnessError(f"{path}: its items file is not the one it was made from")
    try:
        summary = wanted.task.summary(items)
    except HarnessError as error:
        raise HarnessError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise HarnessError(f"{path}: its items are damaged ({type(error).__name__}: {error})") from None
    for name, value in summary.items():
        if result.get(name) != value:
            raise HarnessError(f"{path}: {name} are {result.get(name)}, its items give {value}")
    return result


# --- asking the children ---------------------------------------------------------------------------------


def _evaluate(
    recipe: Recipe | EvaluationRecipe,
    folder: Path,
    pending: Sequence[Wanted],
    progress: Progress,
    child: Sequence[str],
    nodes: OtherNodes | None = None,
) -> None:
    """Children for everything that is pending; each result is judged as soon as it is there."""
    ordered = sorted(pending, key=lambda wanted: wanted.job.step)
    gpus = visible_gpus(recipe.devices.processes)
    threads = recipe.devices.threads
    job = _job(recipe, ordered, (0, 1), threads)
    if len(gpus) > 1 or nodes is not None:
        with ExitStack() as stack:
            others: list[Iterator[dict[str, Any]]] = []
            if nodes is not None:
                others = stack.enter_context(nodes.answer(folder, job, len(gpus), threads))
            own_shares = shares.of_node(job, gpus, 0, 1 if nodes is None else nodes.nodes, threads)
            events = stack.enter_context(closing(shares.answer(child, folder, own_shares, others)))
            _follow(recipe, ordered, events, progress)
    with run_child(child, folder, job, gpu=gpus[0]) as alone:
        _follow(recipe, ordered, ((0, event) for event in alone), progress)


def _follow(
    recipe: Recipe | EvaluationRecipe,
    ordered: Sequence[Wanted],
    events: Iterator[tuple[int, dict[str, Any]]],
    progress: Progress,
) -> None:
    """Show the children's progress; judge each result that is done."""
    total = sum(wanted.task.expected for wanted in ordered)
    done: dict[tuple[int, int], int] = {}
    with progress.task(f"evaluate {recipe.name}", total) as advance:
        for process, event in events:
            if event["event"] == "say":
                progress.say(event["message"])
                continue
            if not 0 <= event["result"] < len(ordered):
                raise HarnessError(f"the evaluation reports a result that was not asked for: {event['result']}")
            wanted = ordered[event["result"]]
            done[process, event["result"]] = event["done"]
            if event["event"] == "done":
                progress.say(_line(recipe, wanted, read_result(wanted)))
            if event["event"] == "done" or sum(done.values()) < total:
                advance(sum(done.values()), f"step {wanted.job.step} {wanted.task.name}")


def _job(
    recipe: Recipe | EvaluationRecipe, ordered: Sequence[Wanted], share: tuple[int, int], threads: int | None
) -> dict[str, Any]:
    """The job file: what is asked, and the results to write, those of a checkpoint together."""
    tasks = {wanted.task.name: wanted.task for wanted in ordered}
    return {
        "schema": SCHEMA,
        "recipe": recipe.model_dump(mode="json"),
        "threads": threads,
        "share": list(share),
        "tasks": [{"name": name, "task": task.job()} for name, task in tasks.items()],
        "results": [
            {
                "task": wanted.task.name,
                "checkpoint": str((wanted.job.checkpoint or wanted.path.parent).absolute()),
                "data": wanted.task.data.digest if isinstance(wanted.task, LmmsEvalTask) else None,
                "path": str(wanted.path.absolute()),
                "identity": wanted.identity,
            }
            for wanted in ordered
        ],
    }


_ODD: Final = ("empty", "unparsable", "guessed", "beyond_option")
"""Counts of answers that are shown where there are any."""


def _line(recipe: Recipe | EvaluationRecipe, wanted: Wanted, result: Mapping[str, Any]) -> str:
    mean, counts = result["mean"], result["counts"]
    error = "" if mean["stderr"] is None else f" +- {mean['stderr']:.3f}"
    held = ", weights in bfloat16" if result.get("weights") == "bfloat16" else ""
    odd = "".join(f", {counts[name]} {name}" for name in _ODD if counts.get(name))
    return (
        f"{recipe.name} step {wanted.job.step}: {wanted.task.name} {mean['value']:.3f}{error} "
        f"({counts['scored']} questions{odd}{held}, {result['seconds']:.1f} s)"
    )
