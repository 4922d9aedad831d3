"""One item of an evaluation asked again, through the code of the evaluation: `harness show RUN ITEM`."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.runs import Run, load_runs
from harness.cli.arguments import results_folder, split
from harness.cli.items.trace import FIELDS, answer_lines, asked_of, question_lines, row_of, selected, sent
from harness.cli.run_names import run_of_beginning
from harness.common.errors import EnvironmentProblem, RecipeError, StaleError
from harness.config.evaluation import EvaluationRecipe
from harness.config.explain import nearest
from harness.config.load import load_paths
from harness.config.recipe import Paths, Recipe
from harness.config.weight_files import missing_checkpoint
from harness.evaluation.evaluate import Job, ask_again, checkpoint_digest, kept_task, make_wanted
from harness.evaluation.files import benchmarks_root
from harness.evaluation.lmms.process import CHILD
from harness.evaluation.standalone import checkpoint_of, weights_of
from harness.evaluation.task import ASK_ANEW, LmmsEvalTask, MultipleChoiceTask
from harness.records.record import read_items
from harness.records.run_folder import RECIPE_FILE, read_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.common.progress import Progress
    from harness.evaluation.task import EvalTask

Answer = dict[str, Any]
_KEPT_ANSWER: Final = "harness trace shows its answer"


def asked_again(
    name: str, item: str, arguments: Sequence[str], progress: Progress, child: Sequence[str] = CHILD
) -> Answer:
    """One item of a run's last evaluation beside the answer that its kept checkpoint gives now.

    Args:
        name: a run's id or its beginning.
        item: a key, or `task/key`.
        arguments: `paths.*` overrides, where data or weights lie elsewhere than when the run was evaluated.
        child: the command of the evaluation's process.

    Raises:
        RecipeError: no such run or item.
        StaleError: the question or the checkpoint is not kept any more, or data or weights are others now.
        DataError, EnvironmentProblem: data or weights are missing; where they come from is said.
    """
    results = results_folder(arguments)
    folders = {run.id: run for run in load_runs(results)}
    run_id = run_of_beginning(name, folders)
    if run_id is None:
        raise RecipeError(f"{name}: no finished run below {results / 'runs'}{nearest(name, folders)}")
    run = folders[run_id]
    evaluation, line = _last_item(run, item)
    named = f"{line['task']}/{line['key']}"
    recipe = _recipe_of(run, arguments)
    task = _kept(run, evaluation["benchmark"], recipe, arguments)
    alone = task.alone(line)
    job = _job(run, evaluation, recipe, named)
    with tempfile.TemporaryDirectory(prefix="harness-show-") as folder:
        (now,) = ask_again(recipe, Path(folder), job, alone, progress, child)
        asked = _asked(task, alone, line, make_wanted(Path(folder), job, alone, "").path)
    shown_item = {"task": line["task"], "key": str(line["key"]), **asked}
    stored, again = ({field: entry[field] for field in FIELDS if field in entry} for entry in (line, now))
    if isinstance(task, MultipleChoiceTask) and task.benchmark.form == "short":
        shown_item["right_option"] = None
    return {
        "schema": 1, "run": run_id, "benchmark": evaluation["benchmark"], "step": evaluation["step"],
        "form": task.benchmark.form if isinstance(task, MultipleChoiceTask) else "published",
        "item": shown_item, "stored": stored, "again": again,
    }  # fmt: skip


def _last_item(run: Run, name: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The item of a key, and the last evaluation that it belongs to."""
    benchmarks = dict.fromkeys(entry["benchmark"] for entry in run.record["evaluations"])
    named: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
    every: list[Mapping[str, Any]] = []
    for benchmark in benchmarks:
        evaluation = run.last(benchmark)
        assert evaluation is not None
        lines = read_items(run.folder, evaluation) or []
        every += lines
        named += [(evaluation, line) for line in lines if name in (str(line["key"]), f"{line['task']}/{line['key']}")]
    if not named:
        selected(every, name)
    if len(named) > 1:
        several = [f"{line['task']}/{line['key']}" for _, line in named]
        more = f" and {len(several) - 24} more" if len(several) > 24 else ""
        raise RecipeError(f"{name} is the key of several items; write one of {', '.join(several[:24])}{more}")
    return named[0]


