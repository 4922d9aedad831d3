"""Evaluation of a run's checkpoints: lmms-eval in one child process, judged here by counting.

lmms-eval takes five to ten seconds to import and a gigabyte of memory, exits with 0 after a failure and swallows
errors. So one child scores every checkpoint that has no current result, each result is on disk as soon as it is
there, and no result counts before `read_result` has counted its items.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.benchmarks import BENCHMARKS, AnyBenchmark, Benchmark, find
from harness.errors import DataError, HarnessError, RecipeError, StaleError
from harness.lmms_plugin.process import CHILD, run_child
from harness.questions import expected_prompt_hash, question_record, questions_hash, select, summarise
from harness.recipe import digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from harness.data.sources import DataSet
    from harness.progress import Progress
    from harness.questions import Tasks
    from harness.recipe import Recipe

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Job:
    """A checkpoint to score.

    Attributes:
        step: optimizer steps behind it; 0 is the untrained start.
        fraction: the same as a part of the training, 0 to 1.
        checkpoint: directory that `Adapter.save` wrote.
    """

    step: int
    fraction: float
    checkpoint: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """One result file and what it must be made of to count."""

    benchmark: Benchmark
    tasks: Tasks
    job: Job
    identity: dict[str, Any]
    path: Path


def evaluate_checkpoints(
    recipe: Recipe,
    run_dir: Path,
    jobs: Sequence[Job],
    *,
    data: DataSet,
    progress: Progress,
    timed: AbstractContextManager[Any] | None = None,
    benchmarks: Mapping[str, AnyBenchmark] = BENCHMARKS,
    child: Sequence[str] = CHILD,
) -> list[dict[str, Any]]:
    """Score the checkpoints on the recipe's benchmarks, in the order of `jobs` and benchmarks.

    Results lie in run_dir/eval/step-<step>/<benchmark>.json, the items beside them. A result that was made from
    the same checkpoint, questions, prompts and scoring is read, any other is made again. One process at a time may
    evaluate a run.

    Args:
        timed: held open while the child works, and not entered when every result is there.
        benchmarks: what the names in the recipe mean.
        child: the command that gets the job file and the number of the events' file descriptor.

    Raises:
        RecipeError: an unknown benchmark, or one for other data.
        DataError: media files or questions are missing, or media cannot be read; they are named.
        HarnessError: the child failed, or its result does not hold what was asked; a part of its log is shown.
    """
    wanted = [
        make_wanted(run_dir, job, benchmark, tasks)
        for benchmark, tasks in _asked(recipe, data, benchmarks)
        for job in jobs
    ]
    pending = [one for one in wanted if not _current(one, progress)]
    if pending:
        with timed or nullcontext():
            _evaluate(recipe, run_dir / "eval", pending, progress, child)
    results = {(one.job.step, one.benchmark.name): read_result(one) for one in wanted}
    return [results[job.step, name] for job in jobs for name in recipe.evaluate.benchmarks]


def checkpoint_digest(directory: Path) -> str:
    """sha256 of model.safetensors; of the names and sha256 of all weights where there are several files.

    Raises:
        HarnessError: the directory holds no weights.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise HarnessError(f"{directory} holds no *.safetensors to evaluate", hint="train again or restore it")
    hashes = {}
    for path in files:
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes["model.safetensors"] if list(hashes) == ["model.safetensors"] else digest(hashes)


def _asked(recipe: Recipe, data: DataSet, known: Mapping[str, AnyBenchmark]) -> list[tuple[Benchmark, Tasks]]:
    """The recipe's benchmarks and their questions, whose media are all there."""
    asked = []
    for name in recipe.evaluate.benchmarks:
        benchmark = find(name, known)
        if not isinstance(benchmark, Benchmark):
            raise RecipeError(f"evaluate.benchmarks: {name} cannot be evaluated yet")
        asked.append((benchmark, select(benchmark, data.source, data.questions, recipe.evaluate.limit)))
    paths = {m.path for _, tasks in asked for questions in tasks.values() for q in questions for m in q.media}
    missing = sorted(str(path) for path in paths if not path.is_file())
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(missing)} media files of the questions are missing: {', '.join(missing[:5])}{more}",
            hint="make or fetch the data again: `harness data check` names what is damaged",
        )
    return asked


