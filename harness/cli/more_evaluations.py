"""`harness eval RUN evaluate.benchmarks=[...]`: a finished training is asked more, and stays what it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.cli.arguments import readable_results, split
from harness.cli.run_names import run_of_beginning
from harness.cli.status import run_folders
from harness.common.errors import RecipeError
from harness.common.files import has_file
from harness.config.explain import nearest
from harness.config.load import kind_of, load_paths, overridden
from harness.records.run_folder import RECIPE_FILE, read_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.recipe import Recipe

_OF_AN_EVALUATION: Final = ("evaluate.", "paths.", "devices.")
_RUN: Final = re.compile(r"-[0-9a-f]{2,8}$")
"""How a run's id ends, or its beginning, as far as it has some of its digits."""
_HOW_ASKED: Final = ("prompts", "limit", "dtype")


def trainings_apart(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The folders of trainings that are named by id or its beginning, and all other arguments.

    Raises:
        RecipeError: a name is the beginning of several ids, or trainings are named beside recipes.
    """
    names, overrides = split(arguments)
    results = Path(load_paths([text for text in overrides if text.startswith("paths.")]).results)
    folders = {folder.name: folder for folder in run_folders(readable_results(results))}
    kept = [folder for folder in folders if has_file(folders[folder] / RECIPE_FILE)]
    run_ids = {name: run_of_beginning(name, kept) for name in names if kind_of(name) is None}
    for name, run_id in run_ids.items():
        if run_id is None and _RUN.search(name):
            raise RecipeError(
                f"{name}: no run below {readable_results(results) / 'runs'}{nearest(name, kept)}",
                hint="`harness list runs` names what is there",
            )
    trainings = [folders[run_id] for run_id in dict.fromkeys(run_ids.values()) if run_id is not None]
    others = [argument for argument in arguments if run_ids.get(argument) is None]
    if trainings and split(others)[0]:
        raise RecipeError(
            f"{', '.join(folder.name for folder in trainings)} beside {', '.join(split(others)[0])}: overrides of a "
            "run that is there are not those of a recipe; give two commands"
        )
    return trainings, others


def asked_more(run_dir: Path, overrides: Sequence[str]) -> tuple[Recipe, Recipe]:
    """The recipe of a training, and the same with what it is to be asked.

    Raises:
        RecipeError: something else than the evaluation, folders or devices is to be another, or a benchmark of the
            run's own recipe is to be asked otherwise.
        DataError, StaleError: as `read_recipe`.
    """
    keys = [text.partition("=")[0].strip() for text in overrides]
    strange = [key for key in keys if not key.startswith(_OF_AN_EVALUATION) or key == "evaluate.at"]
    if strange:
        raise RecipeError(
            f"{', '.join(strange)}: {run_dir.name} is trained, so that this cannot be another; its kept models can "
            "be asked other evaluate.benchmarks, limit, prompts, batch and dtype",
            hint="another training needs a recipe: harness run RECIPE key=value",
        )
    here = [text for text in overrides if not text.startswith("evaluate.")]
    recipe = overridden(read_recipe(run_dir), [*here, f"paths.results={run_dir.parent.parent}"])
    asked = overridden(recipe, [text for text in overrides if text.startswith("evaluate.")])
    own = [name for name in asked.evaluate.names if name in recipe.evaluate.names]
    otherwise = [key for key in _HOW_ASKED if getattr(asked.evaluate, key) != getattr(recipe.evaluate, key)]
    if own and otherwise:
        raise RecipeError(
            f"{', '.join(own)}: the run's own recipe asks it, and evaluate.{', evaluate.'.join(otherwise)} would "
            "replace its answers",
            hint="name other benchmarks, or evaluate a copy of the run's folder",
        )
    return recipe, asked


__all__ = ["asked_more", "trainings_apart"]
