"""The answers of `tables` and `compare`: which runs and suites are meant, and what is shown of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.analysis.runs import Run, load_runs
from harness.cli.arguments import results_folder, split
from harness.cli.status import run_folders
from harness.common.errors import DataError, RecipeError
from harness.config.explain import nearest
from harness.config.load import load_recipe
from harness.config.suite import Suite, find_suite, load_suite, shipped_suites

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def known_suites(arguments: Sequence[str] = ()) -> dict[str, Suite]:
    """Name -> definition of the shipped suites, and of those that a command names.

    Raises:
        RecipeError: one of them has a mistake.
    """
    named = [name for name in split(arguments)[0] if find_suite(name) is not None]
    suites = [load_suite(name) for name in (*shipped_suites(), *named)]
    return {suite.name: suite for suite in suites}


def runs_named(arguments: Sequence[str]) -> list[Run]:
    """The runs of a comparison, in the order given: each by its id, the beginning of an id, or a recipe.

    Raises:
        RecipeError: fewer than two, an unknown name, or the beginning of several ids.
        DataError: a run has no record yet.
    """
    names, overrides = split(arguments)
    if len(names) < 2:
        raise RecipeError("compare takes two runs or more, by id or by recipe", hint="harness list runs names them")
    places = [text for text in overrides if text.startswith("paths.")]
    results = results_folder(places)
    runs = {run.id: run for run in load_runs(results)}
    found = [_run(name, overrides, runs, results) for name in names]
    twice = {run.id for run in found if sum(run.id == other.id for other in found) > 1}
    if twice:
        raise RecipeError(f"compare: {', '.join(sorted(twice))} is named twice")
    return found


def _run(name: str, overrides: Sequence[str], runs: dict[str, Run], results: Path) -> Run:
    if name in runs:
        return runs[name]
    begins = [run for run_id, run in runs.items() if run_id.startswith(name)]
    named = [run for run in begins if run.name == name]
    if len(named) == 1 or len(begins) == 1:
        return (named if len(named) == 1 else begins)[0]
    unfinished = [folder.name for folder in run_folders(results) if folder.name.startswith(name)]
    if begins:
        found = ", ".join(run.id for run in begins)
        raise RecipeError(f"{name} is the beginning of several runs: {found}", hint="give more of the id")
    if unfinished:
        raise DataError(f"{', '.join(unfinished)}: no record yet", hint="finish it first: harness run")
    try:
        run_id = load_recipe(name, overrides).run_id
    except RecipeError as error:
        meant = nearest(name, runs)
        raise RecipeError(f"{name}: no run below {results / 'runs'} and no recipe{meant}", hint=str(error)) from None
    if run_id not in runs:
        raise DataError(
            f"{name}: its run {run_id} has no record below {results / 'runs'}", hint=f"harness run {name}"
        )
    return runs[run_id]


__all__ = ["known_suites", "runs_named"]
