"""Several runs of one arm: mean and spread over training seeds, and differences of two arms paired by seed.

A claim about a method is one about other seeds, so here the seed is the unit. The t interval takes the seeds'
values as normal; with three to ten seeds nothing weaker gives a useful interval. The bootstrap over seeds and then
over units stands beside it as a check; with few seeds it is too narrow, so verdicts never use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

from harness.analysis.statistics import LEVEL, POWER, RESAMPLES, SEED, Interval, generator_of, shared_differences
from harness.benchmarks.scoring import task_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from harness.benchmarks.scoring import Scoring, Units


@dataclass(frozen=True, slots=True)
class Spread:
    """One number of several seeds.

    Attributes:
        mean: over the seeds.
        sd: standard deviation between seeds (n - 1 in the divisor); None for one seed.
        low, high: t interval of the mean; None for one seed, whose spread is unknown and not zero.
        least, most: smallest and largest value of a seed.
        n: number of seeds.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    least: float
    most: float
    n: int

    @property
    def interval(self) -> Interval | None:
        """The t interval; `n` counts seeds. None for one seed."""
        if self.low is None or self.high is None:
            return None
        return Interval(self.mean, self.low, self.high, self.n)


def spread(values: Sequence[float], *, level: float = LEVEL) -> Spread:
    """Mean, standard deviation and t interval of the seeds' values.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("a spread needs at least one seed")
    n, mean = len(values), float(np.mean(values))
    least, most = float(min(values)), float(max(values))
    if n == 1:
        return Spread(mean, None, None, None, least, most, 1)
    sd = float(np.std(values, ddof=1))
    half = float(student.ppf(0.5 + level / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half, least, most, n)


def paired_spread(first: Mapping[int, float], second: Mapping[int, float], *, level: float = LEVEL) -> Spread | None:
    """`second` minus `first`, seed by seed, over the seeds that both have; None where they share none."""
    seeds = sorted(first.keys() & second.keys())
    return spread([second[seed] - first[seed] for seed in seeds], level=level) if seeds else None


def seeds_to_detect(sd: float, n: int, *, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true mean difference that n paired seeds with this standard deviation of their differences find,
    in its own direction, with this power; None for fewer than two seeds.

    Exact for normal differences: the t statistic of a true difference has the noncentral t distribution.
    """
    if n < 2:
        return None
    return _noncentrality(n, level, power) * sd / math.sqrt(n)


@cache
def _noncentrality(n: int, level: float, power: float) -> float:
    """The true difference, in standard errors, that a two-sided t test of n values finds with this power."""
    critical = float(student.ppf(0.5 + level / 2, n - 1))
    return float(brentq(lambda shift: float(nct.sf(critical, n - 1, shift)) - power, 0.1, 100.0))


def p_value(differences: Spread, bound: float = 0.0) -> float | None:
    """Two-sided p value of the mean difference against `bound`, by Student's t over the seeds: below 1 - level
    exactly where the t interval of that level leaves the bound out. None for one seed."""
    if differences.sd is None:
        return None
    away = abs(differences.mean - bound)
    if differences.sd == 0.0:
        return 1.0 if away == 0.0 else 0.0
    return float(2 * student.sf(away / (differences.sd / math.sqrt(differences.n)), differences.n - 1))


def two_level_difference(
    scoring: Scoring,
    first: Mapping[int, Units],
    second: Mapping[int, Units],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES // 5,
    seed: int = SEED,
) -> Interval | None:
    """Mean over seeds of the paired difference of scores, by a bootstrap over seeds and, within each drawn seed,
    over its units. None where the arms share no seed.

    Args:
        first, second: seed -> units of the arm's run with that seed.

    Raises:
        ValueError: the runs of a seed have no unit in common.
    """
    shared_seeds = sorted(first.keys() & second.keys())
    if not shared_seeds:
        return None
    strata = [shared_differences(first[key], second[key]) for key in shared_seeds]
    weights = [task_weights(scoring, {task: len(values) for task, values in tasks.items()}) for tasks in strata]
    generator = generator_of(seed, "seeds")
    count = len(shared_seeds)
    drawn_RS = generator.integers(count, size=(resamples, count))
    means_RS = np.empty((resamples, count))
    for place in range(count):
        where = drawn_RS == place
        means_RS[where] = _score_draws(strata[place], weights[place], int(where.sum()), generator)
    values = [
        sum(weight[task] * float(np.mean(differences)) for task, differences in tasks.items())
        for weight, tasks in zip(weights, strata, strict=True)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(means_RS.mean(axis=1), [tail, 1 - tail])
    return Interval(float(np.mean(values)), float(low), float(high), count)


def _score_draws(
    strata: Mapping[str, Sequence[float]], weights: Mapping[str, float], draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """float64 [draws]: the weighted sum of the means of resampled units."""
    total = np.zeros(draws)
    for task, values in strata.items():
        distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
        n = len(values)
        total += weights[task] * (generator.multinomial(n, counts / n, size=draws) @ distinct) / n
    return total


__all__ = ["Spread", "p_value", "paired_spread", "seeds_to_detect", "spread", "two_level_difference"]
