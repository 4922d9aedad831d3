"""Suites: many runs of named arms over several seeds, and the claims that they are to decide.

A suite is data, as a recipe is. Each arm is a recipe and overrides, which go through the recipe's own validation;
each seed makes everything that a recipe's seed makes anew, so that arms are paired within a seed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError

from harness.common.errors import RecipeError
from harness.config.explain import explain, nearest
from harness.config.load import load_recipe, raise_problems, recipe_folder
from harness.config.recipe import Recipe, SuiteMark
from harness.config.section import Strict
from harness.config.yaml_positions import YamlProblem, read_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = "suites"
"""Below the shipped recipes."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]


class Arm(Strict):
    """A recipe, by file or shipped name, and what is different in it: dotted keys and their values."""

    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)
    words: str = ""
    """What the arm shows, for the tables."""


class Claim(Strict):
    """A statement about two arms that the runs decide: accuracy of `first` minus `second`, paired within a seed."""

    id: Name
    text: str
    first: str
    second: str
    expect: Literal["better", "not_worse"]
    margin: NonNegativeFloat = 0.0
    """Parts of one: how much worse still counts as not worse."""


class Suite(Strict):
    """Arms, seeds and claims. `baseline` is the arm that the others' differences are taken against."""

    suite: Name
    description: str = ""
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    baseline: str
    arms: dict[Name, Arm] = Field(min_length=1)
    claims: tuple[Claim, ...] = ()

    @property
    def name(self) -> str:
        return self.suite

    def recipes(self, overrides: Sequence[str] = ()) -> list[Recipe]:
        """One recipe for each seed and arm, arms of a seed together. `overrides` reach all of them.

        Raises:
            RecipeError: an arm's recipe or an override is wrong.
        """
        return [self._recipe(arm, seed, overrides) for seed in self.seeds for arm in self.arms]

    def _recipe(self, arm: str, seed: int, overrides: Sequence[str]) -> Recipe:
        own = [f"{key}={json.dumps(value)}" for key, value in self.arms[arm].set.items()]
        named = [f"name={self.suite}.{arm}.seed{seed}", f"seed={seed}"]
        recipe = load_recipe(self.arms[arm].recipe, [*own, *named, *overrides])
        return recipe.model_copy(update={"suite": SuiteMark(name=self.suite, arm=arm)})


def shipped_suites() -> dict[str, Path]:
    """Name (`suites/tiny_claim`) to file of the suites that come with the package or the checkout."""
    root = recipe_folder()
    return {
        path.relative_to(root).with_suffix("").as_posix(): path for path in sorted((root / FOLDER).glob("*.yaml"))
    }


def find_suite(path_or_name: str) -> Path | None:
    """The file of a suite, or None where the argument names none: then it is a recipe's."""
    shipped = shipped_suites()
    name = path_or_name.removeprefix("recipes/").removesuffix(".yaml")
    given = Path(path_or_name)
    if given.is_file():
        return given if _is_suite(given) else None
    return shipped.get(name) or shipped.get(f"{FOLDER}/{name}")


def load_suite(path_or_name: str) -> Suite:
    """Read a suite, by file or shipped name.

    Raises:
        RecipeError: there is none of that name, or every mistake in it with its place.
    """
    path = find_suite(path_or_name)
    if path is None:
        raise RecipeError(f"{path_or_name}: no suite of that name{nearest(path_or_name, shipped_suites())}")
    try:
        document = read_yaml(path.read_text(encoding="utf-8"), path.name)
        suite = Suite.model_validate_json(json.dumps(document.data))
    except YamlProblem as problem:
        raise RecipeError(f"{problem.mark}: {problem.message}") from problem
    except ValidationError as error:
        raise_problems(explain(error.errors(include_url=False), document))
        raise
    named = [suite.baseline, *(arm for claim in suite.claims for arm in (claim.first, claim.second))]
    for arm in named:
        if arm not in suite.arms:
            raise RecipeError(f"{path.name}: there is no arm {arm}{nearest(arm, suite.arms)}")
    if len(set(suite.seeds)) < len(suite.seeds):
        raise RecipeError(f"{path.name}: a seed is given twice: {', '.join(map(str, suite.seeds))}")
    return suite


def _is_suite(path: Path) -> bool:
    """Whether a file is a suite and not a recipe: it says so in its first key."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = (line for line in file if line.strip() and not line.startswith("#"))
            return next(lines, "").startswith("suite:")
    except (OSError, UnicodeDecodeError):
        return False
