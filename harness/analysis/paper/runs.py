"""Our runs in the paper's terms: which of its rows a run is, and what it gives for that row.

A run is one of the paper's when its recipe is that of the row in every field that decides on the training
(`paper_definitions`); nothing is read from its name. Several runs of one row differ in their seed: then the numbers
are means over seeds and the seeds are the units of the intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Final

from harness.analysis.paper.definitions import (
    BASELINE,
    EXTENDED,
    FAST,
    LAMBDA_0,
    LAMBDA_1,
    nearest_row,
    reason,
    shipped_definitions,
)
from harness.analysis.paper.numbers import GPUS, MODELS, PAPER_NAMES, TABLES, Paper, in_points
from harness.analysis.runs import (
    Run,
    asked_otherwise,
    mean_of_tasks,
    same_questions,
    scored_units,
    scoring_of,
    teacher_cost,
)
from harness.analysis.seeds import paired_spread, spread
from harness.analysis.statistics import Interval, score_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from harness.analysis.paper.definitions import Definition


@dataclass(frozen=True, slots=True)
class Measured:
    """A number of ours for one cell of the paper.

    Attributes:
        value: parts of one, points, or the unit of a cost; None where no run gives it.
        interval: 95 %, over items for one run and over seeds for several; None where the items are not kept.
        half_width: of the 95 % interval of the difference to one other such run, unpaired; None without an interval.
        runs: ids of the runs behind it.
        left_out: pairs of runs that are none, because the two were asked otherwise.
    """

    value: float | None = None
    interval: Interval | None = None
    half_width: float | None = None
    runs: tuple[str, ...] = ()
    left_out: int = 0


MISSING: Final = Measured()


@dataclass(frozen=True, slots=True)
class PaperRuns:
    """Our runs and the paper.

    Attributes:
        paper: the transcribed paper.
        runs: (model, arm) -> seed -> run.
        evaluated: weights of the paper's models that were evaluated and not trained here.
        left_out: which runs of the paper's models are none of its rows, and why.
        remarks: what is to be known of runs that are: other samples counted than the paper states.
    """

    paper: Paper
    runs: Mapping[tuple[str, str], Mapping[int, Run]]
    evaluated: tuple[Run, ...] = ()
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What every table that shows these runs says below itself."""
        return (*self.remarks, *(f"Left out: {text}." for text in self.left_out))

    def models(self) -> set[str]:
        """The paper's models that a run here has."""
        return {model for model, _ in self.runs} | {MODELS[_adapter(run)] for run in self.evaluated}

    def of(self, model: str, arm: str) -> dict[int, Run]:
        return dict(self.runs.get((model, arm), {}))

    def cost(self, model: str, arm: str, number: Callable[[Run], float | None]) -> Measured:
        """The mean over seeds of a number of each run; it has no interval."""
        runs = self.of(model, arm).values()
        values = [value for run in runs if (value := number(run)) is not None]
        return Measured(mean(values), runs=tuple(run.id for run in runs)) if values else MISSING

    def ratio(self, model: str, arm: str, other: str, number: Callable[[Run], float | None]) -> Measured:
        """The cost of one arm as a part of another's."""
        first, second = self.cost(model, arm, number), self.cost(model, other, number)
        if first.value is None or not second.value:
            return MISSING
        return Measured(first.value / second.value, runs=(*first.runs, *second.runs))

    def score(self, model: str, arm: str, benchmark: str) -> Measured:
        """The score after the last step."""
        evaluated = {seed: run for seed, run in self.of(model, arm).items() if run.last(benchmark)}
        ids = tuple(run.id for run in evaluated.values())
        values = [_value(run, benchmark) for run in evaluated.values()]
        if not values:
            return MISSING
        if len(values) > 1:
            over = spread(values)
            return Measured(over.mean, over.interval, _to_another(over.interval, len(values)), ids)
        interval = _score_interval(next(iter(evaluated.values())), benchmark)
        return Measured(values[0], interval, _to_another(interval, 1), ids)

    def difference(self, model: str, arm: str, other: str, benchmark: str) -> Measured:
        """Score of `arm` minus that of `other`: paired by seed, or by item where there is one run of each. A seed
        whose two runs were asked otherwise is left out, and counted."""
        first, second = self.of(model, arm), self.of(model, other)
        evaluated = [s for s in first if s in second and first[s].last(benchmark) and second[s].last(benchmark)]
        shared = [seed for seed in evaluated if not asked_otherwise(first[seed], second[seed], benchmark)]
        left_out = len(evaluated) - len(shared)
        if not shared:
            return Measured(left_out=left_out)
        ids = tuple(run.id for seed in shared for run in (first[seed], second[seed]))
        if len(shared) > 1:
            over = paired_spread(
                {seed: _value(second[seed], benchmark) for seed in shared},
                {seed: _value(first[seed], benchmark) for seed in shared},
            )
            assert over is not None
            return Measured(over.mean, over.interval, runs=ids, left_out=left_out)
        first_run, second_run = first[shared[0]], second[shared[0]]
        interval = _difference_interval(first_run, second_run, benchmark)
        value = _value(first_run, benchmark) - _value(second_run, benchmark)
        return Measured(value, interval, runs=ids, left_out=left_out)

    def average(self, model: str, arm: str, other: str | None = None) -> Measured:
        """Unweighted mean over the paper's benchmarks in per cent, or of the difference to another arm; missing
        unless a seed has every one of them.

        Over several seeds the mean is taken within a seed, and the interval is one over the seeds: a seed that is
        good on one benchmark is good on others. With one seed the units are the items, and those of two benchmarks
        are independent.
        """
        names = [
            benchmark.name for columns in TABLES.values() for benchmark in columns if not in_points(benchmark)
        ]
        first = self.of(model, arm)
        second = first if other is None else self.of(model, other)
        evaluated = [
            seed
            for seed, run in first.items()
            if seed in second and all(run.last(name) and second[seed].last(name) for name in names)
        ]
        seeds = [s for s in evaluated if not any(asked_otherwise(first[s], second[s], name) for name in names)]
        left_out = len(evaluated) - len(seeds)
        if not seeds:
            return Measured(left_out=left_out)
        arms = (first,) if other is None else (first, second)
        ids = tuple(runs[seed].id for seed in seeds for runs in arms)
        means = [_mean_value(first[seed], names) for seed in seeds]
        if other is not None:
            means = [value - _mean_value(second[seed], names) for seed, value in zip(seeds, means, strict=True)]
        if len(seeds) > 1:
            interval = spread(means).interval
        elif other is None:
            interval = _mean_of_independent([_score_interval(first[seeds[0]], name) for name in names])
        else:
            runs = first[seeds[0]], second[seeds[0]]
            interval = _mean_of_independent([_difference_interval(*runs, name) for name in names])
        return Measured(mean(means), interval, _to_another(interval, len(seeds)), ids, left_out)


