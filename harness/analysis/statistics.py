"""Intervals and tests for accuracies: what a difference between two runs is worth.

Everything here works on the per-item results of an evaluation and on nothing else. Values of an item are numbers
where 1 is right and 0 is wrong; other bounded scores work wherever the method does not count successes.

What the intervals say: they hold for other items of the same kind, with the trained model fixed. They do not
contain the spread between training seeds, which is of the same size or larger: a claim about a method needs
several seeds. Items are taken as independent; several questions on one clip are not quite.

What is drawn is a *unit* (`harness.benchmarks.scoring`): an item, or the items that are scored as one thing, such as
the two questions on an MME image. Drawing the questions of such an image one by one would make the interval too
narrow.

Resampling draws, within each stratum (a task), as many units as it has, with replacement. For a stratum with few
distinct values this is one multinomial draw of their counts, which is the same distribution and much cheaper.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import ndtri
from scipy.stats import binomtest

from harness.benchmarks.scoring import overall, task_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from harness.benchmarks.scoring import Scoring, Units

LEVEL: Final = 0.95
POWER: Final = 0.8
RESAMPLES: Final = 10_000
FLIPS: Final = 100_000
"""Draws of a sign-flip test."""
SEED: Final = 0
_CELLS: Final = 4_000_000
"""Numbers held at once while resampling, to bound the memory."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the two-sided interval around it. `n` counts the items behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact McNemar test of two runs on the same items.

    Attributes:
        only_first, only_second: items that exactly one of the two got right.
        n: shared items.
        p: two-sided p value; 1 when no item differs.
    """

    only_first: int
    only_second: int
    n: int
    p: float


def wilson(correct: int, n: int, *, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927): never leaves [0, 1], sound for small n and near the
    ends, where the usual value +- 1.96 standard errors is not.

    Raises:
        ValueError: unless 0 <= correct <= n and n >= 1.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"wilson needs 0 <= correct <= n and n >= 1, got {correct} of {n}")
    z = _z(level)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is the value itself; rounding must not put it beside.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return Interval(p, low, high, n)


def mean_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """Interval of the mean of one task: Wilson's when every value is 0 or 1, else the percentile bootstrap."""
    if not values:
        raise ValueError("an interval needs at least one value")
    if all(value in (0, 1) for value in values):
        return wilson(round(sum(values)), len(values), level=level)
    return macro_interval({"": values}, level=level, resamples=resamples, seed=seed)


