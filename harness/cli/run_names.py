"""Which runs a command means: by id, the beginning of an id, a suite or a recipe, with one answer for all verbs."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.curves import suites
from harness.analysis.runs import Run, load_runs
from harness.cli.arguments import readable_results, shared_results, split
from harness.cli.status import run_folders
from harness.common.errors import DataError, HarnessError, RecipeError
from harness.common.files import is_file, is_sealed
from harness.config.explain import nearest
from harness.config.load import (
    EVALUATION,
    RECIPE,
    SUITE,
    kind_of,
    load,
    load_paths,
    load_recipe,
    shipped,
    suite_recipes,
)
from harness.config.recipe import Recipe
from harness.records.record import record_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Paths
    from harness.config.suite import Suite


@dataclass(frozen=True, slots=True)
class NamedRuns:
    """What the arguments of a command mean.

    Attributes:
        paths: the folders of the recipes that are named, or of the overrides.
        finished: every finished run of the results folder.
        named: (name, its runs) in the order given; empty where the command names none.
    """

    paths: Paths
    finished: list[Run]
    named: list[tuple[str, list[Run]]]

    @property
    def runs(self) -> list[Run]:
        """The runs that are named, each once."""
        return list({run.id: run for _, runs in self.named for run in runs}.values())


def resolve_runs(arguments: Sequence[str]) -> NamedRuns:
    """The runs of a command's names. The first of these that a name is decides: a run's id, a suite, a recipe or an
    evaluation (with the overrides of the command), a suite of the records, the beginning of an id.

    Raises:
        RecipeError: a name is none of them, or the beginning of several ids.
        DataError: what is named has no finished run, or a damaged one; damaged runs that are not named are told on
            stderr and left out.
    """
    names, overrides = split(arguments)
    documents = {name: _recipes_of(name, overrides) for name in dict.fromkeys(names)}
    recipes = [recipe for of_name in documents.values() for recipe in of_name]
    if recipes:
        shared_results(recipes)
    paths = recipes[0].paths if recipes else load_paths(overrides)
    problems: list[HarnessError] = []
    finished = load_runs(readable_results(Path(paths.results)), problems.append)
    try:
        named = [(name, _runs_of(name, documents[name], finished, Path(paths.results))) for name in names]
    except DataError as error:
        if not problems:
            raise
        raise left_out(problems) from error
    if problems:
        sys.stderr.write(f"WARNING: {left_out(problems)}\n")
    return NamedRuns(paths, finished, named)


def left_out(problems: Sequence[HarnessError]) -> HarnessError:
    """One error for runs whose record or items cannot be read, of the first one's kind."""
    ways = list(dict.fromkeys(error.hint for error in problems if error.hint))
    lines = "\n".join(f"  {error}" for error in problems)
    return type(problems[0])(f"left out, as files are damaged:\n{lines}", hint="\n  ".join(ways) or None)


def earlier_records(results: Path) -> str | None:
    """How many records below a results folder have no checksum, in words; None where all have one."""
    files = record_files(results)
    # What is no file at all is named where the records are read; opening a pipe would wait for ever.
    unsealed = [path for path in files if is_file(path) and not is_sealed(path)]
    if not unsealed:
        return None
    return (
        f"{len(unsealed)} of {len(files)} records below {results / 'runs'} are of an earlier version, without a "
        "checksum: a byte of them that changed is seen only where it breaks the record"
    )


def runs_to_compare(arguments: Sequence[str]) -> list[Run]:
    """The runs of a comparison, in the order given.

    Raises:
        RecipeError: fewer than two are named, or one twice; as `resolve_runs`.
        DataError: as `resolve_runs`.
    """
    if not split(arguments)[0]:
        raise _too_few()
    named = [run for _, runs in resolve_runs(arguments).named for run in runs]
    ids = [run.id for run in named]
    repeated = sorted({run_id for run_id in ids if ids.count(run_id) > 1})
    if repeated:
        raise RecipeError(f"compare: {', '.join(repeated)} is named twice")
    if len(named) < 2:
        raise _too_few()
    return named