def paper_runs(
    paper: Paper, runs: Iterable[Run], definitions: tuple[Definition, ...] | None = None
) -> PaperRuns:
    """Sort runs into the paper's rows. Of several runs of a row with one seed the first by id is taken.

    Args:
        definitions: of the rows; None takes those of the shipped recipes.
    """
    by_row: dict[tuple[str, str], dict[int, Run]] = {}
    left_out, remarks = [], []
    rows = shipped_definitions() if definitions is None else definitions
    known = [run for run in sorted(runs, key=lambda run: run.id) if _adapter(run) in MODELS]
    for run in (run for run in known if run.trained):
        model = MODELS[_adapter(run)]
        row, differing = nearest_row(rows, model, run.record["recipe"])
        if run.record["recipe"]["evaluate"].get("limit") is not None:
            left_out.append(f"{run.id}: evaluated on a part of the questions (evaluate.limit)")
        elif row is None:
            left_out.append(f"{run.id}: the paper does not state what its {model} was trained on")
        elif differing:
            left_out.append(f"{run.id}: {reason(row, differing)}")
        elif run.seed in by_row.setdefault((model, row.arm), {}):
            left_out.append(f"{run.id}: a second {row.arm} run of {model} with seed {run.seed}")
        else:
            by_row[model, row.arm][run.seed] = run
            remarks += _other_samples(row, run)
    evaluated = tuple(run for run in known if not run.trained and _on_the_papers_benchmarks(run))
    sorted_runs = {key: value for key, value in by_row.items() if value}
    return PaperRuns(paper, sorted_runs, evaluated, tuple(left_out), tuple(remarks))


