"""The accuracy figure: what it shows is what the records say, and the same records give the same bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from harness.curves import curve
from harness.figure_accuracy import accuracy_figure
from harness.figures import build_figures
from harness.pairs import load_runs, pair_runs
from tests.harness.run_builder import build_pair, build_run, finish, recipe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    build_pair(folder, "demo", evaluate={"benchmarks": ["shapes"], "at": [0.25, 0.5, 1.0]})
    return folder


def test_points_are_those_of_the_records(results: Path) -> None:
    pair = pair_runs(load_runs(results))[0]
    assert pair.gated is not None
    points = curve(pair.gated, "shapes")
    evaluations = pair.gated.record["evaluations"]
    assert [point.step for point in points] == [10, 20, 40]
    assert [point.targets for point in points] == [entry["progress"]["scored"] for entry in evaluations]
    assert [point.train_seconds for point in points] == [entry["progress"]["train_seconds"] for entry in evaluations]
    means = [entry["mean"]["value"] for entry in evaluations]
    assert [point.accuracy.value for point in points] == pytest.approx(means)
    assert points[-1].targets == pair.gated.totals["counts"]["scored"]


def test_what_is_drawn(results: Path) -> None:
    pair = pair_runs(load_runs(results))[0]
    assert pair.gated is not None
    left, right = accuracy_figure(pair, "shapes").axes
    points = curve(pair.gated, "shapes")
    drawn = [container[0].get_xydata().tolist() for container in left.containers]
    assert [[point.targets, 100 * point.accuracy.value] for point in points] in drawn
    in_time = [container[0].get_xydata()[:, 0].tolist() for container in right.containers]
    assert [point.train_seconds for point in points] in in_time
    texts = {text.get_text() for text in left.texts}
    assert texts == {
        f"ReGATE {100 * points[-1].accuracy.value:.1f}",
        f"baseline {100 * curve(pair.baseline, 'shapes')[-1].accuracy.value:.1f}" if pair.baseline else "",
        "chance 30.0",
    }
    low, high = left.get_ylim()
    assert low < 30 < high, "the chance line is in view"
    assert "with teacher" in {text.get_text() for text in right.texts}
    assert left.get_xlim()[0] == right.get_xlim()[0] == 0


def test_files_are_the_same_bytes_each_time_and_hold_searchable_text(results: Path) -> None:
    first = {path.name: path.read_bytes() for path in build_figures(results)}
    second = {path.name: path.read_bytes() for path in build_figures(results)}
    assert first == second
    assert first.keys() == {"accuracy_demo_regate_shapes.svg", "accuracy_demo_regate_shapes.png"}
    svg = first["accuracy_demo_regate_shapes.svg"].decode()
    for text in ("targets computed in training", "training time (s)", "mean accuracy (%)", "ReGATE", "baseline"):
        assert text in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg), "no date"
    assert first["accuracy_demo_regate_shapes.png"].startswith(b"\x89PNG")


def test_one_arm_and_one_evaluation_are_enough(tmp_path: Path) -> None:
    made = recipe(tmp_path, "lonely", evaluate={"benchmarks": ["shapes"], "at": [1.0]})
    finish(made, build_run(made))
    assert len(build_figures(tmp_path)) == 2


def test_no_evaluation_no_figure(tmp_path: Path) -> None:
    assert build_figures(tmp_path) == []
    made = recipe(tmp_path, "silent", evaluate={"benchmarks": [], "at": [1.0]})
    finish(made, build_run(made))
    assert build_figures(tmp_path) == []
