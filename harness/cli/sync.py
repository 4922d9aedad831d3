"""The answer of `sync`: what a tracking server missed while it was down is sent to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli.arguments import recipes_of, results_folder, split
from harness.cli.status import run_folders
from harness.common.errors import EnvironmentProblem, HarnessError
from harness.common.files import read_json
from harness.records.record import RECORD_FILE
from harness.records.run_folder import RECIPE_FILE, read_recipe
from harness.records.tracking import MirrorChild, is_mirrored, mirror

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.recipe import Recipe

Synced = dict[str, Any]


def sync(arguments: Sequence[str]) -> list[Synced]:
    """Mirror the runs of the recipes that are named, or every run of the results folder, as far as their store lacks
    something: `run_id`, `state` (of a `MirrorReport`), `metrics` sent and `message` of each."""
    with MirrorChild() as child:
        if split(arguments)[0]:
            folders = [(Path(r.paths.results) / "runs" / r.run_id, r) for r in recipes_of(arguments)]
            return [_synced(folder, recipe, child) for folder, recipe in folders if folder.is_dir()]
        results = results_folder(arguments)
        return [_synced(folder, _kept(folder, results), child) for folder in run_folders(results)]


def _kept(folder: Path, results: Path) -> Recipe | str:
    """The recipe that a folder keeps, for these results; why not, where it cannot be mirrored."""
    try:
        if read_json(folder / RECIPE_FILE, "the recipe of a run").get("kind") == "evaluation":
            return "an evaluation without a training is not mirrored"
        recipe = read_recipe(folder)
    except HarnessError as error:
        return str(error)
    paths = recipe.paths.model_copy(update={"results": str(results)})
    return recipe.model_copy(update={"paths": paths})


def _synced(folder: Path, recipe: Recipe | str, child: MirrorChild) -> Synced:
    answer: Synced = {"run_id": folder.name, "state": "off", "metrics": 0, "message": None}
    if isinstance(recipe, str):
        return {**answer, "message": recipe}
    if recipe.track.mlflow and is_mirrored(folder):
        return {**answer, "state": "done"}
    report = mirror(recipe, folder, final=True, child=child)
    # A trouble that the user was told before is told again: this command was given to see it.
    message = report.message or (f"not sent: {report.state}" if report.state not in ("done", "off") else None)
    if report.state == "done" and not (folder / RECORD_FILE).exists():
        message = "as far as it is: no record yet"
    return {**answer, "state": report.state, "metrics": report.metrics, "message": message}


def lines(runs: Sequence[Synced]) -> list[str]:
    """A line a run."""
    if not runs:
        return ["no run to send"]
    heads = [f"{run['run_id']}  {run['state']}, {run['metrics']:,} numbers sent" for run in runs]
    return [f"{head}: {run['message']}" if run["message"] else head for head, run in zip(heads, runs, strict=True)]


def require_sent(runs: Sequence[Synced]) -> None:
    """Raises EnvironmentProblem where something could not be sent."""
    missing = [run["run_id"] for run in runs if run["state"] not in ("done", "off")]
    if missing:
        raise EnvironmentProblem(
            f"{len(missing)} of {len(runs)} runs are not in MLflow as they are on disk: {', '.join(missing)}",
            hint="give the command again when the server answers; nothing is sent twice",
        )
