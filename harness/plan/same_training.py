"""Trainings that are there and differ from a recipe in nothing but what their models were asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.errors import HarnessError
from harness.common.files import has_file
from harness.records.ledger import finished_step
from harness.records.run_folder import RECIPE_FILE, read_recipe, run_dir_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.config.recipe import Recipe


def same_training(recipe: Recipe) -> Iterator[str]:
    """A sentence on each finished run of the recipe's name and results folder, other than its own, that was trained
    alike and kept models at the same points; none where the recipe's own run has been trained."""
    if finished_step(run_dir_of(recipe) / "ledger.jsonl") is not None:
        return
    wanted = _trained(recipe)
    for folder in sorted((Path(recipe.paths.results) / "runs").glob(f"{recipe.name}-????????")):
        if folder.name != recipe.run_id and has_file(folder / RECIPE_FILE) and _is(folder, wanted):
            yield (
                f"{folder.name} is the same training, asked otherwise: `harness eval {folder.name} "
                "evaluate.benchmarks=[...]` scores its kept models; this recipe trains anew"
            )


def _trained(recipe: Recipe) -> dict[str, Any]:
    return {**recipe.identity(), "evaluate": recipe.evaluate.at}


def _is(folder: Path, wanted: dict[str, Any]) -> bool:
    """What cannot be read is no run to go on with; whoever reads it names what is damaged."""
    try:
        return _trained(read_recipe(folder)) == wanted and finished_step(folder / "ledger.jsonl") is not None
    except HarnessError:
        return False


__all__ = ["same_training"]
