"""Scores by hand: the published rules on a few items."""

from __future__ import annotations

import pytest

from harness.benchmarks.scoring import Scoring, overall, task_weights, unit_values


def item(task: str, key: str, correct: float, unit: str | None = None) -> dict[str, object]:
    return {"task": task, "key": key, "correct": correct, "unit": unit}


def test_the_mean_of_tasks_weighs_each_task_alike() -> None:
    items = [item("a", "1", 1), item("a", "2", 0), item("a", "3", 0), item("b", "1", 1)]
    assert overall(Scoring(), unit_values(Scoring(), items)) == pytest.approx((1 / 3 + 1) / 2)


def test_pooled_weighs_each_item_alike() -> None:
    items = [item("a", "1", 1), item("a", "2", 0), item("a", "3", 0), item("b", "1", 1)]
    scoring = Scoring(combine="pooled")
    assert overall(scoring, unit_values(scoring, items)) == pytest.approx(2 / 4)


def test_a_fractional_item_counts_as_much() -> None:
    # VizWiz: VQA accuracy of an answer that one of ten annotators gave is 0.3.
    assert overall(Scoring(), unit_values(Scoring(), [item("a", "1", 0.3), item("a", "2", 1)])) == pytest.approx(0.65)


def test_mme_adds_accuracy_and_accuracy_plus_of_each_category() -> None:
    scoring = Scoring(unit="mme", combine="sum", scale="points")
    items = [
        item("existence", "1", 1, "x.jpg"),
        item("existence", "2", 1, "x.jpg"),
        item("existence", "3", 1, "y.jpg"),
        item("existence", "4", 0, "y.jpg"),
        item("count", "5", 0, "z.jpg"),
        item("count", "6", 1, "z.jpg"),
    ]
    # existence: acc 75, acc+ 50; count: acc 50, acc+ 0
    assert overall(scoring, unit_values(scoring, items)) == pytest.approx(75 + 50 + 50)


def test_a_pair_is_right_where_both_are() -> None:
    scoring = Scoring(unit="all_right")
    items = [item("v", "0", 1, "0"), item("v", "1", 1, "0"), item("v", "2", 1, "1"), item("v", "3", 0, "1")]
    assert unit_values(scoring, items) == {"v": {"0": 1.0, "1": 0.0}}


def test_an_item_without_its_unit_is_an_error() -> None:
    with pytest.raises(ValueError, match="names no unit"):
        unit_values(Scoring(unit="all_right"), [item("v", "0", 1)])


def test_weights_follow_the_rule() -> None:
    sizes = {"a": 3, "b": 1}
    assert task_weights(Scoring(), sizes) == {"a": 0.5, "b": 0.5}
    assert task_weights(Scoring(combine="sum"), sizes) == {"a": 1.0, "b": 1.0}
    assert task_weights(Scoring(combine="pooled"), sizes) == {"a": 0.75, "b": 0.25}


def test_no_task_is_no_score() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        overall(Scoring(), {})
