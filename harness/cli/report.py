"""What `figures` and `report` work on: which runs are meant, and looking at their gates' choices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.curves import suites
from harness.analysis.runs import load_runs, pair_runs
from harness.analysis.selection import runs_to_replay
from harness.cli.arguments import split
from harness.common.errors import DataError, RecipeError
from harness.config.explain import nearest
from harness.config.load import find_recipe, load_paths, load_recipe
from harness.config.suite import find_suite, load_suite
from harness.report.pages.build import write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.runs import Run
    from harness.common.progress import Progress
    from harness.config.recipe import Paths


def make_figures(arguments: Sequence[str], arms: Sequence[str], progress: Progress) -> list[Path]:
    """Look at the choices of the runs named, or of those that are shown (`runs_to_replay`), and draw everything.

    Raises:
        RecipeError: a name is neither a run nor a suite nor a recipe.
        DataError: a run has no record.
        StaleError: data or stores are not those of a run.
    """
    from harness.report.figures.build import build_figures

    paths, runs, named = _meant(arguments)
    look(named if named is not None else runs_to_replay(runs), paths, progress)
    return build_figures(Path(paths.results), arms=arms)


def make_reports(arguments: Sequence[str], progress: Progress) -> list[Path]:
    """One report of all the runs that are named; without a name one for each suite, and one for each pair.

    Raises:
        As `make_figures`.
    """
    paths, runs, named = _meant(arguments)
    results = Path(paths.results)
    if not runs:
        raise DataError(f"no finished run below {results / 'runs'}", hint="start one: harness run RECIPE.yaml")
    if named is not None:
        look(runs_to_replay(named) if len(named) > 2 else named, paths, progress)
        return [write_report(results, named)]
    look(runs_to_replay(runs), paths, progress)
    groups = [[run for runs_of_arm in arms.values() for run in runs_of_arm] for arms in suites(runs).values()]
    groups += [list(pair.runs) for pair in pair_runs([run for run in runs if not run.record.get("suite")])]
    return [write_report(results, group) for group in groups]


def look(runs: Sequence[Run], paths: Paths, progress: Progress) -> None:
    """Replay the choices of these runs where their stores are here; say of every other why not."""
    gated = [run for run in runs if run.gate is not None]
    if not gated:
        return
    from harness.analysis.replay import study
    from harness.analysis.selection import read_selection

    for run in gated:
        reason = study(run, paths, progress)
        if reason is not None:
            kept = " (what was found earlier is shown)" if read_selection(run.folder) is not None else ""
            progress.say(f"{run.id}: its choices cannot be looked at: {reason}{kept}")


def _meant(arguments: Sequence[str]) -> tuple[Paths, list[Run], list[Run] | None]:
    """The places, every finished run there, and the runs that were named; None where none was."""
    names, overrides = split(arguments)
    files = {name: load_suite(name) for name in names if find_suite(name) is not None}
    recipes = {name: load_recipe(name, overrides) for name in names if name not in files and _is_recipe(name)}
    asked = [*recipes.values(), *(suite.recipes(overrides)[0] for suite in files.values())]
    folders = {recipe.paths.results for recipe in asked}
    if len(folders) > 1:
        raise RecipeError(f"the recipes have different results folders: {', '.join(sorted(folders))}")
    paths = asked[0].paths if asked else load_paths(overrides)
    runs = load_runs(Path(paths.results))
    if not names:
        return paths, runs, None
    named: dict[str, Run] = {}
    for name in names:
        if name in files:
            found = _of_suite(files[name].name, runs, Path(paths.results))
        elif name in recipes:
            found = _of_recipe(recipes[name].run_id, runs, Path(paths.results))
        else:
            found = _find(name, runs, Path(paths.results))
        named |= {run.id: run for run in found}
    return paths, runs, list(named.values())


def _of_suite(name: str, runs: Sequence[Run], results: Path) -> list[Run]:
    members = suites(runs).get(name)
    if members is None:
        raise DataError(f"no finished run of suite {name} below {results / 'runs'}", hint="start it: harness run")
    return [run for arm in members.values() for run in arm]


def _of_recipe(run_id: str, runs: Sequence[Run], results: Path) -> list[Run]:
    found = [run for run in runs if run.id == run_id]
    if not found:
        raise DataError(f"{results / 'runs' / run_id} has no record", hint="finish the run first: harness run")
    return found


def _find(name: str, runs: Sequence[Run], results: Path) -> list[Run]:
    """The runs of a name: a run's id or the beginning of one, or a suite."""
    known = {run.id: run for run in runs}
    if name in known:
        return [known[name]]
    found = suites(runs)
    if name in found:
        return [run for members in found[name].values() for run in members]
    matching = [run for run in runs if run.id.startswith(name)]
    if len(matching) == 1:
        return matching
    if matching:
        raise RecipeError(
            f"{name} is the beginning of several runs: {', '.join(run.id for run in matching)}",
            hint="write more of the id of one of them, or name all of them",
        )
    what = f"{name}: neither a finished run nor a suite below {results / 'runs'}, nor a recipe"
    raise RecipeError(what + nearest(name, [*known, *found]), hint="`harness list runs` names what is there")


def _is_recipe(name: str) -> bool:
    try:
        find_recipe(name)
    except RecipeError:
        return False
    return True


__all__ = ["look", "make_figures", "make_reports"]
