"""Accuracy against what had been computed: the points of the figures, as data.

A curve is one run's evaluations in order of step. Several seeds of one arm of a suite make one curve with the spread
between the seeds; the paper's own points are kept apart from all that is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final

from harness.analysis.paper.numbers import GPUS, MODELS, load_paper
from harness.analysis.runs import Run, chance, mean_of_tasks
from harness.analysis.seeds import spread
from harness.analysis.statistics import Interval
from harness.common.errors import StaleError
from regate.selection import SELECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.analysis.runs import Evaluation

ARMS: Final = ("baseline", "baseline_equal_targets", "regate", "random")
"""Arms of a suite that are drawn unless others are asked for."""
LABELS: Final = {
    "baseline": "baseline",
    "baseline_equal_targets": "baseline, stopped at equal targets",
    "regate": "ReGATE",
    **{name: method.label for name, method in SELECTIONS.items() if name not in ("regate", "reference")},
    "lambda0": "no teacher (λ = 0)",
    "lambda1": "λ = 1",
    "reference_only": "reference loss only",
    "literal": "own position (Alg. 1 literally)",
    "loss_only": "loss mask only, nothing elided",
    "keep25": "ReGATE, keep 0.25",
}
"""How figures and reports call the known arms; any other arm by its own name."""
_PAPER_BENCHMARK: Final = "mvbench"


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: what had been computed before it, and the mean accuracy with its interval.

    With several seeds the amounts are means over the seeds, and so is the accuracy. `cpu_seconds` are those of a
    training on a CPU, where they are recorded.
    """

    step: int
    targets: float
    train_seconds: float
    device_hours: float
    accuracy: Interval
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a suite on one benchmark.

    Attributes:
        runs: its runs, in order of seed.
        seeds: the curve of each.
        points: mean over seeds at each step that all of them were evaluated at, with a t interval of the seeds;
            with one seed that seed's own points, whose interval is over the items.
    """

    name: str
    runs: tuple[Run, ...]
    seeds: tuple[tuple[Point, ...], ...]
    points: tuple[Point, ...]

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name)


@dataclass(frozen=True, slots=True)
class PaperPoint:
    """A row of the paper's Table 4: tokens as it counts them, its wall hours, accuracy in parts of one."""

    label: str
    tokens: float
    hours: float
    accuracy: float


def curve(run: Run, benchmark: str, *, intervals: bool = True) -> list[Point]:
    """The run's evaluations in order of step, as far as their mean can be given an interval.

    Args:
        intervals: False gives the score alone, as an interval of no width, and draws no item: among several seeds
            the seeds are the units, and no interval of one of them is shown.
    """
    points = []
    for evaluation in run.evaluations(benchmark):
        mean = mean_of_tasks(evaluation, run.items(evaluation)) if intervals else _score(evaluation)
        if mean is not None:
            done = evaluation["progress"]
            amounts = done["scored"], done["train_seconds"], done["train_device_hours"]
            points.append(Point(evaluation["step"], *amounts, mean, done.get("train_cpu_seconds")))
    return points


def _score(evaluation: Evaluation) -> Interval | None:
    if not any(task["in_mean"] for task in evaluation["tasks"]):
        return None
    value = float(evaluation["mean"]["value"])
    return Interval(value, value, value, int(evaluation["counts"]["scored"]))


def suites(runs: Iterable[Run]) -> dict[str, dict[str, tuple[Run, ...]]]:
    """suite -> arm -> runs in order of seed, of the runs that belong to a suite. Arms keep the order of `LABELS`.

    Raises:
        StaleError: an arm has two runs of one seed, so that they would count as two seeds.
    """
    by_suite: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        mark = run.record.get("suite")
        if mark is not None and run.trained:
            members = by_suite.setdefault(mark["name"], {}).setdefault(mark["arm"], [])
            twin = next((other for other in members if other.seed == run.seed), None)
            if twin is not None:
                raise StaleError(
                    f"suite {mark['name']}, {mark['arm']}: {twin.id} and {run.id} are both of seed {run.seed}",
                    hint="move the folder of the one that the suite no longer asks for out of the results",
                )
            members.append(run)
    order = list(LABELS)
    return {
        suite: {
            arm: tuple(sorted(arms[arm], key=lambda run: (run.seed, run.id)))
            for arm in sorted(arms, key=lambda arm: (order.index(arm) if arm in order else len(order), arm))
        }
        for suite, arms in sorted(by_suite.items())
    }


