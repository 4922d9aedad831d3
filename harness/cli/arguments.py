"""The one argument list of every verb: recipes and `key=value` overrides in any order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.files import odd_kind, unusable_folder
from harness.config.load import EVALUATION, SUITE, is_override, kind_of, load, load_paths, load_recipes, suite_recipes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Paths, Recipe
    from harness.plan import Planner


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Recipes and overrides, each in the order given."""
    overrides = [argument for argument in arguments if is_override(argument)]
    return [argument for argument in arguments if argument not in overrides], overrides


def recipes_of(arguments: Sequence[str]) -> list[Recipe]:
    """The recipes of a command, checked together; a suite stands for all of its runs.

    Raises:
        RecipeError: a mistake in any of them, or none was given.
    """
    names, overrides = split(arguments)
    suites = [name for name in names if kind_of(name) is SUITE]
    recipes = [recipe for name in suites for recipe in suite_recipes(load(SUITE, name), overrides)]
    others = [name for name in names if name not in suites]
    return recipes + load_recipes(others, overrides) if others or not suites else recipes


def evaluations_apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of evaluations, and all other arguments."""
    evaluations = [name for name in split(arguments)[0] if kind_of(name) is EVALUATION]
    return evaluations, [argument for argument in arguments if argument not in evaluations]


def documents_of(arguments: Sequence[str]) -> list[Recipe | EvaluationRecipe]:
    """The recipes, suites and evaluations of a command that only reads them; evaluations come last.

    Raises:
        RecipeError: every mistake in all of them, or none was given.
    """
    evaluations, others = evaluations_apart(arguments)
    names, overrides = split(others)
    mistakes: list[str] = []
    documents: list[Recipe | EvaluationRecipe] = []
    try:
        documents += recipes_of(others) if names or not evaluations else []
    except RecipeError as error:
        mistakes.append(str(error))
    for name in evaluations:
        try:
            documents.append(load(EVALUATION, name, overrides))
        except RecipeError as error:
            mistakes.append(str(error))
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return documents


def recipes_to_run(arguments: Sequence[str], planner: Planner) -> list[Recipe]:
    """The recipes of a command that works: nothing of one is started while another could not run.

    Args:
        planner: makes their plans, and keeps them with the opened data for the stages that follow.

    Raises:
        RecipeError: a mistake in any of them, or none was given.
        EnvironmentProblem, DataError: weights or data that the user has to bring are not there.
    """
    from harness.plan import require
    from harness.plan.same_training import same_training

    recipes = recipes_of(arguments)
    for recipe in recipes:
        require(planner.plan(recipe))
        sys.stderr.writelines(f"WARNING: {line}\n" for line in same_training(recipe))
    require_folders(recipes)
    return recipes


def require_folders(recipes: Sequence[Recipe]) -> None:
    """Refuse before anything is computed what could not be written in the end.

    Raises:
        EnvironmentProblem: a folder of `paths` cannot be made, or not be written.
    """
    folders = dict.fromkeys((key, folder) for recipe in recipes for key, folder in written_folders(recipe.paths))
    problems = [f"paths.{key}: {why}" for key, folder in folders if (why := unusable_folder(folder)) is not None]
    if problems:
        raise EnvironmentProblem("\n".join(problems), hint="choose folders you may write to (paths.results=FOLDER)")


def written_folders(paths: Paths) -> list[tuple[str, Path]]:
    """(key below `paths`, folder) of what a run writes to."""
    return [(key, Path(getattr(paths, key))) for key in ("data", "weights", "stores", "results")]


def results_folder(arguments: Sequence[str]) -> Path:
    """The results folder of recipes, which must share one, or of a command without a recipe."""
    names, overrides = split(arguments)
    results = Path(load_paths(overrides).results) if not names else shared_results(recipes_of(arguments))
    return readable_results(results)


def readable_results(results: Path) -> Path:
    """The results folder that a reading command was given; one that is not there yet holds no run.

    Raises:
        RecipeError: a file stands there.
    """
    if results.exists() and not results.is_dir():
        raise RecipeError(f"paths.results: {results} is {odd_kind(results) or 'a file'}, not a folder")
    return results


def shared_results(recipes: Sequence[Recipe | EvaluationRecipe]) -> Path:
    """The one results folder of some recipes.

    Raises:
        RecipeError: they have several.
    """
    folders = {recipe.paths.results for recipe in recipes}
    if len(folders) > 1:
        raise RecipeError(f"the recipes have different results folders: {', '.join(sorted(folders))}")
    return Path(folders.pop())
