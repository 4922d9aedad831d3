"""Verdicts: each rule at and beside its bounds, and as it is written below the tables."""

from __future__ import annotations

import math

import pytest

from harness.analysis import verdicts
from harness.analysis.statistics import Interval, wilson


def _around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half, 100)


@pytest.mark.parametrize(
    ("paper", "half", "word"),
    [
        (0.50, 0.02, "reproduced"),
        (0.5095, 0.02, "reproduced"),  # 0.95 of a point apart, up to 2.95 with the interval
        (0.5105, 0.02, "within noise"),  # the interval leaves the margin and holds zero
        (0.525, 0.02, "undecided"),  # not zero, and perhaps within the margin
        (0.54, 0.02, "differs"),
        (0.46, 0.02, "differs"),
        (0.54, 0.05, "undecided"),  # beyond the margin, and yet perhaps zero
        (0.50, 0.05, "within noise"),
        (None, 0.02, "missing"),
        (0.50, None, "missing"),
    ],
)
def test_a_score(paper: float | None, half: float | None, word: str) -> None:
    assert verdicts.of_score(0.50, paper, half_width=half) == word
    assert verdicts.of_score(None, paper, half_width=half) == "missing"
    if paper is not None:
        points = verdicts.of_score(1000.0, 2000 * paper, half_width=half and 2000 * half, full=verdicts.POINTS)
        assert points == word


def test_the_papers_rounding_widens_the_interval_of_a_score() -> None:
    assert verdicts.of_score(0.5, 0.5095, half_width=0.02) == "reproduced"
    assert verdicts.of_score(0.5, 0.5095, half_width=0.02, rounding=0.001) == "within noise"


@pytest.mark.parametrize("n", [4, 40, 400, 4000])
def test_few_questions_reproduce_nothing(n: int) -> None:
    """A score of half of n questions: what is called the paper's lies within the margin, whatever n; what is called
    within noise does not grow with the number of questions that are missing."""
    interval = wilson(n // 2, n)
    half = math.sqrt(2) * (interval.high - interval.low) / 2
    words = {away / 1000: verdicts.of_score(0.5, 0.5 + away / 1000, half_width=half) for away in range(501)}
    for word in ("reproduced", "within noise"):
        assert all(away <= verdicts.SCORE_MARGIN for away, given in words.items() if given == word)
    assert ("reproduced" in words.values()) == (half < verdicts.SCORE_MARGIN) == (n == 4000)
    certain = [away for away, given in words.items() if given == "differs"]
    assert all(away > half for away in certain)


@pytest.mark.parametrize(
    ("value", "half", "paper", "word"),
    [
        (0.03, 0.02, 0.01, "reproduced"),
        (0.03, 0.04, 0.01, "within noise"),
        (-0.03, 0.02, 0.01, "differs"),
        (-0.03, 0.02, -0.2, "reproduced"),
        (0.03, 0.02, -0.2, "differs"),
        (-0.03, 0.04, 0.01, "undecided"),
        # The paper has no difference: a useless interval holds zero and shows nothing; a precise one may be called
        # none though it leaves zero out.
        (0.12, 0.32, 0.0, "undecided"),
        (-0.003, 0.002, 0.0, "reproduced"),
        (0.002, 0.02, 0.0, "within noise"),
        (0.03, 0.02, 0.0, "differs"),
        (0.009, 0.005, 0.0, "undecided"),
    ],
)
def test_a_difference_is_judged_by_its_sign(value: float, half: float, paper: float, word: str) -> None:
    assert verdicts.of_difference(_around(value, half), paper) == word


def test_a_cost() -> None:
    assert verdicts.of_cost(0.4122, 0.4151) == "reproduced"
    assert verdicts.of_cost(0.42, 0.4122) == "within noise"
    assert verdicts.of_cost(0.35, 0.4122) == "differs"
    assert verdicts.of_cost(None, 0.4) == verdicts.of_cost(0.4, None) == "missing"


def test_a_claim() -> None:
    assert verdicts.of_claim("better", _around(0.03, 0.02)) == "reproduced"
    assert verdicts.of_claim("better", _around(0.01, 0.02)) == "within noise"
    assert verdicts.of_claim("better", _around(-0.01, 0.02)) == "undecided"
    assert verdicts.of_claim("better", _around(-0.03, 0.02)) == "differs"
    assert verdicts.of_claim("not_worse", _around(-0.005, 0.01), margin=0.02) == "reproduced"
    assert verdicts.of_claim("not_worse", _around(-0.015, 0.01), margin=0.02) == "within noise"
    assert verdicts.of_claim("not_worse", _around(-0.026, 0.0275), margin=0.02) == "undecided"
    assert verdicts.of_claim("not_worse", _around(-0.05, 0.01), margin=0.02) == "differs"
    assert verdicts.of_claim("not_worse", None, margin=0.02) == "missing"


def test_a_claim_is_as_good_as_its_worst_part() -> None:
    assert verdicts.worst(["reproduced", "within noise"]) == "within noise"
    assert verdicts.worst(["differs", "within noise", "reproduced"]) == "differs"
    assert verdicts.worst(["undecided", "within noise", "reproduced"]) == "undecided"
    assert verdicts.worst(["differs", "undecided"]) == "differs"
    assert verdicts.worst(["differs", "missing"]) == "missing"
    assert verdicts.worst([]) == "missing"


def test_the_rules_say_the_numbers_that_they_use() -> None:
    assert "within 1 % of" in verdicts.RULES["cost"]
    assert "within 5 %" in verdicts.RULES["cost"]
    assert "margin of 3 points (60 of MME's)" in verdicts.RULES["score"]
    assert "margin of 1 (20 of MME's)" in verdicts.RULES["difference"]
    assert verdicts.RULES.keys() == {"score", "difference", "cost", "better", "not_worse"}