def macro_interval(
    strata: Mapping[str, Sequence[float]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Interval of the unweighted mean of the strata's means, by a percentile bootstrap stratified by task.

    The draws of a stratum depend on the seed and on the stratum's name alone, so the order of the mapping does
    not matter.

    Raises:
        ValueError: there is no stratum, or one is empty.
    """
    return _weighted_interval(strata, None, level=level, resamples=resamples, seed=seed)


def score_interval(
    scoring: Scoring, units: Units, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval:
    """A benchmark's score with its interval: units are drawn, within each task.

    Raises:
        ValueError: there is no task, or one without a unit.
    """
    strata = {task: list(by_unit.values()) for task, by_unit in units.items()}
    weights = task_weights(scoring, {task: len(values) for task, values in strata.items()})
    drawn = _weighted_interval(strata, weights, level=level, resamples=resamples, seed=seed)
    return Interval(overall(scoring, units), drawn.low, drawn.high, drawn.n)


def score_difference(
    scoring: Scoring,
    first: Units,
    second: Units,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Score of `second` minus that of `first` on the units both have, with a paired bootstrap interval.

    Raises:
        ValueError: the two have no unit in common.
    """
    strata = shared_differences(first, second)
    weights = task_weights(scoring, {task: len(values) for task, values in strata.items()})
    return _weighted_interval(strata, weights, level=level, resamples=resamples, seed=seed)


def standard_error(scoring: Scoring, strata: Mapping[str, Sequence[float]]) -> float:
    """Standard error of the score (or of a difference, from the paired differences of the units); 0 where a task
    has one unit.

    Args:
        strata: task -> a value for each unit.
    """
    weights = task_weights(scoring, {task: len(values) for task, values in strata.items()})
    parts = [
        weights[task] ** 2 * np.var(values, ddof=1) / len(values)
        for task, values in strata.items()
        if len(values) > 1
    ]
    return math.sqrt(float(sum(parts)))


def minimum_detectable(standard_error: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test of this level finds with this power: 2.80 standard errors
    of the difference at 95 % and 80 % (normal approximation)."""
    return (_z(level) + float(ndtri(power))) * standard_error


def shared_differences(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]
) -> dict[str, list[float]]:
    """task -> second minus first of every unit both have, in order of the unit's name; tasks without one left out.

    Raises:
        ValueError: the two have no unit in common.
    """
    strata: dict[str, list[float]] = {}
    for task in sorted(first.keys() & second.keys()):
        keys = sorted(first[task].keys() & second[task].keys())
        if keys:
            strata[task] = [second[task][key] - first[task][key] for key in keys]
    if not strata:
        raise ValueError("the two runs share no item")
    return strata


def paired_difference(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Macro mean of `second` minus that of `first` on the items both have, with a paired bootstrap interval.

    Args:
        first, second: task -> item key -> value.

    An item is drawn together with both of its results, so what makes an item hard cancels out. Only tasks and
    keys that both have are used; `n` of the result counts them.

    Raises:
        ValueError: the two have no item in common.
    """
    strata = shared_differences(first, second)
    return macro_interval(strata, level=level, resamples=resamples, seed=seed)


def mcnemar(first: Mapping[str, float], second: Mapping[str, float]) -> McNemar:
    """Exact McNemar test on the shared items of one task: a two-sided sign test of the items that differ.

    Raises:
        ValueError: no shared item, or a value that is neither 0 nor 1.
    """
    keys = first.keys() & second.keys()
    if not keys:
        raise ValueError("the two runs share no item")
    if any(side[key] not in (0, 1) for key in keys for side in (first, second)):
        raise ValueError("McNemar's test needs items that are right (1) or wrong (0)")
    return sign_test(first, second)


def sign_test(first: Mapping[str, float], second: Mapping[str, float]) -> McNemar:
    """Exact two-sided sign test on the shared units of one task: of those that differ, how many are better in each.
    For right and wrong it is McNemar's test; it holds for graded answers and for units of several items, too.

    Raises:
        ValueError: no shared unit.
    """
    keys = first.keys() & second.keys()
    if not keys:
        raise ValueError("the two runs share no item")
    only_first = sum(first[key] > second[key] for key in keys)
    only_second = sum(second[key] > first[key] for key in keys)
    differing = only_first + only_second
    p = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, len(keys), p)


def sign_flip_test(
    scoring: Scoring, first: Units, second: Units, *, flips: int = FLIPS, seed: int = SEED
) -> float:
    """Two-sided p value of the score difference itself: were the two runs equally good, the difference of each unit
    would have either sign with equal probability.

    The statistic is that of `score_difference`, so score and test weigh the tasks alike. Units of a task whose
    differences have the same size are flipped together, by the number of them that turn positive. Exact where that is
    a single binomial, for right and wrong answers of one task McNemar's test; otherwise drawn, counting the observed
    difference among the draws, so that p is never below 1 / (flips + 1).

    Raises:
        ValueError: the two have no unit in common.
    """
    strata = shared_differences(first, second)
    weights = task_weights(scoring, {task: len(values) for task, values in strata.items()})
    groups: list[tuple[str, float, int, int]] = []  # task, weighted size, units, of them positive
    for task, values in sorted(strata.items()):
        array = np.asarray(values, dtype=np.float64)
        for size in np.unique(np.abs(array[array != 0])):
            positive, negative = int((array == size).sum()), int((array == -size).sum())
            groups.append((task, weights[task] * float(size) / len(values), positive + negative, positive))
    if not groups:
        return 1.0
    if len(groups) == 1:
        return float(binomtest(groups[0][3], groups[0][2], 0.5).pvalue)
    observed = abs(sum(size * (2 * positive - count) for _, size, count, positive in groups))
    draws_R = np.zeros(flips)
    for task, size, count, _ in groups:
        draws_R += size * (2 * generator_of(seed, f"{task} {size!r}").binomial(count, 0.5, size=flips) - count)
    # Sums of equal numbers in another order may differ in the last bit.
    as_far = int((np.abs(draws_R) >= observed - 1e-12 * max(1.0, observed)).sum())
    return (as_far + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values corrected for their number (Holm 1979): the family-wise error stays below the level, whichever of
    the hypotheses are true and however they depend on each other."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def resampled_rows(
    rows_NC: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """float64 [resamples, C]: means over samples of N rows drawn with replacement, a row always as a whole.

    Equal rows are drawn together by their number, which is the same distribution.
    """
    distinct_KC, counts_K = np.unique(rows_NC, axis=0, return_counts=True)
    n, size = len(rows_NC), max(1, _CELLS // len(counts_K))
    parts = [
        generator.multinomial(n, counts_K / n, size=min(size, resamples - start)) @ distinct_KC / n
        for start in range(0, resamples, size)
    ]
    return np.concatenate(parts)


def generator_of(seed: int, name: str) -> np.random.Generator:
    """Draws that depend on the seed and a name alone."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _weighted_interval(
    strata: Mapping[str, Sequence[float]],
    weights: Mapping[str, float] | None,
    *,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """Interval of a weighted sum of the strata's means; without weights, of their mean."""
    if not strata or not all(len(values) for values in strata.values()):
        raise ValueError("a macro mean needs at least one stratum and at least one item in each")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in strata.items()}
    weight = dict.fromkeys(arrays, 1.0) if weights is None else dict(weights)
    divisor = len(arrays) if weights is None else 1
    value = sum(weight[name] * array.mean() for name, array in arrays.items()) / divisor
    draws_R = np.zeros(resamples)
    for name in sorted(arrays):
        draws_R += weight[name] * _resampled_means(arrays[name], resamples, generator_of(seed, name))
    low, high = _percentiles(draws_R / divisor, level)
    return Interval(float(value), low, high, sum(len(array) for array in arrays.values()))


def _resampled_means(
    values: NDArray[np.float64], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """float64 [resamples]: means of samples of len(values) items drawn with replacement."""
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    rows = max(1, _CELLS // len(distinct))
    parts = [
        generator.multinomial(n, counts / n, size=min(rows, resamples - start)) @ distinct / n
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _percentiles(draws_R: NDArray[np.float64], level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    return float(low), float(high)


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    return float(ndtri(0.5 + level / 2))


__all__ = [
    "LEVEL",
    "Interval",
    "McNemar",
    "generator_of",
    "holm",
    "macro_interval",
    "mcnemar",
    "mean_interval",
    "minimum_detectable",
    "paired_difference",
    "resampled_rows",
    "score_difference",
    "score_interval",
    "shared_differences",
    "sign_flip_test",
    "sign_test",
    "standard_error",
    "wilson",
]
