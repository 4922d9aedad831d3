"""Time to target: how much an arm needs to reach an accuracy that another arm has at its end.

The accuracy between two evaluated checkpoints is taken on the straight line between them. What comes before the first
checkpoint was not measured: an arm that is there already gives its first checkpoint as an upper bound, and says so.
An arm that never reaches the target has "not reached" as its result, which is no missing value.

The uncertainty is that of the items: both arms and all checkpoints are resampled with the same units, so a draw in
which the target is high is one in which the curve is high, too. A draw that does not reach counts as infinitely far.
With several seeds the seeds are the units instead (`over_seeds`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.analysis.seeds import Spread, spread
from harness.analysis.statistics import LEVEL, SEED, generator_of, resampled_rows
from harness.benchmarks.scoring import task_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from harness.benchmarks.scoring import Scoring, Units

RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a curve first has a value.

    Attributes:
        at: what had been spent there; None where it is not reached.
        low, high: interval of it; infinite where that part of the draws does not reach; None without resampling.
        share: part of the draws that reach it; None without resampling.
        at_first: whether the first evaluated checkpoint had it already, so that `at` is an upper bound.
    """

    at: float | None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    at_first: bool = False


@dataclass(frozen=True, slots=True)
class CrossingOverSeeds:
    """The same over seeds: how many reach the target, and the spread of what they needed.

    `spread` is None, undefined, unless all seeds reach the target.
    """

    reached: int
    n: int
    spread: Spread | None


def crossing(xs: Sequence[float], ys: Sequence[float], target: float) -> Crossing:
    """First x at which the straight lines between the points come to `target`, from below.

    Args:
        xs: what had been spent at each checkpoint, rising.
        ys: the score there.
    """
    crossed = _crossings(np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)[None], np.array([target]))
    first = bool(len(ys)) and ys[0] >= target
    return Crossing(float(crossed[0]) if math.isfinite(crossed[0]) else None, at_first=first)


def time_to_target(
    scoring: Scoring,
    spent: Mapping[str, Sequence[float]],
    curve: Sequence[Units],
    target: Units,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Crossing]:
    """For each kind of spending, where a run's curve reaches another run's final score.

    Args:
        spent: kind -> what had been spent at each checkpoint of the curve.
        curve: units of each checkpoint.
        target: units of the evaluation whose score is to be reached.

    Raises:
        ValueError: the evaluations have no unit in common.
    """
    columns = _columns([*curve, target])
    weights = task_weights(scoring, {task: len(rows) for task, rows in columns.items()})
    values_C = sum(weights[task] * rows_NC.mean(axis=0) for task, rows_NC in columns.items())
    draws_RC = np.zeros((resamples, len(curve) + 1))
    for task, rows_NC in columns.items():
        draws_RC += weights[task] * resampled_rows(rows_NC, resamples, generator_of(seed, task))
    crossings = {}
    for kind, xs in spent.items():
        point = crossing(xs, list(np.asarray(values_C)[:-1]), float(np.asarray(values_C)[-1]))
        drawn_R = _crossings(np.asarray(xs, dtype=np.float64), draws_RC[:, :-1], draws_RC[:, -1])
        tail = (1 - level) / 2
        low, high = np.quantile(drawn_R, [tail, 1 - tail], method="inverted_cdf")
        share = float(np.isfinite(drawn_R).mean())
        crossings[kind] = Crossing(point.at, float(low), float(high), share, point.at_first)
    return crossings


def over_seeds(crossings: Sequence[Crossing]) -> CrossingOverSeeds:
    """Several seeds' results together.

    Raises:
        ValueError: there is none.
    """
    if not crossings:
        raise ValueError("time to target over seeds needs at least one seed")
    reached = [seed_crossing.at for seed_crossing in crossings if seed_crossing.at is not None]
    all_reached = len(reached) == len(crossings)
    return CrossingOverSeeds(len(reached), len(crossings), spread(reached) if all_reached else None)


def _columns(evaluations: Sequence[Units]) -> dict[str, NDArray[np.float64]]:
    """task -> float64 [N, C]: each shared unit's value in each evaluation."""
    tasks = set.intersection(*(set(units) for units in evaluations))
    columns = {}
    for task in sorted(tasks):
        keys = sorted(set.intersection(*(set(units[task]) for units in evaluations)))
        if keys:
            columns[task] = np.array([[units[task][key] for units in evaluations] for key in keys])
    if not columns:
        raise ValueError("the two runs share no item")
    return columns


def _crossings(
    xs_C: NDArray[np.float64], ys_RC: NDArray[np.float64], target_R: NDArray[np.float64]
) -> NDArray[np.float64]:
    """float64 [R]: the first x of each row of points where it comes to its target; infinite where it does not."""
    # A whole curve of equal numbers may differ in the last bit of its sums.
    above_RC = ys_RC >= target_R[:, None] - 1e-12
    reached_R = above_RC.any(axis=1)
    first_R = above_RC.argmax(axis=1)
    before_R = np.maximum(first_R - 1, 0)
    rows = np.arange(len(ys_RC))
    low_R, high_R = ys_RC[rows, before_R], ys_RC[rows, first_R]
    rise_R = np.where(high_R > low_R, high_R - low_R, 1.0)
    part_R = np.where(first_R == 0, 1.0, np.clip((target_R - low_R) / rise_R, 0.0, 1.0))
    at_R = xs_C[before_R] + part_R * (xs_C[first_R] - xs_C[before_R])
    return np.where(reached_R, at_R, np.inf)


__all__ = ["Crossing", "CrossingOverSeeds", "crossing", "over_seeds", "time_to_target"]
