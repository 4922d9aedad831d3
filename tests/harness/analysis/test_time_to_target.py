"""Time to target: by hand, at the ends, and with an interval that covers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.analysis.time_to_target import Crossing, crossing, over_seeds, time_to_target
from harness.benchmarks.scoring import Scoring

Units = dict[str, dict[str, float]]


def test_the_crossing_lies_on_the_line_between_two_checkpoints() -> None:
    assert crossing([10, 20, 40], [0.2, 0.4, 0.8], 0.5) == Crossing(25.0)
    assert crossing([10, 20, 40], [0.2, 0.4, 0.8], 0.4).at == 20.0
    assert crossing([10, 20, 40], [0.2, 0.4, 0.8], 0.9).at is None
    first = crossing([10, 20, 40], [0.6, 0.4, 0.8], 0.5)
    assert (first.at, first.at_first) == (10.0, True)
    # The first time counts, even where the curve falls again.
    assert crossing([1, 2, 3, 4], [0.0, 0.5, 0.2, 0.9], 0.5).at == 2.0


def _answers(rng: np.random.Generator, levels: list[float], n: int) -> np.ndarray:
    """float [n, levels]: right or wrong; an item is hard at every checkpoint."""
    return ((0.7 * rng.random((n, 1)) + 0.3 * rng.random((n, len(levels)))) < levels).astype(float)


def _curve(rng: np.random.Generator, levels: list[float], n: int) -> list[Units]:
    checkpoints = _answers(rng, levels, n).T.tolist()
    return [{"t": dict(zip(map(str, range(n)), answers, strict=True))} for answers in checkpoints]


def test_the_interval_covers_the_crossing_of_the_expected_curve() -> None:
    levels, xs = [0.3, 0.45, 0.6, 0.75], [10.0, 20.0, 30.0, 40.0]
    rng = np.random.default_rng(3)
    means = _answers(rng, [*levels, 0.55], 300_000).mean(axis=0).tolist()
    truth = crossing(xs, means[:4], means[4]).at
    assert truth is not None
    trials, hits = 200, 0
    for trial in range(trials):
        *curve, target = _curve(rng, [*levels, 0.55], 300)
        reached = time_to_target(Scoring(), {"x": xs}, curve, target, resamples=400, seed=trial)["x"]
        assert reached.low is not None
        assert reached.high is not None
        hits += reached.low <= truth <= reached.high
    assert 0.91 < hits / trials < 0.985


def test_not_reached_is_a_result() -> None:
    rng = np.random.default_rng(4)
    *curve, target = _curve(rng, [0.2, 0.3, 0.5, 0.9], 400)
    reached = time_to_target(Scoring(), {"targets": [1.0, 2.0, 3.0]}, curve, target)["targets"]
    assert reached == Crossing(None, math.inf, math.inf, 0.0)
    # Nearly reached: some of the draws are.
    *curve, target = _curve(rng, [0.2, 0.3, 0.5, 0.51], 400)
    near = time_to_target(Scoring(), {"targets": [1.0, 2.0, 3.0]}, curve, target)["targets"]
    assert near.share is not None
    assert 0 < near.share < 1
    assert near.high == math.inf


def test_every_kind_of_spending_is_read_off_the_same_draws() -> None:
    rng = np.random.default_rng(5)
    *curve, target = _curve(rng, [0.3, 0.6, 0.5], 200)
    crossings = time_to_target(Scoring(), {"a": [1.0, 2.0], "b": [100.0, 200.0]}, curve, target)
    assert crossings["a"].at is not None
    assert crossings["b"].at == pytest.approx(100 * crossings["a"].at)
    assert crossings["b"].low == pytest.approx(100 * (crossings["a"].low or 0))
    assert crossings["a"].share == crossings["b"].share
    again = time_to_target(Scoring(), {"a": [1.0, 2.0]}, curve, target)
    assert again["a"] == crossings["a"]
    with pytest.raises(ValueError, match="share no item"):
        time_to_target(Scoring(), {"a": [1.0]}, curve[:1], {"other": {"x": 1.0}})


def test_over_seeds_one_that_does_not_reach_leaves_no_mean() -> None:
    whole = over_seeds([Crossing(1.0), Crossing(3.0)])
    assert whole.spread is not None
    assert (whole.reached, whole.n, whole.spread.mean) == (2, 2, 2.0)
    part = over_seeds([Crossing(1.0), Crossing(None)])
    assert (part.reached, part.n, part.spread) == (1, 2, None)
    with pytest.raises(ValueError, match="at least one seed"):
        over_seeds([])