def make_wanted(run_dir: Path, job: Job, benchmark: Benchmark, tasks: Tasks) -> Wanted:
    """Where a result belongs and what it must be made of."""
    identity = {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "step": job.step,
        "fraction": job.fraction,
        "checkpoint": checkpoint_digest(job.checkpoint),
        "questions": questions_hash(tasks),
        "prompt_hash": expected_prompt_hash(benchmark, tasks),
        "definition": digest(asdict(benchmark)),
    }
    path = run_dir / "eval" / f"step-{job.step:06d}" / f"{benchmark.name}.json"
    return Wanted(benchmark, tasks, job, identity, path)


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
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        lines = (path.parent / result["items"]).read_bytes()
        items = [json.loads(line) for line in lines.splitlines()]
    except FileNotFoundError as error:
        raise HarnessError(f"{error.filename}: not written by the evaluation") from None
    except (ValueError, KeyError) as error:
        raise HarnessError(f"{path}: damaged ({error})") from None
    for name, value in wanted.identity.items():
        if result.get(name) != value:
            raise StaleError(f"{path}: made from another {name} ({result.get(name)}, now {value})")
    if hashlib.sha256(lines).hexdigest() != result.get("items_sha256"):
        raise HarnessError(f"{path}: its items file is not the one it was made from")
    _count(wanted, result, items)
    return result


def _count(wanted: Wanted, result: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
    benchmark, path = wanted.benchmark, wanted.path
    asked = [(benchmark.task(a), q) for a, questions in wanted.tasks.items() for q in questions]
    if [(item.get("task"), item.get("key")) for item in items] != [(task, q.key) for task, q in asked]:
        raise HarnessError(f"{path}: {len(items)} items scored, {len(asked)} asked, or others than those")
    for item, (_, question) in zip(items, asked, strict=True):
        problem = _item_problem(benchmark, item, len(question.options), question.answer)
        if problem:
            raise HarnessError(f"{path}: {item['task']} {item['key']}: {problem}")
    summary = summarise(benchmark, items)
    counts = {"expected": len(asked), **summary["counts"], "errors": 0}
    for name, value in (("tasks", summary["tasks"]), ("mean", summary["mean"]), ("counts", counts)):
        if result.get(name) != value:
            raise HarnessError(f"{path}: {name} are {result.get(name)}, its items give {value}")


def _item_problem(benchmark: Benchmark, item: Mapping[str, Any], options: int, answer: int) -> str | None:
    if item["answer"] != answer or item["correct"] != int(item["prediction"] == answer):
        return "its answer or verdict is wrong"
    if benchmark.form == "options":
        losses, tokens = item["option_loss"], item["option_tokens"]
        if len(losses) != options or len(tokens) != options or not all(map(math.isfinite, losses)) or min(tokens) < 1:
            return f"not every option has a loss: {losses}, tokens {tokens}"
        if item["prediction"] != losses.index(min(losses)):
            return "its prediction is not the likeliest option"
    elif item["empty"] and benchmark.empty == "refuse":
        return "the answer is empty"
    return None


# --- asking the child ------------------------------------------------------------------------------------


def _evaluate(
    recipe: Recipe, folder: Path, pending: Sequence[Wanted], progress: Progress, child: Sequence[str]
) -> None:
    """One child for everything that is pending; each result is judged as soon as it is there."""
    ordered = sorted(pending, key=lambda one: one.job.step)
    total = sum(len(questions) for one in ordered for questions in one.tasks.values())
    behind = 0
    with (
        progress.task(f"evaluate {recipe.name}", total) as advance,
        run_child(child, folder, _job(recipe, ordered)) as events,
    ):
        for event in events:
            one = ordered[event["result"]]
            done = behind + event["done"]
            if event["event"] == "done":
                behind = done
                progress.say(_line(recipe, one, read_result(one)))
            if event["event"] == "done" or done < total:
                advance(done, f"step {one.job.step} {one.benchmark.name}")


def _job(recipe: Recipe, ordered: Sequence[Wanted]) -> dict[str, Any]:
    """The job file: benchmarks with their questions, and the results to write, those of a checkpoint together."""
    benchmarks = {one.benchmark.name: one for one in ordered}
    return {
        "schema": SCHEMA,
        "recipe": recipe.model_dump(mode="json"),
        "benchmarks": [
            {
                "benchmark": asdict(one.benchmark),
                "questions": [question_record(q) for questions in one.tasks.values() for q in questions],
            }
            for one in benchmarks.values()
        ],
        "results": [
            {
                "benchmark": one.benchmark.name,
                "checkpoint": str(one.job.checkpoint.absolute()),
                "path": str(one.path.absolute()),
                "identity": one.identity,
            }
            for one in ordered
        ],
    }


def _line(recipe: Recipe, one: Wanted, result: Mapping[str, Any]) -> str:
    mean, n = result["mean"], result["counts"]["scored"]
    error = "" if mean["stderr"] is None else f" +- {mean['stderr']:.3f}"
    return (
        f"{recipe.name} step {one.job.step}: {one.benchmark.name} {mean['value']:.3f}{error} "
        f"({n} questions, {result['seconds']:.1f} s)"
    )
