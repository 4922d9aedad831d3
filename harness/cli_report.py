"""What `figures` and `report` work on: which runs are meant, and looking at their gates' choices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli_args import split
from harness.curves import suites
from harness.errors import DataError, RecipeError
from harness.explain import nearest
from harness.load import find_recipe, load_paths, load_recipe
from harness.pairs import load_runs, pair_runs
from harness.report import looked_at, write_report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.pairs import Run
    from harness.progress import Progress
    from harness.recipe import Paths


def make_figures(arguments: Sequence[str], arms: Sequence[str], progress: Progress) -> list[Path]:
    """Look at the choices of the runs named, or of those that are shown (`looked_at`), and draw everything.

    Raises:
        RecipeError: a name is neither a run nor a suite nor a recipe.
        DataError: a run has no record.
        StaleError: data or stores are not those of a run.
    """
    from harness.figures import build_figures

    paths, runs, named = _meant(arguments)
    look(named if named is not None else looked_at(runs), paths, progress)
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
        look(looked_at(named) if len(named) > 2 else named, paths, progress)
        return [write_report(results, named)]
    look(looked_at(runs), paths, progress)
    groups = [[run for runs_of_arm in arms.values() for run in runs_of_arm] for arms in suites(runs).values()]
    groups += [list(pair.runs) for pair in pair_runs([run for run in runs if not run.record.get("suite")])]
    return [write_report(results, group) for group in groups]


def look(runs: Sequence[Run], paths: Paths, progress: Progress) -> None:
    """Replay the choices of these runs where their stores are here; say of every other why not."""
    gated = [run for run in runs if run.gate is not None]
    if not gated:
        return
    from harness.replay import study
    from harness.selection import read_selection

    for run in gated:
        reason = study(run, paths, progress)
        if reason is not None:
            kept = " (what was found earlier is shown)" if read_selection(run.folder) is not None else ""
            progress.say(f"{run.id}: its choices cannot be looked at: {reason}{kept}")


def _meant(arguments: Sequence[str]) -> tuple[Paths, list[Run], list[Run] | None]:
    """The places, every finished run there, and the runs that were named; None where none was."""
    names, overrides = split(arguments)
    recipes = {name: load_recipe(name, overrides) for name in names if _is_recipe(name)}
    folders = {recipe.paths.results for recipe in recipes.values()}
    if len(folders) > 1:
        raise RecipeError(f"the recipes have different results folders: {', '.join(sorted(folders))}")
    paths = next((recipe.paths for recipe in recipes.values()), None) or load_paths(overrides)
    runs = load_runs(Path(paths.results))
    if not names:
        return paths, runs, None
    named: dict[str, Run] = {}
    for name in names:
        wanted = recipes[name].run_id if name in recipes else name
        named |= {run.id: run for run in _find(wanted, runs, Path(paths.results), is_id=name in recipes)}
    return paths, runs, list(named.values())


def _find(name: str, runs: Sequence[Run], results: Path, *, is_id: bool) -> list[Run]:
    """The runs of a name: a run's id or the beginning of one, or a suite."""
    known = {run.id: run for run in runs}
    if name in known:
        return [known[name]]
    if is_id:
        raise DataError(f"{results / 'runs' / name} has no record", hint="finish the run first: harness run")
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