def arm_of(name: str, runs: Sequence[Run], benchmark: str) -> Arm | None:
    """An arm's curves, or None where no run of it was evaluated on the benchmark."""
    measured = [(run, tuple(curve(run, benchmark, intervals=len(runs) == 1))) for run in runs]
    measured = [(run, points) for run, points in measured if points]
    if not measured:
        return None
    if len(measured) == 1 < len(runs):
        measured = [(run, tuple(curve(run, benchmark))) for run, _ in measured]
    seeds = tuple(points for _, points in measured)
    return Arm(name, tuple(run for run, _ in measured), seeds, mean_curve(seeds))


def mean_curve(seeds: Sequence[Sequence[Point]]) -> tuple[Point, ...]:
    """The mean curve, at the steps that every seed has."""
    if len(seeds) == 1:
        return tuple(seeds[0])
    by_step = [{point.step: point for point in points} for points in seeds]
    common = sorted(set.intersection(*(set(points) for points in by_step)))
    return tuple(
        Point(
            step,
            fmean(points[step].targets for points in by_step),
            fmean(points[step].train_seconds for points in by_step),
            fmean(points[step].device_hours for points in by_step),
            _seed_interval([points[step].accuracy.value for points in by_step]),
            _mean_of_known([points[step].cpu_seconds for points in by_step]),
        )
        for step in common
    )


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _seed_interval(values: Sequence[float]) -> Interval:
    """The t interval of the mean over two seeds or more."""
    interval = spread(values).interval
    assert interval is not None
    return interval


def adapter_of(run: Run) -> str:
    return str(run.record["recipe"]["model"]["adapter"])


def scale_of(runs: Iterable[Run], benchmark: str) -> tuple[float, str]:
    """What a result is multiplied by to be shown, and its name with the unit."""
    for run in runs:
        evaluation = run.last(benchmark)
        if evaluation is not None and evaluation.get("scoring", {}).get("scale") == "points":
            return 1.0, "score (points)"
    return 100.0, "mean accuracy (%)"


def guess_of(runs: Iterable[Run], benchmark: str) -> float | None:
    """Mean accuracy of uniform guessing, from the first run that was evaluated."""
    for run in runs:
        evaluation = run.last(benchmark)
        if evaluation is not None:
            return chance(run, evaluation)
    return None


def several_devices(runs: Iterable[Run]) -> bool:
    """Whether device-hours say more than hours: some run held more than one device."""
    return any(run.totals["devices"] > 1 for run in runs)


def paper_points(adapter: str, benchmark: str) -> list[PaperPoint]:
    """The paper's Figure 1 for a model of it, from its Table 4 (v1); empty for any other model or benchmark."""
    model = MODELS.get(adapter)
    if model is None or benchmark != _PAPER_BENCHMARK:
        return []
    points = []
    for name, entry in load_paper().costs("table4_efficiency_v1").items():
        if name == model or name.startswith(f"{model}-"):
            label = "baseline" if name == model else name.removeprefix(f"{model}-").replace("-", ", ")
            points.append(PaperPoint(label, entry["tokens"], entry["train_hours"], entry["MVBench"] / 100))
    return points


def paper_hardware(adapter: str) -> str:
    """What the paper's hours were measured on."""
    name, number = GPUS[MODELS[adapter]]
    return f"{number}x {name}"


__all__ = [
    "ARMS",
    "LABELS",
    "Arm",
    "PaperPoint",
    "Point",
    "adapter_of",
    "arm_of",
    "curve",
    "guess_of",
    "mean_curve",
    "paper_hardware",
    "paper_points",
    "scale_of",
    "several_devices",
    "suites",
]
