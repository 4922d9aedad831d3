"""The one argument list of every verb: recipes and `key=value` overrides in any order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.common.errors import RecipeError
from harness.config.load import is_override, load_paths, load_recipes
from harness.config.load_evaluation import find_evaluation, load_evaluation
from harness.config.suite import find_suite, load_suite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Recipes and overrides, each in the order given."""
    overrides = [argument for argument in arguments if is_override(argument)]
    return [argument for argument in arguments if argument not in overrides], overrides


def load(arguments: Sequence[str]) -> list[Recipe]:
    """The recipes of a command, checked together; a suite stands for all of its runs.

    Raises:
        RecipeError: a mistake in any of them, or none was given.
    """
    names, overrides = split(arguments)
    suites = [name for name in names if find_suite(name) is not None]
    recipes = [recipe for name in suites for recipe in load_suite(name).recipes(overrides)]
    alone = [name for name in names if name not in suites]
    return recipes + load_recipes(alone, overrides) if alone or not suites else recipes


def load_documents(arguments: Sequence[str]) -> list[Recipe | EvaluationRecipe]:
    """The recipes, suites and evaluations of a command that only reads them; evaluations come last.

    Raises:
        RecipeError: every mistake in all of them, or none was given.
    """
    names, overrides = split(arguments)
    alone = [name for name in names if find_suite(name) is None and find_evaluation(name) is not None]
    others = [name for name in names if name not in alone]
    told: list[str] = []
    found: list[Recipe | EvaluationRecipe] = []
    try:
        found += load([*others, *overrides]) if others or not alone else []
    except RecipeError as error:
        told.append(str(error))
    for name in alone:
        try:
            found.append(load_evaluation(name, overrides))
        except RecipeError as error:
            told.append(str(error))
    if told:
        raise RecipeError("\n".join(told))
    return found


def load_to_run(arguments: Sequence[str]) -> list[Recipe]:
    """The recipes of a command that works: nothing of one is started while another could not run.

    Raises:
        RecipeError: a mistake in any of them, or none was given.
        EnvironmentProblem, DataError: weights or data that must be brought are not there.
    """
    from harness.plan import make_plan, require

    recipes = load(arguments)
    for recipe in recipes:
        require(make_plan(recipe))
    return recipes


def results_folder(arguments: Sequence[str]) -> Path:
    """The results folder of recipes, which must share one, or of a command without a recipe."""
    names, overrides = split(arguments)
    if not names:
        return Path(load_paths(overrides).results)
    folders = {recipe.paths.results for recipe in load(arguments)}
    if len(folders) > 1:
        raise RecipeError(f"the recipes have different results folders: {', '.join(sorted(folders))}")
    return Path(folders.pop())
