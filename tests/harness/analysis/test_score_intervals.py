"""Intervals of published scores: units are drawn and not items, weights are those of the score."""

from __future__ import annotations

import ast
import collections
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, ttest_1samp, ttest_rel

from harness.analysis.seeds import p_value, paired_spread, seeds_to_detect, spread, two_level_difference
from harness.analysis.statistics import (
    holm,
    macro_interval,
    mcnemar,
    minimum_detectable,
    score_difference,
    score_interval,
    shared_differences,
    sign_flip_test,
    sign_test,
    standard_error,
)
from harness.benchmarks.scoring import Scoring, overall

if TYPE_CHECKING:
    from collections.abc import Callable

MME = Scoring(unit="mme", combine="sum", scale="points")
POOLED = Scoring(combine="pooled")


def _images(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong on the two questions of each of n images; an image is easy or hard for both."""
    skill = rng.beta(1.2, 0.8, size=n)
    answers = (rng.random((n, 2)) < skill[:, None]).astype(float)
    return answers[:, 0], answers[:, 1]


def test_units_keep_their_coverage_where_items_of_one_image_belong_together() -> None:
    """The MME score by units covers as it says; drawing its questions one by one does not."""
    rng = np.random.default_rng(5)
    first, second = _images(rng, 400_000)
    per_unit = 100 * ((first + second) / 2 + first * second)
    truth = 2 * float(per_unit.mean())
    trials, by_unit, by_item = 600, 0, 0
    for trial in range(trials):
        units, questions = {}, {}
        for task in ("existence", "colour"):
            a, b = _images(rng, 60)
            both = 100 * a * b
            units[task] = {str(i): float(v) for i, v in enumerate(100 * (a + b) / 2 + both)}
            # The same score as a mean over questions: what belongs to the image is given to each of them.
            questions[task] = [*(100 * a + both).tolist(), *(100 * b + both).tolist()]
        interval = score_interval(MME, units, resamples=600, seed=trial)
        naive = macro_interval(questions, resamples=600, seed=trial)
        assert 2 * naive.value == pytest.approx(interval.value)
        by_unit += interval.low <= truth <= interval.high
        by_item += 2 * naive.low <= truth <= 2 * naive.high
    assert 0.925 < by_unit / trials < 0.975
    assert by_item / trials < 0.88


def test_pooled_scores_cover_and_weigh_units_alike() -> None:
    rng = np.random.default_rng(6)
    truth = (300 * 0.9 + 60 * 0.4) / 360
    trials, hits = 800, 0
    for trial in range(trials):
        units = {
            name: {str(i): float(v) for i, v in enumerate(rng.random(n) < p)}
            for name, n, p in (("large", 300, 0.9), ("small", 60, 0.4))
        }
        interval = score_interval(POOLED, units, resamples=600, seed=trial)
        hits += interval.low <= truth <= interval.high
    assert interval.value == pytest.approx(overall(POOLED, units))
    assert 0.925 < hits / trials < 0.975


def test_the_difference_of_scores_is_that_of_the_shared_units() -> None:
    first = {"a": {"1": 50.0, "2": 200.0, "only": 0.0}, "b": {"1": 200.0}}
    second = {"a": {"1": 200.0, "2": 200.0}, "b": {"1": 50.0}, "c": {"1": 200.0}}
    difference = score_difference(MME, first, second)
    assert difference.value == pytest.approx(75.0 - 150.0)
    assert difference.n == 3
    assert shared_differences(first, second) == {"a": [150.0, 0.0], "b": [-150.0]}


def test_the_standard_error_is_the_spread_of_the_bootstrap() -> None:
    rng = np.random.default_rng(7)
    strata = {"a": rng.random(200).tolist(), "b": (rng.random(80) < 0.4).astype(float).tolist()}
    interval = macro_interval(strata)
    assert standard_error(Scoring(), strata) == pytest.approx((interval.high - interval.low) / (2 * 1.96), rel=0.03)


def test_the_minimum_detectable_difference_is_found_four_times_in_five() -> None:
    error = 0.01
    smallest = minimum_detectable(error)
    assert smallest == pytest.approx(2.8016 * error, rel=1e-4)
    drawn = np.random.default_rng(8).normal(smallest, error, size=200_000)
    assert (np.abs(drawn) > 1.959964 * error).mean() == pytest.approx(0.8, abs=0.005)
    # With few seeds the t distribution asks for more.
    few = seeds_to_detect(error, 5)
    assert few is not None
    assert few > minimum_detectable(error / math.sqrt(5))
    rows = np.random.default_rng(9).normal(few, error, size=(20_000, 5))
    half = 2.776445 * rows.std(axis=1, ddof=1) / math.sqrt(5)
    assert (rows.mean(axis=1) > half).mean() == pytest.approx(0.8, abs=0.01)
    assert seeds_to_detect(error, 1) is None
    assert seeds_to_detect(0.0, 5) == 0.0


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_so_many_seeds_find_the_detectable_difference_four_times_in_five(n: int) -> None:
    """Also with two seeds, where adding two quantiles of t would give a power of .73."""
    smallest = seeds_to_detect(1.0, n)
    assert smallest is not None
    rows = np.random.default_rng(n).normal(smallest, 1.0, size=(60_000, n))
    detected = [ttest_1samp(rows, 0.0, axis=1, alternative="greater").pvalue < 0.025]
    assert np.mean(detected) == pytest.approx(0.8, abs=0.006)


def test_p_values_of_seeds_are_students_and_agree_with_the_interval() -> None:
    rng = np.random.default_rng(14)
    for bound in (0.0, -0.02):
        for values in rng.normal(-0.01, 0.02, size=(40, 5)):
            differences = spread(values.tolist())
            p = p_value(differences, bound)
            assert p == pytest.approx(ttest_1samp(values, bound).pvalue)
            assert differences.low is not None
            assert differences.high is not None
            assert p is not None
            assert (p < 0.05) == (bound < differences.low or bound > differences.high)
    assert p_value(spread([0.1])) is None
    assert (p_value(spread([0.1, 0.1])), p_value(spread([0.0, 0.0]))) == (0.0, 1.0)


def test_holm_corrects_for_the_number_of_hypotheses() -> None:
    """Holm's rule by hand: each p times the number of hypotheses that are left, never less than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6]) == [0.6]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    # Five true hypotheses: one of them is called wrong in one table of twenty, not in one of four.
    p_values = np.random.default_rng(15).random(size=(20_000, 5))
    wrong = np.mean([min(holm(row)) < 0.05 for row in p_values.tolist()])
    assert wrong == pytest.approx(0.05, abs=0.005)


def _tasks(counts: dict[str, tuple[int, int, int]]) -> tuple[dict[str, dict[str, float]], ...]:
    """Right answers of two runs: task -> items, of them right in the second alone, and in the first alone."""
    first, second = {}, {}
    for task, (n, gained, lost) in counts.items():
        first[task] = {str(i): float(i < lost) for i in range(n)}
        second[task] = {str(i): float(lost <= i < lost + gained) for i in range(n)}
    return first, second


def test_the_test_weighs_the_tasks_as_the_score_does() -> None:
    """One large task loses, three small ones gain: the mean of the tasks is better, the pooled answers are worse."""
    first, second = _tasks({"large": (1000, 20, 90), "a": (40, 10, 2), "b": (40, 10, 2), "c": (40, 10, 2)})
    difference = score_difference(Scoring(), first, second)
    assert difference.value == pytest.approx(0.1325)
    assert difference.low > 0
    assert sign_flip_test(Scoring(), first, second) < 0.001
    pooled = [
        {f"{task}.{key}": value for task, units in side.items() for key, value in units.items()}
        for side in (first, second)
    ]
    against = sign_test(*pooled)
    assert (against.only_first, against.only_second) == (96, 50), "counting answers would say the opposite"
    assert against.p < 0.05
    # Pooled scoring weighs items alike, and there the second run is worse.
    assert score_difference(POOLED, first, second).value < 0
    assert sign_flip_test(POOLED, first, second) == pytest.approx(against.p, rel=0.25)


def test_sign_flips_are_those_of_scipy_and_mcnemar() -> None:
    rng = np.random.default_rng(16)
    first = {task: _keyed(rng.random(n)) for task, n in (("a", 30), ("b", 8))}
    second = {task: {key: value + 0.12 for key, value in units.items()} for task, units in first.items()}
    second = {task: {k: v + 0.3 * rng.normal() for k, v in units.items()} for task, units in second.items()}
    weighed = [
        (second[task][key] - first[task][key]) / len(first[task]) / 2 for task in first for key in first[task]
    ]
    theirs = permutation_test((weighed,), np.sum, permutation_type="samples", n_resamples=50_000, rng=rng).pvalue
    assert sign_flip_test(Scoring(), first, second) == pytest.approx(theirs, abs=0.01)
    for n, gained, lost in ((40, 9, 2), (500, 30, 41), (5, 1, 0)):
        a, b = _tasks({"t": (n, gained, lost)})
        assert sign_flip_test(Scoring(), a, b) == pytest.approx(mcnemar(a["t"], b["t"]).p)
    assert sign_flip_test(Scoring(), a, a) == 1.0


def test_mcnemar_and_the_sign_test_equal_scipys() -> None:
    rng = np.random.default_rng(10)
    for size in (1, 7, 40, 400):
        first = {str(i): float(v) for i, v in enumerate(rng.random(size) < 0.6)}
        second = {str(i): float(v) for i, v in enumerate(rng.random(size) < 0.7)}
        b = sum(first[key] > second[key] for key in first)
        c = sum(second[key] > first[key] for key in first)
        expected = binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(first, second).p == pytest.approx(expected, abs=1e-12)
        assert sign_test(first, second) == mcnemar(first, second)
    graded = sign_test({"a": 0.3, "b": 1.0, "c": 0.0}, {"a": 0.6, "b": 1.0, "c": 0.9})
    assert (graded.only_first, graded.only_second, graded.n, graded.p) == (0, 2, 3, 0.5)


def test_the_paired_interval_agrees_with_lmms_evals_own() -> None:
    """lmms-eval takes the paired t interval of one task; for many items a bootstrap gives the same."""
    paired_ttest, clustered_stderr = _lmms_evals("paired_ttest", "clustered_stderr")
    rng = np.random.default_rng(11)
    hard = rng.normal(size=900)
    first = (0.2 + 0.6 * rng.normal(size=900) > hard).astype(float)
    second = (0.35 + 0.6 * rng.normal(size=900) > hard).astype(float)
    theirs = paired_ttest(second.tolist(), first.tolist())
    ours = score_difference(Scoring(), {"t": _keyed(first)}, {"t": _keyed(second)})
    assert ours.value == pytest.approx(theirs["mean_diff"])
    assert ours.n == theirs["n"]
    width = theirs["ci_upper"] - theirs["ci_lower"]
    assert ours.low == pytest.approx(theirs["ci_lower"], abs=0.04 * width)
    assert ours.high == pytest.approx(theirs["ci_upper"], abs=0.04 * width)
    assert standard_error(Scoring(), {"t": (second - first).tolist()}) == pytest.approx(theirs["se_diff"])
    # Units against their clustered error: two questions an image, the image's mean as the unit.
    clusters = [i // 2 for i in range(900)]
    pairs = first.reshape(-1, 2).mean(axis=1)
    assert standard_error(Scoring(), {"t": pairs.tolist()}) == pytest.approx(
        clustered_stderr(first.tolist(), clusters), rel=0.01
    )


def _lmms_evals(*names: str) -> list[Callable[..., Any]]:
    """Functions of the installed lmms-eval's metrics, without the seconds that importing all of it takes."""
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("api") / "metrics.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    scope: dict[str, Any] = {"math": math, "np": np, "List": list, "Any": Any, "collections": collections}
    exec(compile(ast.Module(body=body, type_ignores=[]), str(source), "exec"), scope)
    return [scope[name] for name in names]


def _keyed(values: np.ndarray) -> dict[str, float]:
    return {str(index): float(value) for index, value in enumerate(values)}


def test_seeds_are_paired_and_their_interval_is_students() -> None:
    first = {0: 0.81, 1: 0.84, 2: 0.79, 3: 0.86, 4: 0.82, 9: 0.1}
    second = {0: 0.83, 1: 0.85, 2: 0.82, 3: 0.86, 4: 0.85, 8: 0.9}
    difference = paired_spread(first, second)
    scipy = ttest_rel([second[seed] for seed in range(5)], [first[seed] for seed in range(5)]).confidence_interval()
    assert difference is not None
    assert (difference.low, difference.high) == pytest.approx((scipy.low, scipy.high))
    assert (difference.n, difference.mean, difference.least, difference.most) == pytest.approx((5, 0.018, 0.0, 0.03))
    assert paired_spread(first, {7: 0.5}) is None
    alone = spread([0.5])
    assert (alone.sd, alone.low, alone.interval) == (None, None, None)
    with pytest.raises(ValueError, match="at least one seed"):
        spread([])


def test_the_t_interval_over_five_seeds_covers() -> None:
    rng = np.random.default_rng(12)
    spreads = [spread(row) for row in rng.normal(0.02, 0.015, size=(3000, 5)).tolist()]
    intervals = [interval for seeds in spreads if (interval := seeds.interval) is not None]
    hits = sum(interval.low <= 0.02 <= interval.high for interval in intervals)
    assert 0.94 < hits / 3000 < 0.96


def test_the_bootstrap_over_seeds_and_items() -> None:
    """Its spread is that of two levels, simulated; one level of items alone is narrower."""
    rng = np.random.default_rng(13)
    shifts = rng.normal(0.05, 0.04, size=8)
    first = {s: {"t": _keyed(rng.random(150) < 0.5)} for s in range(8)}
    second = {s: {"t": _keyed(rng.random(150) < 0.5 + shifts[s])} for s in range(8)}
    bootstrap = two_level_difference(Scoring(), first, second)
    assert bootstrap is not None
    values = [overall(Scoring(), second[s]) - overall(Scoring(), first[s]) for s in range(8)]
    assert bootstrap.value == pytest.approx(np.mean(values))
    draws = []
    diffs = np.array([[second[s]["t"][k] - first[s]["t"][k] for k in first[s]["t"]] for s in range(8)])
    for _ in range(3000):
        seeds = rng.integers(8, size=8)
        draws.append(np.mean([rng.choice(diffs[s], size=150).mean() for s in seeds]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (bootstrap.low, bootstrap.high) == pytest.approx((low, high), abs=0.008)
    assert two_level_difference(Scoring(), first, {99: first[0]}) is None
