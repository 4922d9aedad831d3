"""Intervals cover what they say they cover, and the exact tests equal their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from harness.analysis.statistics import macro_interval, mcnemar, mean_interval, paired_difference, wilson


@settings(deadline=None)
@given(n=st.integers(1, 500), data=st.data())
def test_wilson_equals_scipy_and_stays_in_range(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    interval = wilson(correct, n)
    scipy = binomtest(correct, n).proportion_ci(method="wilson")
    assert interval.low == pytest.approx(scipy.low, abs=1e-12)
    assert interval.high == pytest.approx(scipy.high, abs=1e-12)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize("p", [0.25, 0.5, 0.83, 0.95])
def test_wilson_covers_by_exact_enumeration(p: float) -> None:
    n = 150
    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n).low <= p <= wilson(k, n).high)
    assert 0.93 < covered < 0.97


def test_macro_interval_covers_the_macro_mean() -> None:
    rng = np.random.default_rng(1)
    truth = {"a": 0.9, "b": 0.7, "c": 0.45, "d": 0.3}
    mean = sum(truth.values()) / len(truth)
    sizes = {"a": 40, "b": 150, "c": 90, "d": 60}
    trials = 1000
    hits = 0
    for trial in range(trials):
        strata = {name: (rng.random(sizes[name]) < p).astype(float).tolist() for name, p in truth.items()}
        interval = macro_interval(strata, resamples=1000, seed=trial)
        hits += interval.low <= mean <= interval.high
    # Nominal 0.95; three standard errors of the simulation are 0.021.
    assert 0.925 < hits / trials < 0.975


def test_paired_interval_covers_and_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(2)
    trials, n, hits, widths, unpaired = 600, 200, 0, [], []
    # Items share their difficulty; the second run is right a little more often.
    difficulty = rng.normal(size=200_000)
    truth = float(np.mean(_normal_cdf((0.5 - difficulty) / 0.5)) - np.mean(_normal_cdf((0.3 - difficulty) / 0.5)))
    for trial in range(trials):
        hard = rng.normal(size=n)
        first = {str(i): float(0.3 + 0.5 * rng.normal() > hard[i]) for i in range(n)}
        second = {str(i): float(0.5 + 0.5 * rng.normal() > hard[i]) for i in range(n)}
        interval = paired_difference({"t": first}, {"t": second}, resamples=800, seed=trial)
        hits += interval.low <= truth <= interval.high
        widths.append(interval.high - interval.low)
        alone = mean_interval(list(first.values()))
        unpaired.append(math.sqrt(2) * (alone.high - alone.low))
    assert 0.92 < hits / trials < 0.98
    assert np.mean(widths) < 0.85 * np.mean(unpaired)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return np.asarray(ndtr(x))


def test_the_bootstrap_is_that_of_the_items() -> None:
    """The multinomial short cut has the same spread as drawing items one by one."""
    values = [0.0] * 13 + [1.0] * 37
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.choice(values, size=(20_000, 50)).mean(axis=1))
    interval = macro_interval({"t": values})
    assert interval.low == pytest.approx(drawn[500], abs=0.021)
    assert interval.high == pytest.approx(drawn[19_499], abs=0.021)
    assert interval.value == pytest.approx(0.74)


def test_macro_interval_is_fixed_by_the_seed_and_not_by_the_order() -> None:
    rng = np.random.default_rng(3)
    strata = {"a": rng.random(30).tolist(), "b": rng.random(50).tolist()}
    turned = dict(reversed(strata.items()))
    assert macro_interval(strata) == macro_interval(turned)
    assert macro_interval(strata) != macro_interval(strata, seed=1)


def test_macro_mean_weighs_tasks_alike_whatever_their_size() -> None:
    interval = macro_interval({"large": [1.0] * 1000, "small": [0.0] * 10})
    assert interval.value == 0.5
    assert interval.n == 1010


def test_mean_interval_of_scores_that_are_not_right_or_wrong() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=400)
    interval = mean_interval(values.tolist())
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)


def test_paired_difference_uses_shared_items_only() -> None:
    first = {"t": {"a": 1.0, "b": 0.0, "only": 0.0}, "gone": {"x": 1.0}}
    second = {"t": {"a": 1.0, "b": 1.0, "other": 0.0}}
    interval = paired_difference(first, second)
    assert (interval.value, interval.n) == (0.5, 2)
    with pytest.raises(ValueError, match="share no item"):
        paired_difference(first, {"t": {"z": 1.0}})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_equals_its_definition(pairs: list[tuple[bool, bool]]) -> None:
    first = {str(i): float(a) for i, (a, _) in enumerate(pairs)}
    second = {str(i): float(b) for i, (_, b) in enumerate(pairs)}
    result = mcnemar(first, second)
    b = sum(a and not c for a, c in pairs)
    c = sum(d and not a for a, d in pairs)
    assert (result.only_first, result.only_second, result.n) == (b, c, len(pairs))
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    assert result.p == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first).p == pytest.approx(result.p)


def test_bad_input_is_refused() -> None:
    for correct, n in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="wilson needs"):
            wilson(correct, n)
    with pytest.raises(ValueError, match="level"):
        wilson(1, 2, level=95)
    with pytest.raises(ValueError, match="at least one"):
        macro_interval({"a": []})
    with pytest.raises(ValueError, match="at least one"):
        macro_interval({})
    with pytest.raises(ValueError, match="right"):
        mcnemar({"a": 0.5}, {"a": 1.0})
