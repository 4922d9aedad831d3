"""A small run with evaluations, finished or killed in the middle of them, and what it came to."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any, Final

from harness import pipeline
from harness.analysis.choices.replay import study
from harness.analysis.choices.selection import read_selection
from harness.analysis.runs import load_runs
from harness.common.errors import StaleError
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.evaluation import evaluate
from harness.records.evaluations import read_item_bytes

from . import stopped
from .readers import Opened
from .stopped import run_dir

ASKED: Final = {"benchmarks": ["shapes"], "at": [0.25, 1.0]}
_OF_THE_CLOCK: Final = ("seconds", "seal")


def recipe_in(folder: Path) -> Recipe:
    """`stopped`'s run, evaluated twice."""
    plain = {**stopped.recipe_in(folder).model_dump(mode="json"), "name": "evaluated", "evaluate": ASKED}
    return Recipe.model_validate_json(json.dumps(plain))


def go_on(folder: Path) -> None:
    """The run's command, from where it is to its record, and the replay of its choices."""
    recipe = recipe_in(folder)
    command(recipe)
    (run,) = (run for run in load_runs(Path(recipe.paths.results)) if run.id == recipe.run_id)
    reason = study(run, recipe.paths, Progress(quiet=True))
    if reason is not None:  # `harness figures` says it
        raise StaleError(reason)


def command(recipe: Recipe) -> None:
    """All stages of a run, from where it is to its record."""
    prepared = pipeline.prepare(recipe, Progress(quiet=True))
    pipeline.train(prepared)
    pipeline.evaluate(prepared)
    pipeline.finish(prepared)


def killed(folder: Path, python: str) -> None:
    """Work until the first of two results is there, and be killed; what was read until then is kept beside the
    folder."""
    opened = Opened(folder)
    answer_by(python)

    def die(_wanted: evaluate.Wanted) -> None:
        opened.keep(stopped.read_by(folder))
        os.kill(os.getpid(), signal.SIGKILL)

    evaluate.read_result = die  # type: ignore[assignment]
    go_on(folder)


def answer_by(python: str) -> None:
    """Have evaluations of this process answered by that python, which may be warm."""
    pipeline.evaluation.evaluate_checkpoints = partial(  # type: ignore[assignment]
        evaluate.evaluate_checkpoints, child=(python, *evaluate.CHILD[1:])
    )


def make_killed(folder: Path, python: str) -> None:
    """Start the run in a process of its own, which is killed; the second result's answers are half there."""
    stopped.make_stopped(folder, killed, python)


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same however often the run was stopped: that of the training, what the gate chose, items and
    scores."""
    results = {}
    for path in sorted((run_dir(folder) / "eval").glob("step-*/*.json")):
        result = json.loads(path.read_text())
        items = read_item_bytes(path.with_name(result["items"])).decode()
        kept = {key: value for key, value in result.items() if key not in _OF_THE_CLOCK}
        results[f"{path.parent.name}/{path.name}"] = [kept, items]
    choices = read_selection(run_dir(folder))
    return {**stopped.training_outcome(folder), "choices": choices, "results": results}