def known_suites(arguments: Sequence[str] = ()) -> dict[str, Suite]:
    """Name -> definition of the shipped suites, and of those that a command names.

    Raises:
        RecipeError: one of them has a mistake.
    """
    named = [name for name in split(arguments)[0] if kind_of(name) is SUITE]
    definitions = [load(SUITE, name) for name in (*shipped(SUITE), *named)]
    return {suite.name: suite for suite in definitions}


def run_of_beginning(name: str, ids: Iterable[str]) -> str | None:
    """The id that is `name` or the only one to begin with it; one without more than its digest goes before longer
    names. None where there is none.

    Raises:
        RecipeError: several begin so.
    """
    matching = [run_id for run_id in ids if run_id.startswith(name)]
    exact = [run_id for run_id in matching if name in (run_id, run_id.rpartition("-")[0])]
    candidates = exact if len(exact) == 1 else matching
    if len(candidates) > 1:
        raise RecipeError(
            f"{name} is the beginning of several runs: {', '.join(candidates)}",
            hint="write more of the id of one of them",
        )
    return candidates[0] if candidates else None


def _recipes_of(name: str, overrides: Sequence[str]) -> Sequence[Recipe | EvaluationRecipe]:
    """What a suite's, a recipe's or an evaluation's name stands for; empty for another name."""
    kind = kind_of(name)
    if kind is EVALUATION:
        return [load(EVALUATION, name, overrides)]
    if kind is SUITE:
        return suite_recipes(load(SUITE, name), overrides)
    return [load_recipe(name, overrides)] if kind is RECIPE else []


def _runs_of(
    name: str, recipes: Sequence[Recipe | EvaluationRecipe], finished: Sequence[Run], results: Path
) -> list[Run]:
    by_id = {run.id: run for run in finished}
    if name in by_id:
        return [by_id[name]]
    if recipes:
        first = recipes[0]
        if isinstance(first, Recipe) and first.suite is not None:
            return _runs_of_suite(first.suite.name, finished, results)
        return [_run_of_recipe(name, first, by_id, results)]
    if name in suites(finished):
        return _runs_of_suite(name, finished, results)
    run_id = run_of_beginning(name, by_id)
    if run_id is not None:
        return [by_id[run_id]]
    unfinished = [folder.name for folder in run_folders(results) if folder.name.startswith(name)]
    if unfinished:
        raise DataError(f"{', '.join(unfinished)}: no record yet", hint="finish it first: harness run")
    raise RecipeError(
        f"{name}: no run below {results / 'runs'}, no suite and no recipe of that name"
        f"{nearest(name, [*by_id, *suites(finished), *shipped(SUITE), *shipped(RECIPE)])}",
        hint="`harness list` names what is there",
    )


def _runs_of_suite(name: str, finished: Sequence[Run], results: Path) -> list[Run]:
    arms = suites(finished).get(name)
    if arms is None:
        raise DataError(f"no finished run of suite {name} below {results / 'runs'}", hint="start it: harness run")
    return [run for runs in arms.values() for run in runs]


def _run_of_recipe(name: str, recipe: Recipe | EvaluationRecipe, by_id: dict[str, Run], results: Path) -> Run:
    run_id = recipe.run_id
    if run_id in by_id:
        return by_id[run_id]
    recipe_name = run_id.rpartition("-")[0]
    others = [run.id for run in by_id.values() if run.name == recipe_name]
    command = f"harness {'run' if isinstance(recipe, Recipe) else 'eval'} {shlex.quote(name)}"
    raise DataError(
        f"{name}: its run {run_id} has no record below {results / 'runs'}",
        hint=command + (f"; with other settings there are {', '.join(others)}" if others else ""),
    )


def _too_few() -> RecipeError:
    return RecipeError("compare takes two runs or more, by id, recipe or suite", hint="harness list runs names them")


__all__ = [
    "NamedRuns",
    "earlier_records",
    "known_suites",
    "left_out",
    "resolve_runs",
    "run_of_beginning",
    "runs_to_compare",
]