def _other_samples(row: Definition, run: Run) -> list[str]:
    """That a run was trained on another number of samples than the paper states, where both are known."""
    plan = run.record.get("plan") or {}
    if row.samples is None or row.subset or plan.get("samples_basis") != "counted":
        return []
    counted = plan["samples"] + plan.get("excluded", 0)
    if counted == row.samples:
        return []
    return [f"{run.id}: {counted:,} samples were counted, where the paper states {row.samples:,}."]


def targets(run: Run) -> float:
    return float(run.totals["counts"]["scored"])


def device_hours(run: Run) -> float:
    return float(run.totals["device_hours"]["train"])


def wall_hours(run: Run) -> float:
    return float(run.totals["seconds"]["train"]) / 3600


def teacher_hours(run: Run) -> float | None:
    return teacher_cost(run)["device_hours"]


def memory_gb(run: Run) -> float | None:
    peak = run.totals["peak_bytes"]
    return peak / 1e9 if peak else None


def papers_machine(runs: Iterable[Run], model: str) -> bool:
    """Whether all of these runs had the paper's number of the paper's GPUs."""
    name, number = GPUS[model]
    machines = [(run.record["provenance"]["hardware"]["gpus"], run.totals["devices"]) for run in runs]
    return bool(machines) and all(
        n == number and all(name in gpu["name"] for gpu in gpus) and gpus for gpus, n in machines
    )


def _on_the_papers_benchmarks(run: Run) -> bool:
    """Whether it was asked anything that the paper reports."""
    return any(evaluation["benchmark"] in PAPER_NAMES for evaluation in run.record["evaluations"])


def _adapter(run: Run) -> str:
    return str(run.record["recipe"]["model"]["adapter"])


def _value(run: Run, benchmark: str) -> float:
    evaluation = run.last(benchmark)
    assert evaluation is not None
    return float(evaluation["mean"]["value"])


def _score_interval(run: Run, benchmark: str) -> Interval | None:
    """Over the items of the last evaluation; None where they are not kept."""
    evaluation = run.last(benchmark)
    assert evaluation is not None
    return mean_of_tasks(evaluation, run.items(evaluation))


def _difference_interval(first: Run, second: Run, benchmark: str) -> Interval | None:
    """First minus second, paired by item; None where the items are not kept."""
    both = same_questions(second, first, benchmark)
    if both is None:
        return None
    evaluation, subtracted, units = both
    return score_difference(
        scoring_of(evaluation), scored_units(evaluation, subtracted), scored_units(evaluation, units)
    )


def _mean_value(run: Run, benchmarks: Sequence[str]) -> float:
    return mean(_value(run, benchmark) for benchmark in benchmarks)


def _mean_of_independent(intervals: Sequence[Interval | None]) -> Interval | None:
    """The interval of the mean of independent numbers; None where one of them has none."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    half = math.sqrt(sum(((interval.high - interval.low) / 2) ** 2 for interval in known)) / len(known)
    value = mean(interval.value for interval in known)
    return Interval(value, value - half, value + half, sum(interval.n for interval in known))


def _to_another(interval: Interval | None, n: int) -> float | None:
    """Half width of the interval of the difference between the mean of n runs, which has this interval, and one other
    such run: that run's own variance is n times the mean's."""
    return None if interval is None else math.sqrt(n + 1) * (interval.high - interval.low) / 2


__all__ = [
    "BASELINE",
    "EXTENDED",
    "FAST",
    "LAMBDA_0",
    "LAMBDA_1",
    "Measured",
    "PaperRuns",
    "device_hours",
    "memory_gb",
    "paper_runs",
    "papers_machine",
    "targets",
    "teacher_hours",
    "wall_hours",
]
