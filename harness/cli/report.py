"""The answers of `figures` and `report`: the gates' choices replayed, and what is drawn and written of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.choices.selection import runs_to_replay
from harness.analysis.curves import suites
from harness.analysis.runs import benchmarks_of, pair_runs
from harness.cli.run_names import known_suites, resolve_runs
from harness.common.errors import DataError, RecipeError
from harness.report.pages.build import write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.analysis.runs import Pair, Run
    from harness.cli.run_names import NamedRuns
    from harness.common.progress import Progress
    from harness.config.recipe import Paths
    from harness.evaluation.task import MultipleChoiceTask


def make_figures(
    arguments: Sequence[str], arms: Sequence[str], progress: Progress, *, attention: bool = False
) -> list[Path]:
    """Replay the choices of the runs named, or of those that are shown (`runs_to_replay`), and draw everything.

    Args:
        arms: of suites, to draw.
        attention: read where these runs and their baselines look, too: their kept models are loaded.

    Raises:
        RecipeError: a name is neither a run nor a suite nor a recipe, or attention is asked for and no run is gated.
        DataError: a run has no record, or there is none.
        StaleError: data or stores are not those of a run.
    """
    from harness.report.figures.build import build_figures, check_arms

    meant = resolve_runs(arguments)
    _require_finished(meant)
    check_arms(arms, suites(meant.finished))
    shown = meant.runs if meant.named else runs_to_replay(meant.finished)
    replay_choices(shown, meant.paths, progress)
    look_at_flips(shown, meant.finished, meant.paths, progress)
    if attention:
        look_at_attention(shown, meant.finished, meant.paths, progress)
    return build_figures(Path(meant.paths.results), arms=arms, definitions=known_suites(arguments))


def make_reports(arguments: Sequence[str], progress: Progress) -> list[Path]:
    """One report of all the runs that are named; without a name one for each suite, and one for each pair.

    Raises:
        As `make_figures`.
    """
    meant = resolve_runs(arguments)
    results, finished, definitions = Path(meant.paths.results), meant.finished, known_suites(arguments)
    _require_finished(meant)
    if meant.named:
        shown = runs_to_replay(meant.runs) if len(meant.runs) > 2 else meant.runs
        replay_choices(shown, meant.paths, progress)
        look_at_flips(shown, finished, meant.paths, progress)
        return [write_report(results, meant.runs, definitions)]
    replay_choices(runs_to_replay(finished), meant.paths, progress)
    look_at_flips(runs_to_replay(finished), finished, meant.paths, progress)
    groups = [[run for runs in arms.values() for run in runs] for arms in suites(finished).values()]
    groups += [list(pair.runs) for pair in pair_runs([run for run in finished if not run.record.get("suite")])]
    return [write_report(results, group, definitions) for group in groups]


def _require_finished(meant: NamedRuns) -> None:
    if not meant.finished:
        raise DataError(
            f"no finished run below {Path(meant.paths.results) / 'runs'}", hint="start one: harness run RECIPE.yaml"
        )


def replay_choices(runs: Sequence[Run], paths: Paths, progress: Progress) -> None:
    """Replay the choices of these runs where their stores are at hand; say of every other why not."""
    gated = [run for run in runs if run.gate is not None]
    if not gated:
        return
    from harness.analysis.choices.replay import study
    from harness.analysis.choices.selection import read_selection

    for run in gated:
        reason = study(run, paths, progress)
        _say_why(progress, run, reason, "its choices cannot be replayed", read_selection, "replay")


def look_at_flips(runs: Sequence[Run], finished: Sequence[Run], paths: Paths, progress: Progress) -> None:
    """Find what the gates of these runs left out of the words that items ask for; say of every one why not where it
    cannot be found.

    Args:
        finished: where a run's baseline is looked for.
    """
    from harness.analysis.choices.needed_words import read_needed, study

    for pair, run, tasks in _asked_pairs(runs, finished):
        reason = study(pair, tasks, paths, progress)
        _say_why(progress, run, reason, "what its items ask for cannot be looked up", read_needed, "figure")


def look_at_attention(runs: Sequence[Run], finished: Sequence[Run], paths: Paths, progress: Progress) -> None:
    """Read where the models of these gated runs and of their baselines look; say of every one why not where that
    cannot be read.

    Args:
        finished: where a run's baseline is looked for.

    Raises:
        RecipeError: none of the runs has a gate.
    """
    from harness.analysis.attention.study import read_attention, study

    if all(run.gate is None for run in runs):
        raise RecipeError(
            "--attended sets a gated run beside its baseline, and no run that is shown has a gate",
            hint="name a gated run: harness figures --attended RUN",
        )
    for pair, run, tasks in _asked_pairs(runs, finished):
        reason = study(pair, tasks, paths, progress)
        _say_why(progress, run, reason, "its attention cannot be read", read_attention, "figure")


def _say_why(
    progress: Progress, run: Run, reason: str | None, what: str, read: Callable[[Path], Any], shown: str
) -> None:
    """Why a study of a run could not be made, where it could not, and whether an earlier one is shown.

    Args:
        read: what an earlier one left in the run's folder, or None.
        shown: what is made of it.
    """
    if reason is not None:
        earlier = "" if read(run.folder) is None else f" (an earlier {shown} is shown)"
        progress.say(f"{run.id}: {what}: {reason}{earlier}")


def _asked_pairs(
    runs: Sequence[Run], finished: Sequence[Run]
) -> Iterator[tuple[Pair, Run, dict[str, MultipleChoiceTask]]]:
    """The gated ones of these runs in their pairs, with the questions of this project that they were asked."""
    gated = {run.id for run in runs if run.gate is not None}
    if not gated:
        return
    from harness.evaluation.evaluate import kept_task
    from harness.evaluation.task import MultipleChoiceTask

    for pair in pair_runs(finished):
        run = pair.gated
        if run is None or run.id not in gated:
            continue
        kept = {name: kept_task(run.folder, name) for name in benchmarks_of([run])}
        yield pair, run, {name: task for name, task in kept.items() if isinstance(task, MultipleChoiceTask)}