def _recipe_of(run: Run, arguments: Sequence[str]) -> Recipe | EvaluationRecipe:
    """What the run was evaluated by, with the folders that the command names."""
    if run.trained:
        path = run.folder / RECIPE_FILE
        if not path.is_file():
            raise StaleError(f"{path} is gone: how the model is loaded is not known")
        recipe = read_recipe(run.folder)
        return recipe.model_copy(update={"paths": _paths(recipe.paths, arguments)})
    asked = run.record["recipe"]
    fields = {
        "kind": asked["kind"],
        "name": run.name,
        "model": asked["model"],
        "frames": asked["data"]["frames"],
        "precision": asked["train"]["precision"],
        "benchmarks": sorted({entry["benchmark"] for entry in run.record["evaluations"]}),
        **{name: asked["evaluate"][name] for name in ("prompts", "limit", "batch")},
        "paths": _paths(Paths(), arguments).model_dump(mode="json"),
    }
    return EvaluationRecipe.model_validate_json(json.dumps(fields))


def _paths(paths: Paths, arguments: Sequence[str]) -> Paths:
    named = load_paths(split(arguments)[1])
    return paths.model_copy(update={key: getattr(named, key) for key in named.model_fields_set})


def _kept(run: Run, benchmark: str, recipe: Recipe | EvaluationRecipe, arguments: Sequence[str]) -> EvalTask:
    """What the run was asked; a published benchmark's data where they lie now."""
    task = kept_task(run.folder, benchmark)
    if task is None:
        raise StaleError(f"{run.id}: the questions of {benchmark} are not kept", hint=ASK_ANEW)
    if not isinstance(task, LmmsEvalTask):
        return task
    moved = "data" in load_paths(split(arguments)[1]).model_fields_set or not task.data.root.is_dir()
    root = benchmarks_root(recipe.paths.data) if moved else task.data.root
    return replace(task, data=replace(task.data, root=root))


def _job(run: Run, evaluation: Mapping[str, Any], recipe: Recipe | EvaluationRecipe, item: str) -> Job:
    """The checkpoint that answered the item."""
    missing = (
        missing_checkpoint(recipe)
        if isinstance(recipe, EvaluationRecipe)
        else recipe.model.missing(Path(recipe.paths.weights))
    )
    if missing:
        lines = "\n".join(f"  {line}" for line in missing)
        raise EnvironmentProblem(f"{run.id}: weights are missing\n{lines}", hint=_KEPT_ANSWER)
    if isinstance(recipe, EvaluationRecipe):
        checkpoint = checkpoint_of(recipe)
        if weights_of(recipe) != run.record["provenance"]["weights"]:
            raise StaleError(f"{checkpoint} holds other weights than those that answered {item}", hint=_KEPT_ANSWER)
        return Job(evaluation["step"], evaluation["fraction"], checkpoint)
    checkpoint = run.folder / "checkpoints" / f"step-{evaluation['step']:06d}"
    if not checkpoint.is_dir():
        raise StaleError(f"{checkpoint} is gone: the model that answered {item} is not kept", hint=_KEPT_ANSWER)
    if checkpoint_digest(checkpoint) != evaluation["checkpoint"]:
        raise StaleError(f"{checkpoint} holds other weights than those that answered {item}", hint=_KEPT_ANSWER)
    return Job(evaluation["step"], evaluation["fraction"], checkpoint)


def _asked(task: EvalTask, alone: EvalTask, item: Mapping[str, Any], result: Path) -> Answer:
    """Question, clip and options of the item, and of a published benchmark what was sent now.

    Args:
        result: of the item asked alone, with its answers beside it.
    """
    if isinstance(task, MultipleChoiceTask):
        return asked_of(task.question(item))
    assert isinstance(task, LmmsEvalTask)
    assert isinstance(alone, LmmsEvalTask)
    prompt = sent(result, alone.benchmark, {"task": item["task"], "key": "0"})
    return {"prompt": prompt, **row_of(task.data, item)}


def asked_lines(answer: Answer) -> list[str]:
    """What `show RUN ITEM` prints: the question, the stored answer and the one given now."""
    item = answer["item"]
    lines = [f"{answer['run']}, {answer['benchmark']} after step {answer['step']}, {item['task']}/{item['key']}"]
    lines += question_lines(item)
    for title, given in (("stored", answer["stored"]), ("asked again", answer["again"])):
        lines += [title, *answer_lines(given, item["options"])]
    return lines


__all__ = ["asked_again", "asked_lines"]
