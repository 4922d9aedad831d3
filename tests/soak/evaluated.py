"""A small run with evaluations, finished or killed in the middle of them, and what it came to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from harness import pipeline
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.evaluation import evaluate
from harness.records.evaluations import read_item_bytes

from . import stopped
from .stopped import ROOT, run_dir

if TYPE_CHECKING:
    from pathlib import Path

ASKED: Final = {"benchmarks": ["shapes"], "at": [0.25, 1.0]}
_OF_THE_CLOCK: Final = ("seconds", "seal")


def recipe_in(folder: Path) -> Recipe:
    """`stopped`'s run, evaluated twice."""
    plain = {**stopped.recipe_in(folder).model_dump(mode="json"), "name": "evaluated", "evaluate": ASKED}
    return Recipe.model_validate_json(json.dumps(plain))


def go_on(folder: Path) -> None:
    """The run's command, from where it is to its record."""
    command(recipe_in(folder))


def command(recipe: Recipe) -> None:
    """All stages of a run, from where it is to its record."""
    prepared = pipeline.prepare(recipe, Progress(quiet=True))
    pipeline.train(prepared)
    pipeline.evaluate(prepared)
    pipeline.finish(prepared)


def killed(folder: Path) -> None:
    """Work until the first of two results is there, and be killed."""

    def die(_wanted: evaluate.Wanted) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    evaluate.read_result = die  # type: ignore[assignment]
    go_on(folder)


def make_killed(folder: Path) -> None:
    """Start the run in a process of its own, which is killed; the second result's answers are half there."""
    code = "import sys; from pathlib import Path; from tests.soak.evaluated import killed; killed(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


def outcome(folder: Path) -> dict[str, Any]:
    """What must be the same however often the run was stopped: that of the training, but for running losses that
    nothing comes from any more; and items and scores."""
    results = {}
    for path in sorted((run_dir(folder) / "eval").glob("step-*/*.json")):
        result = json.loads(path.read_text())
        items = read_item_bytes(path.with_name(result["items"])).decode()
        kept = {key: value for key, value in result.items() if key not in _OF_THE_CLOCK}
        results[f"{path.parent.name}/{path.name}"] = [kept, items]
    return {**stopped.training_outcome(folder), "results": results}
