"""Suites: many runs of named arms over several seeds, and the claims that they are to decide.

A suite is data, as a recipe is; `harness.config.load.suite_recipes` gives its runs. Each arm is a recipe and
overrides, which go through the recipe's own validation; each seed makes everything that a recipe's seed makes anew,
so that arms are paired within a seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from harness.config.explain import Problem, nearest
from harness.config.section import Strict

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

    from harness.config.yaml_positions import Document, Path

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=40)]


class Arm(Strict):
    """A recipe, by file or shipped name, and what is different in it: dotted keys and their values."""

    recipe: str
    set: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """Some of the suite's seeds, for an arm that no claim needs with all of them; None takes all."""
    description: str = ""
    """What the arm shows."""


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

    @property
    def members(self) -> list[tuple[str, int]]:
        """Arm and seed of every run, arms of a seed together."""
        return [
            (name, seed)
            for seed in self.seeds
            for name, arm in self.arms.items()
            if arm.seeds is None or seed in arm.seeds
        ]


def suite_rules(document: Document, wrong: Set[Path]) -> Iterator[Problem]:
    """Names of arms that the suite does not have, seeds given twice, and seeds of an arm that the suite lacks.

    Args:
        wrong: unused; every rule reads values of the right type only.
    """
    arms = document.data.get("arms")
    for path, name in _named_arms(document.data):
        if isinstance(arms, dict) and isinstance(name, str) and name not in arms:
            yield Problem(document.value_at(path), path, f"there is no arm {name}{nearest(name, arms)}")
    seeds = document.data.get("seeds")
    yield from _seeds(document, ("seeds",), seeds, None)
    for name, arm in arms.items() if isinstance(arms, dict) else ():
        if isinstance(arm, dict):
            yield from _seeds(document, ("arms", name, "seeds"), arm.get("seeds"), seeds)


def _seeds(document: Document, path: Path, seeds: Any, known: Any) -> Iterator[Problem]:
    """Seeds that stand twice in a list, or that are none of the suite's."""
    for index, seed in enumerate(seeds if isinstance(seeds, list) else ()):
        place = (*path, index)
        if seed in seeds[:index]:
            yield Problem(document.value_at(place), place, f"a seed is given twice: {seed}")
        elif isinstance(known, list) and seed not in known:
            yield Problem(document.value_at(place), place, f"seed {seed} is none of the suite's seeds")


def _named_arms(data: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    yield ("baseline",), data.get("baseline")
    claims = data.get("claims")
    for index, claim in enumerate(claims if isinstance(claims, list) else ()):
        if isinstance(claim, dict):
            yield from ((("claims", index, key), claim.get(key)) for key in ("first", "second"))
