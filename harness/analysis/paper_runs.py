"""Our runs in the paper's terms: which of its rows a run is, and what it gives for that row.

A run is one of the paper's when its model and its gate's settings are; nothing is read from its name. Several runs of
one row differ in their seed: then the numbers are means over seeds and the seeds are the units of the intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.paper import GPUS, MODELS, PAPER_NAMES, TABLES, Paper, in_points
from harness.analysis.runs import Run, mean_of_tasks, same_questions, scored_units, scoring_of, teacher_cost
from harness.analysis.seeds import paired_spread, seeds_to_detect, spread
from harness.analysis.statistics import Interval, minimum_detectable, score_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

BASELINE: Final = "baseline"
EXTENDED: Final = "extended"
FAST: Final = "fast"
LAMBDA_0: Final = "lambda 0"
LAMBDA_1: Final = "lambda 1"
FAST_BELOW: Final = 0.8
"""A gated run of fewer steps than this part of the baseline's is the paper's "fast" one (59.5 % of the steps)."""
_Z: Final = 1.959963984540054
_SETTINGS: Final = {
    "cycle_steps": "cycle_steps",
    "dense_steps": "dense_steps",
    "keep_ratio": "p_sparse",
    "warmup_steps": "warmup_steps",
    "ema_decay": "ema_decay",
}
"""Key of the gate -> key of the paper's hyper-parameters; the weight of the reference loss distinguishes the rows."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A number of ours for one cell of the paper.

    Attributes:
        value: parts of one, points, or the unit of a cost; None where no run gives it.
        interval: 95 %, over items for one run and over seeds for several; None where the items are not kept.
        detectable: smallest difference that two such runs would show; None without an interval.
        runs: ids of the runs behind it.
    """

    value: float | None = None
    interval: Interval | None = None
    detectable: float | None = None
    runs: tuple[str, ...] = ()


MISSING: Final = Measured()


@dataclass(frozen=True, slots=True)
class PaperRuns:
    """Our runs and the paper.

    Attributes:
        paper: the transcribed paper.
        runs: (model, arm) -> seed -> run.
        evaluated: weights of the paper's models that were evaluated and not trained here.
        left_out: which runs of the paper's models are none of its rows, and why.
    """

    paper: Paper
    runs: Mapping[tuple[str, str], Mapping[int, Run]]
    evaluated: tuple[Run, ...] = ()
    left_out: tuple[str, ...] = ()

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
            apart = seeds_to_detect((over.sd or 0.0) * math.sqrt(len(values) + 1), len(values))
            return Measured(over.mean, over.interval, apart, ids)
        run = next(iter(evaluated.values()))
        evaluation = run.last(benchmark)
        assert evaluation is not None
        interval = mean_of_tasks(evaluation, run.items(evaluation))
        return Measured(values[0], interval, _two_such(interval), ids)

    def difference(self, model: str, arm: str, other: str, benchmark: str) -> Measured:
        """Score of `arm` minus that of `other`: paired by seed, or by item where there is one run of each."""
        first, second = self.of(model, arm), self.of(model, other)
        shared = [s for s in first if s in second and first[s].last(benchmark) and second[s].last(benchmark)]
        if not shared:
            return MISSING
        ids = tuple(run.id for seed in shared for run in (first[seed], second[seed]))
        if len(shared) > 1:
            over = paired_spread(
                {seed: _value(second[seed], benchmark) for seed in shared},
                {seed: _value(first[seed], benchmark) for seed in shared},
            )
            assert over is not None
            return Measured(over.mean, over.interval, runs=ids)
        first_run, second_run = first[shared[0]], second[shared[0]]
        both = same_questions(second_run, first_run, benchmark)
        interval = None
        if both is not None:
            evaluation, theirs, ours = both
            interval = score_difference(
                scoring_of(evaluation), scored_units(evaluation, theirs), scored_units(evaluation, ours)
            )
        return Measured(_value(first_run, benchmark) - _value(second_run, benchmark), interval, runs=ids)

    def average(self, model: str, arm: str, other: str | None = None) -> Measured:
        """Unweighted mean over the paper's benchmarks in per cent, or of the difference to another arm; missing
        unless every one of them was evaluated. Its interval takes the benchmarks as independent."""
        names = [
            benchmark.name for columns in TABLES.values() for benchmark in columns if not in_points(benchmark)
        ]
        parts = [
            self.score(model, arm, name) if other is None else self.difference(model, arm, other, name)
            for name in names
        ]
        values = [part.value for part in parts if part.value is not None]
        if len(values) < len(names):
            return MISSING
        ids = tuple(dict.fromkeys(run for part in parts for run in part.runs))
        intervals = [part.interval for part in parts if part.interval is not None]
        if len(intervals) < len(names):
            return Measured(mean(values), runs=ids)
        half = math.sqrt(sum(((interval.high - interval.low) / 2) ** 2 for interval in intervals)) / len(names)
        interval = Interval(mean(values), mean(values) - half, mean(values) + half, sum(e.n for e in intervals))
        return Measured(mean(values), interval, _two_such(interval), ids)


def paper_runs(paper: Paper, runs: Iterable[Run]) -> PaperRuns:
    """Sort runs into the paper's rows. Of several runs of a row with one seed the first by id is taken."""
    by_row: dict[tuple[str, str], dict[int, Run]] = {}
    left_out = []
    known = [run for run in sorted(runs, key=lambda run: run.id) if _adapter(run) in MODELS]
    candidates = [run for run in known if run.trained]
    for run in candidates:
        model = MODELS[_adapter(run)]
        arm = _arm(paper.hyperparameters, run, _longest(candidates, run))
        if run.record["recipe"]["evaluate"].get("limit") is not None:
            left_out.append(f"{run.id}: evaluated on a part of the questions (evaluate.limit)")
        elif arm is None:
            left_out.append(f"{run.id}: its gate has not the paper's settings")
        elif run.seed in by_row.setdefault((model, arm), {}):
            left_out.append(f"{run.id}: a second {arm} run of {model} with seed {run.seed}")
        else:
            by_row[model, arm][run.seed] = run
    evaluated = tuple(run for run in known if not run.trained and _on_the_papers_benchmarks(run))
    return PaperRuns(paper, {key: value for key, value in by_row.items() if value}, evaluated, tuple(left_out))


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


