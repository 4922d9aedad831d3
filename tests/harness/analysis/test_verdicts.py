"""Verdicts: each rule at and beside its bounds, and as it is written below the tables."""

from __future__ import annotations

import pytest

from harness.analysis import verdicts
from harness.analysis.statistics import Interval


def _around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half, 100)


@pytest.mark.parametrize(
    ("paper", "word"),
    [
        (0.50, "reproduced"),
        (0.5204, "reproduced"),  # outside by less than half a printed digit
        (0.525, "within noise"),
        (0.549, "within noise"),
        (0.5512, "differs"),
        (0.44, "differs"),
        (None, "missing"),
    ],
)
def test_a_score(paper: float | None, word: str) -> None:
    verdict = verdicts.of_score(_around(0.50, 0.02), paper, detectable=0.03, rounding=0.0005)
    assert verdict == word
    assert verdicts.of_score(None, paper, detectable=None) == "missing"


@pytest.mark.parametrize(
    ("value", "half", "paper", "word"),
    [
        (0.03, 0.02, 0.01, "reproduced"),
        (0.03, 0.04, 0.01, "within noise"),
        (-0.03, 0.02, 0.01, "differs"),
        (-0.03, 0.02, -0.2, "reproduced"),
        (0.03, 0.02, -0.2, "differs"),
        (0.01, 0.02, 0.0, "reproduced"),
        (0.03, 0.02, 0.0, "differs"),
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
    assert verdicts.of_claim("better", _around(-0.03, 0.02)) == "differs"
    assert verdicts.of_claim("not_worse", _around(-0.005, 0.01), margin=0.02) == "reproduced"
    assert verdicts.of_claim("not_worse", _around(-0.015, 0.01), margin=0.02) == "within noise"
    assert verdicts.of_claim("not_worse", _around(-0.05, 0.01), margin=0.02) == "differs"
    assert verdicts.of_claim("not_worse", None, margin=0.02) == "missing"


def test_a_claim_is_as_good_as_its_worst_part() -> None:
    assert verdicts.worst(["reproduced", "within noise"]) == "within noise"
    assert verdicts.worst(["differs", "within noise", "reproduced"]) == "differs"
    assert verdicts.worst(["differs", "missing"]) == "missing"
    assert verdicts.worst([]) == "missing"


def test_the_rules_say_the_numbers_that_they_use() -> None:
    assert "within 1 % of" in verdicts.RULES["cost"]
    assert "within 5 %" in verdicts.RULES["cost"]
    assert verdicts.RULES.keys() == {"score", "difference", "cost", "better", "not_worse"}
