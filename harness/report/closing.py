"""The end of a command: what its runs showed, in six lines. Pure functions of records, as the tables are."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

from harness.analysis import verdicts
from harness.analysis.arms import group_by_arm, scored
from harness.analysis.curves import suites as suites_of
from harness.analysis.runs import (
    asked_otherwise,
    benchmarks_of,
    detectable,
    difference_of_means,
    machine,
    pair_runs,
    shown_scale,
)
from harness.analysis.seeds import spread
from harness.analysis.summary import (
    flops_reduction,
    positions_reduction,
    shared_machine,
    targets_reduction,
    time_is_comparable,
    train_cpu_seconds,
    train_seconds,
)
from harness.config.load import RECIPE, shipped
from harness.config.recipe import Paths
from harness.report import table as render
from harness.report.tables.accuracy import mean_cell

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from harness.analysis.arms import Arms
    from harness.analysis.runs import Pair, Run
    from harness.analysis.statistics import Interval
    from harness.config.suite import Suite

LABELS: Final = ("verdict", "accuracy", "saved", "time", "files", "next")
"""What each of the six lines says."""
COPIED: Final = ("files", "next")
"""Lines that people copy from."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The runs that one closing is about: a suite, a pair, or one run.

    Attributes:
        name: what a command calls them.
        runs: all of them, also those of earlier commands.
    """

    name: str
    runs: tuple[Run, ...]
    pair: Pair | None = None
    arms: Arms | None = None


def endings(finished: Sequence[Run], ids: Collection[str], suites: Mapping[str, Suite]) -> list[Ending]:
    """What the runs of a command belong to, each once.

    Args:
        finished: every finished run of the results folder.
        ids: of the command's runs.
        suites: name -> definition.

    Raises:
        DataError, StaleError: two runs of an arm have the same seed.
    """
    answer = []
    for name, members in suites_of(finished).items():
        runs = tuple(run for of_arm in members.values() for run in of_arm)
        if any(run.id in ids for run in runs):
            arms = group_by_arm(name, runs, suites.get(name))
            answer.append(Ending(f"suites/{name}" if name in suites else name, runs, arms=arms))
    for pair in pair_runs([run for run in finished if run.suite is None]):
        if any(run.id in ids for run in pair.runs):
            answer.append(Ending(pair.name, pair.runs, pair=pair))
    return answer


def closing(
    ending: Ending, suites: Mapping[str, Suite], *, report: Path, results: Path, next_command: str
) -> tuple[tuple[str, str], ...]:
    """(label, sentence) of each of `LABELS`.

    Args:
        report: the HTML file of these runs.
        next_command: what can be given next.
    """
    if ending.arms is not None:
        told = _suite(ending.arms, suites.get(ending.arms.name))
        records = f"{len(ending.runs)} records below {results / 'runs'}"
    else:
        assert ending.pair is not None
        told = _pair(ending.pair)
        records = ", ".join(str(results / "runs" / run.id / "record.json") for run in ending.runs[-1:])
    return tuple(zip(LABELS, (*told, f"{report}; {records}", next_command), strict=True))


def next_command(ending: Ending, results: Path) -> str:
    """What can be given next: the other arm of a pair where it is shipped, else what shows more of these runs."""
    elsewhere = "" if str(results) == Paths().results else f" paths.results={results}"
    if ending.arms is not None:
        return f"harness tables {ending.name}{elsewhere}"
    pair = ending.pair
    assert pair is not None
    if pair.baseline is not None and pair.gated is not None:
        return f"harness compare {pair.baseline.id} {pair.gated.id}{elsewhere}"
    ends = ("_baseline", "_regate") if pair.gated is None else ("_regate", "_baseline")
    other = pair.name.removesuffix(ends[0]) + ends[1]
    if pair.name.endswith(ends[0]) and other in shipped(RECIPE):
        return f"harness run {other}{elsewhere}"
    return f"harness tables{elsewhere}"


# --- a pair ----------------------------------------------------------------------------------------------


def _pair(pair: Pair) -> tuple[str, str, str, str]:
    run = pair.gated or pair.runs[0]
    benchmark = next(iter(benchmarks_of([run])), None)
    return _pair_verdict(pair, benchmark), _pair_accuracy(pair, benchmark), _pair_saved(run), _pair_time(pair)


def _pair_verdict(pair: Pair, benchmark: str | None) -> str:
    if pair.gated is None:
        return f"{pair.name} is done; no gated run of its recipe is here to compare it with."
    if pair.baseline is None:
        return f"{pair.name} is done; its baseline is not here, so that nothing can be said of what the gate costs."
    if benchmark is None:
        return f"{pair.name} is done and was asked nothing (evaluate.benchmarks is empty)."
    otherwise = asked_otherwise(pair.baseline, pair.gated, benchmark)
    if otherwise:
        return f"No verdict: the two runs were asked otherwise on {benchmark} ({', '.join(otherwise)})."
    difference = difference_of_means(pair, benchmark)
    if difference is None:
        return f"No verdict on {benchmark}: the answers of both runs after their last step are not kept."
    return _in_words(pair, benchmark, difference)


def _in_words(pair: Pair, benchmark: str, difference: Interval) -> str:
    assert pair.baseline is not None
    last = pair.baseline.last(benchmark)
    scale = shown_scale(last) if last else 100.0
    against = f"than {pair.baseline.name} on {benchmark}"
    if difference.low > 0 or difference.high < 0:
        word = "better" if difference.low > 0 else "worse"
        return f"{pair.name} answers {word} {against}, by {abs(scale * difference.value):.1f} points (one seed)."
    smallest = detectable(pair, benchmark)
    missed = "" if smallest is None else f"; one of less than {scale * smallest:.1f} points could be missed"
    return f"Undecided: no difference from {pair.baseline.name} is shown on {benchmark}{missed}."


def _pair_accuracy(pair: Pair, benchmark: str | None) -> str:
    run = pair.gated or pair.runs[0]
    last = None if benchmark is None else run.last(benchmark)
    if benchmark is None or last is None:
        return "nothing was scored"
    unit = " points" if shown_scale(last) == 1.0 else " %"
    text = f"{benchmark} {mean_cell(run, last).text}{unit}"
    base = pair.baseline.last(benchmark) if pair.baseline and pair.gated else None
    if pair.baseline is not None and base is not None:
        difference = difference_of_means(pair, benchmark)
        shown = render.accuracy(difference, scale=shown_scale(last), signed=True).text
        text += f"; baseline {mean_cell(pair.baseline, base).text}; difference {shown} points"
    more = len(benchmarks_of([run])) - 1
    return text + (f"; {more} more in the report" if more else "")


def _pair_saved(run: Run) -> str:
    if run.gate is None:
        return f"nothing: every one of {run.totals['counts']['target']:,} targets was computed"
    counts = run.totals["counts"]
    return (
        f"{render.percent(targets_reduction([run])).text} of the targets ({counts['scored']:,} of "
        f"{counts['target']:,} computed), {_positions_and_flops([run])}"
    )


def _positions_and_flops(runs: Sequence[Run]) -> str:
    """Where layers differ in what they compute, every position is computed somewhere, and FLOPs alone say what was
    saved."""
    positions = positions_reduction(runs)
    shown = f"{render.percent(positions).text} of the positions, " if positions else ""
    return f"{shown}{render.percent(flops_reduction(runs)).text} of the FLOPs"


def _pair_time(pair: Pair) -> str:
    parts = [f"{run.arm} {_time([run])}" for run in pair.runs]
    machines = dict.fromkeys(machine(run) for run in pair.runs)
    return f"training {', '.join(parts)} ({'; '.join(machines)}; {_basis(pair.runs)})"


def _time(runs: Sequence[Run]) -> str:
    return render.train_time(train_seconds(runs), train_cpu_seconds(runs)).text


def _basis(runs: Sequence[Run]) -> str:
    basis = "wall time without data loading, writing and evaluation"
    if time_is_comparable(runs):
        return basis
    shared = any(shared_machine(run) for run in runs)
    reason = "a run shared its machine" if shared else "CPU seconds or one kind of machine are missing"
    return f"{basis}; not to be compared: {reason}"


# --- a suite ---------------------------------------------------------------------------------------------


def _suite(arms: Arms, suite: Suite | None) -> tuple[str, str, str, str]:
    runs = [run for by_seed in arms.runs.values() for run in by_seed.values()]
    benchmark = next(iter(benchmarks_of(runs)), None)
    gated = [arm for arm, by_seed in arms.runs.items() if any(run.gate for run in by_seed.values())]
    main = "regate" if "regate" in gated else next(iter(gated), None)
    return (
        _suite_verdict(arms, suite, main, benchmark),
        _suite_accuracy(arms, main, benchmark),
        _suite_saved(arms, main),
        _suite_time(arms, main),
    )


def _suite_verdict(arms: Arms, suite: Suite | None, main: str | None, benchmark: str | None) -> str:
    if benchmark is None:
        return "No verdict: the runs were asked nothing."
    if suite is None or not suite.claims:
        return f"Suite {arms.name} states no claim; what {main or 'its arms'} showed is below."
    words: dict[str, int] = {}
    for claim in suite.claims:
        difference = arms.difference(claim.first, claim.second, benchmark)
        interval = difference.interval if difference else None
        verdict = verdicts.of_claim(claim.expect, interval, margin=claim.margin)
        words[verdict] = words.get(verdict, 0) + 1
    counted = ", ".join(f"{words[verdict]} {verdict}" for verdict in verdicts.ORDER if verdict in words)
    return f"Of {len(suite.claims)} claims on {benchmark}: {counted} (each by its own interval, uncorrected)."


def _suite_accuracy(arms: Arms, main: str | None, benchmark: str | None) -> str:
    if benchmark is None or main is None:
        return "nothing was compared"
    evaluation = next((e for run in arms.runs[main].values() if (e := run.last(benchmark))), None)
    scale = shown_scale(evaluation) if evaluation else 100.0
    scores = [list(arms.scores(arm, benchmark).values()) for arm in (main, arms.baseline)]
    means = [render.accuracy(spread(v).interval, scale=scale, value=fmean(v)).text if v else "none" for v in scores]
    difference = arms.difference(main, arms.baseline, benchmark)
    shown = render.accuracy(difference.interval if difference else None, scale=scale, signed=True).text
    seeds = difference.n if difference else 0
    text = f"{benchmark}, {main} {means[0]}, {arms.baseline} {means[1]}; difference {shown} points over {seeds} seeds"
    return text if main != arms.baseline else f"{benchmark}, {main} {means[0]}"


def _suite_saved(arms: Arms, main: str | None) -> str:
    if main is None:
        return "nothing: no arm has a gate"
    runs = list(arms.runs[main].values())
    targets = render.count(round(fmean(scored(run) for run in runs))).text
    return (
        f"{main}: {render.percent(targets_reduction(runs)).text} of the targets ({targets} computed), "
        f"{_positions_and_flops(runs)}; means over the seeds"
    )


def _suite_time(arms: Arms, main: str | None) -> str:
    names = [name for name in dict.fromkeys((main, arms.baseline)) if name in arms.runs and name is not None]
    parts = [f"{name} {_time(list(arms.runs[name].values()))}" for name in names]
    machines = dict.fromkeys(machine(run) for name in names for run in arms.runs[name].values())
    runs = [run for name in names for run in arms.runs[name].values()]
    return f"training {', '.join(parts)} (medians over the seeds; {'; '.join(machines)}; {_basis(runs)})"


__all__ = ["COPIED", "LABELS", "Ending", "closing", "endings", "next_command"]