def _longest(candidates: Iterable[Run], run: Run) -> int:
    """Steps of the longest baseline of this model, or of its longest run where there is no baseline."""
    same = [candidate for candidate in candidates if _adapter(candidate) == _adapter(run)]
    free = [candidate for candidate in same if candidate.gate is None]
    return max(int(candidate.totals["steps"]) for candidate in (free or same))


def _arm(paper: Mapping[str, Any], run: Run, longest: int) -> str | None:
    """The paper's row, or None where the gate is none of the paper's."""
    gate: dict[str, Any] | None = run.gate
    if gate is None:
        return BASELINE if int(run.totals["steps"]) >= FAST_BELOW * longest else None
    as_printed = all(gate.get(key) == paper[name] for key, name in _SETTINGS.items())
    if not as_printed or gate.get("selection") != "regate" or gate.get("execution") == "loss_only":
        return None
    teacher = (gate.get("reference") or {}).get("model")
    weight = gate.get("reference_weight")
    if teacher is not None:
        return f"teacher {str(teacher).rpartition('/')[2].removesuffix('-Instruct')}" if weight == 0.5 else None
    if weight == 0.0:
        return LAMBDA_0
    if weight == 1.0:
        return LAMBDA_1
    if weight != paper["reference_weight"]:
        return None
    return FAST if int(run.totals["steps"]) < FAST_BELOW * longest else EXTENDED


def _value(run: Run, benchmark: str) -> float:
    evaluation = run.last(benchmark)
    assert evaluation is not None
    return float(evaluation["mean"]["value"])


def _two_such(interval: Interval | None) -> float | None:
    """Smallest difference that two runs with this interval each would show, unpaired."""
    if interval is None:
        return None
    return minimum_detectable(math.sqrt(2) * (interval.high - interval.low) / (2 * _Z))


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
