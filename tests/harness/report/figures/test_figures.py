"""Figures: what they show is what the records say, and the same records give the same bytes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from scipy.stats import t

from harness.analysis.arms import group_by_arm
from harness.analysis.choices.replay import study
from harness.analysis.choices.selection import read_selection
from harness.analysis.curves import ARMS, Point, arm_of, curve, mean_curve, paper_points, suites
from harness.analysis.frontier import Point as ArmPoint
from harness.analysis.frontier import frontier, with_dominated
from harness.analysis.runs import load_runs, pair_runs
from harness.analysis.seeds import Spread, spread
from harness.analysis.statistics import Interval
from harness.common.errors import RecipeError, StaleError
from harness.common.progress import Progress
from harness.report.figures.accuracy import accuracy_figure, panels_of, suite_figure
from harness.report.figures.arms import arms_figure
from harness.report.figures.build import build_figures
from harness.report.figures.frontier import BEATEN, draw, frontier_figure
from tests.harness.worlds.run_builder import build_pair, build_run, finish, recipe

if TYPE_CHECKING:
    from pathlib import Path

    from harness.analysis.runs import Run
    from tests.harness.worlds.choices import World

SEEDS = (0, 1, 2)
VIDEOLLAMA2 = {"adapter": "videollama2", "language_model": "qwen", "vision_tower": "siglip"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    build_pair(folder, "demo", evaluate={"benchmarks": ["shapes"], "at": [0.25, 0.5, 1.0]})
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms over three seeds, and one of a single seed."""
    folder = tmp_path_factory.mktemp("suite")
    arms: dict[str, tuple[Any, float]] = {
        "baseline": (False, 1.2),
        "regate": (True, 1.1),
        "random": ({"selection": "random"}, 0.8),
        "mine": ({"selection": "first"}, 0.6),
    }
    for arm, (gate, skill) in arms.items():
        for seed in SEEDS if arm != "mine" else SEEDS[:1]:
            asked = recipe(folder, f"demo.{arm}.seed{seed}", gate=gate, seed=seed)
            run_dir = build_run(asked, skill=skill + 0.1 * seed, noise=seed)
            record = {**finish(asked, run_dir), "suite": {"name": "demo", "arm": arm}}
            (run_dir / "record.json").write_text(json.dumps(record))
    return folder


def points_of(container: Any) -> list[list[float]]:
    drawn: list[list[float]] = container[0].get_xydata().tolist()
    return drawn


def legend_of(figure: Any) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


# --- pairs -----------------------------------------------------------------------------------------------


def test_points_are_those_of_the_records(results: Path) -> None:
    pair = pair_runs(load_runs(results))[0]
    assert pair.gated is not None
    points = curve(pair.gated, "shapes")
    evaluations = pair.gated.record["evaluations"]
    assert [point.step for point in points] == [10, 20, 40]
    progress = [entry["progress"] for entry in evaluations]
    assert [point.targets for point in points] == [done["scored"] for done in progress]
    assert [point.train_seconds for point in points] == [done["train_seconds"] for done in progress]
    assert [point.device_hours for point in points] == [done["train_device_hours"] for done in progress]
    means = [entry["mean"]["value"] for entry in evaluations]
    assert [point.accuracy.value for point in points] == pytest.approx(means)
    assert points[-1].targets == pair.gated.totals["counts"]["scored"]


def _on_a_gpu(runs: list[Run]) -> list[Run]:
    """The runs as if a GPU had trained them: wall time is their measure."""
    for run in runs:
        run.record["provenance"]["hardware"]["gpus"] = [{"name": "a GPU"}]
        for evaluation in run.record["evaluations"]:
            evaluation["progress"]["train_cpu_seconds"] = None
    return runs


def test_a_cpu_is_timed_in_cpu_seconds_and_a_shared_one_not_at_all(results: Path) -> None:
    pair = pair_runs(load_runs(results))[0]
    assert panels_of(pair.runs) == ("targets", "time")
    figure = accuracy_figure(pair, "shapes")
    assert figure.axes[1].get_xlabel() == "training (CPU s)"
    assert pair.gated is not None
    points = curve(pair.gated, "shapes")
    drawn = [[p.cpu_seconds, 100 * p.accuracy.value] for p in points]
    assert drawn in [points_of(container) for container in figure.axes[1].containers]
    assert points[-1].cpu_seconds == pytest.approx(pair.gated.totals["cpu_seconds"])
    pair.gated.totals["waited_seconds"] = 0.2 * pair.gated.totals["cpu_seconds"]
    assert panels_of(pair.runs) == ("targets",), "it shared its machine"
    pair.gated.totals["cpu_seconds"] = None
    assert panels_of(pair.runs) == ("targets",), "an earlier record does not say"
    assert panels_of(_on_a_gpu(list(pair.runs))) == ("targets", "time")


def test_what_is_drawn_of_a_pair(results: Path) -> None:
    pair = pair_runs(_on_a_gpu(load_runs(results)))[0]
    assert pair.gated is not None
    assert pair.baseline is not None
    figure = accuracy_figure(pair, "shapes")
    left, right = figure.axes
    points = curve(pair.gated, "shapes")
    assert [[p.targets, 100 * p.accuracy.value] for p in points] in map(points_of, left.containers)
    assert [[p.train_seconds, 100 * p.accuracy.value] for p in points] in map(points_of, right.containers)
    texts = legend_of(figure)
    assert len(texts) == 3
    for text, run, arm in zip(texts, pair.runs, ("baseline", "ReGATE"), strict=False):
        last = curve(run, "shapes")[-1].accuracy
        assert text == f"{arm} {100 * last.value:.1f} [{100 * last.low:.1f}, {100 * last.high:.1f}]"
    assert texts[2] == "hollow marks: with the teacher's pass"
    assert "chance 30.0" in {text.get_text() for text in left.texts}
    low, high = left.get_ylim()
    assert low < 30 < high, "the chance line is in view"
    assert left.get_xlim()[0] == right.get_xlim()[0] == 0
    hollow = [line for line in right.lines if line.get_markerfacecolor() == "#ffffff"]
    assert [line.get_xdata()[0] for line in hollow] == [points[-1].train_seconds + 2.5], "the teacher's pass"
    assert hollow[0].get_xdata()[0] < right.get_xlim()[1]


def test_files_are_the_same_bytes_each_time_and_hold_searchable_text(results: Path) -> None:
    first = {path.name: path.read_bytes() for path in build_figures(results)}
    second = {path.name: path.read_bytes() for path in build_figures(results)}
    assert first == second
    assert first.keys() == {f"accuracy_demo_regate_shapes.{suffix}" for suffix in ("svg", "png", "pdf")}
    svg = first["accuracy_demo_regate_shapes.svg"].decode()
    for text in ("targets computed in training", "training (CPU s)", "mean accuracy (%)", "ReGATE"):
        assert text in svg
    assert not re.search(r"20\d\d-\d\d-\d\d", svg), "no date"
    assert first["accuracy_demo_regate_shapes.png"].startswith(b"\x89PNG")
    pdf = first["accuracy_demo_regate_shapes.pdf"]
    assert pdf.startswith(b"%PDF-")
    assert b"/FontFile2" in pdf, "its letters are TrueType, which printers take"
    assert b"CreationDate" not in pdf


def test_one_arm_and_one_evaluation_are_enough(tmp_path: Path) -> None:
    lonely = recipe(tmp_path, "lonely", evaluate={"benchmarks": ["shapes"], "at": [1.0]})
    finish(lonely, build_run(lonely))
    assert len(build_figures(tmp_path)) == 3, "one figure in three forms"


def test_no_evaluation_no_figure(tmp_path: Path) -> None:
    assert build_figures(tmp_path) == []
    silent = recipe(tmp_path, "silent", evaluate={"benchmarks": [], "at": [1.0]})
    finish(silent, build_run(silent))
    assert build_figures(tmp_path) == []


def test_device_hours_have_a_panel_where_devices_were_several(results: Path) -> None:
    pair = pair_runs(_on_a_gpu(load_runs(results)))[0]
    assert panels_of(pair.runs) == ("targets", "time")
    assert pair.gated is not None
    pair.gated.totals["devices"] = 4
    assert panels_of(pair.runs) == ("targets", "time", "device_hours")
    figure = accuracy_figure(pair, "shapes")
    assert figure.axes[1].get_xlabel() == "training time (s)"
    assert figure.axes[2].get_xlabel() == "training (GPU-s)"
    points = curve(pair.gated, "shapes")
    expected = [[3600 * p.device_hours, 100 * p.accuracy.value] for p in points]
    drawn = [points_of(container) for container in figure.axes[2].containers]
    assert any(points == [pytest.approx(point) for point in expected] for points in drawn)


def test_the_papers_points_stand_in_panels_of_their_own(tmp_path: Path) -> None:
    evaluate = {"benchmarks": ["mvbench"], "at": [0.5, 1.0]}
    build_pair(tmp_path, "vl2", model=VIDEOLLAMA2, evaluate=evaluate)
    pair = pair_runs(load_runs(tmp_path))[0]
    figure = accuracy_figure(pair, "mvbench")
    ours, papers = figure.axes[:2], figure.axes[2:]
    assert len(papers) == 2
    assert [axes.get_title() for axes in papers] == ["reported by the paper, v1 Table 4: VideoLLaMA2"] * 2
    assert not any("paper" in axes.get_title() for axes in ours)
    places = [sorted((line.get_xdata()[0], round(line.get_ydata()[0], 6)) for line in axes.lines) for axes in papers]
    assert places[0] == [(29.32e6, 51.9), (49.27e6, 53.6), (83.82e6, 52.0)]
    assert places[1] == [(16.0, 51.9), (26.9, 53.6), (32.4, 52.0)]
    assert papers[1].get_xlabel() == "training time (h) on 4x H100"


def test_the_paper_is_shown_for_its_own_models_and_benchmark_only() -> None:
    assert [point.label for point in paper_points("videochat2", "mvbench")] == [
        "baseline",
        "ReGATE, extended",
        "ReGATE, fast",
    ]
    assert paper_points("tiny", "mvbench") == []
    assert paper_points("tiny_videollama2", "mvbench") == []
    assert paper_points("videollama2", "shapes") == []


# --- suites ----------------------------------------------------------------------------------------------


def test_a_suite_is_drawn_over_its_seeds(suite: Path) -> None:
    (arms,) = suites(load_runs(suite)).values()
    assert list(arms) == ["baseline", "regate", "random", "mine"], "known arms in their order, others behind"
    regate = arm_of("regate", arms["regate"], "shapes")
    assert regate is not None
    assert [run.record["recipe"]["seed"] for run in regate.runs] == list(SEEDS)
    values = [seed[-1].accuracy.value for seed in regate.seeds]
    last = regate.points[-1]
    assert last.accuracy == spread(values).interval
    assert last.targets == pytest.approx(sum(seed[-1].targets for seed in regate.seeds) / 3)
    figure = suite_figure("demo", [regate], "shapes")
    left = figure.axes[0]
    assert [[p.targets, 100 * p.accuracy.value] for p in regate.points] in map(points_of, left.containers)
    thin = [line.get_xydata().tolist() for line in left.lines if line.get_linewidth() < 1]
    for seed in regate.seeds:
        assert [[p.targets, 100 * p.accuracy.value] for p in seed] in thin
    assert legend_of(figure)[0].startswith(f"ReGATE {100 * last.accuracy.value:.1f} [")
    assert figure.legends[0].get_title().get_text().startswith("Mean of 3 seeds")


def test_one_seed_keeps_the_interval_of_its_items(suite: Path) -> None:
    (arms,) = suites(load_runs(suite)).values()
    alone = arm_of("mine", arms["mine"], "shapes")
    assert alone is not None
    assert list(alone.points) == curve(arms["mine"][0], "shapes")
    assert "One seed" in suite_figure("demo", [alone], "shapes").legends[0].get_title().get_text()


def test_suites_are_figures_of_their_own_and_arms_can_be_chosen(suite: Path) -> None:
    names = {path.name for path in build_figures(suite)}
    stems = {name.rpartition(".")[0] for name in names}
    kinds = ("accuracy", "arms", "frontier")
    assert stems == {f"{kind}_suite_demo_shapes" for kind in kinds}, "and no pair of 3 seeds"
    svg = (suite / "figures" / "accuracy_suite_demo_shapes.svg").read_text()
    assert all(label in svg for label in ("baseline ", "ReGATE ", "random "))
    assert "mine " not in svg
    assert "mine" not in ARMS
    build_figures(suite, arms=["mine"])
    svg = (suite / "figures" / "accuracy_suite_demo_shapes.svg").read_text()
    assert "mine " in svg
    assert "random " not in svg
    with pytest.raises(RecipeError, match="did you mean regate"):
        build_figures(suite, arms=["regatte"])


def test_arms_are_dots_with_the_intervals_of_their_seeds(suite: Path) -> None:
    arms = group_by_arm("demo", load_runs(suite), None)
    figure = arms_figure(arms, "shapes")
    assert figure is not None
    scores, differences = figure.axes
    rows = [label.get_text() for label in scores.get_yticklabels()]
    assert rows == ["baseline", "mine", "random", "ReGATE"]
    for axes, row, expected in (
        (scores, 3, spread(list(arms.scores("regate", "shapes").values()))),
        (differences, 2, arms.difference("regate", "baseline", "shapes")),
    ):
        assert expected is not None
        point, _, (bars,) = axes.containers[row]
        assert point.get_xydata().tolist() == [[pytest.approx(100 * expected.mean), 3]]
        ends = bars.get_segments()[0][:, 0].tolist()
        assert ends == pytest.approx([100 * expected.low, 100 * expected.high])
    regate_dots = scores.containers[1]
    assert regate_dots.lines[2] == (), "one seed has no interval"
    single = [line.get_xdata().tolist() for line in scores.lines if line.get_marker() == "|" and line.get_alpha()]
    assert [100 * value for value in arms.scores("random", "shapes").values()] in single


def test_arms_stand_against_flops_with_the_front(suite: Path) -> None:
    grouped = group_by_arm("demo", load_runs(suite), None)
    points = {point.arm: point for point in frontier(grouped, "shapes")}
    figure = frontier_figure(grouped, "shapes")
    assert figure is not None
    (axes,) = figure.axes
    drawn = {tuple(points_of(container)[0]): container[0].get_color() for container in axes.containers}
    for arm, point in points.items():
        place = (point.part, pytest.approx(100 * point.accuracy.mean))
        (colour,) = [colour for at, colour in drawn.items() if at == place]
        assert (colour == BEATEN) is point.dominated, arm
    front = sorted((p for p in points.values() if not p.dominated), key=lambda point: point.part)
    assert [point.part for point in front] in [list(line.get_xdata()) for line in axes.lines]
    assert {text.get_text() for text in axes.texts} == {
        "baseline (3)", "ReGATE (3)", "random (3)", "mine (1)"
    }  # fmt: skip
    bars = {container[0].get_xdata()[0]: bool(container[2]) for container in axes.containers}
    assert not bars[points["mine"].part], "one seed has no interval"


def test_labels_of_many_arms_do_not_lie_on_each_other() -> None:
    """Eighteen arms, four at nearly the same place, as the suite `frontier` has them."""
    rng = np.random.default_rng(0)
    middles = [*rng.uniform(0.45, 1.05, 14), 0.6, 0.6, 0.602, 0.6]
    points = []
    for place, part in enumerate(middles):
        level = 0.7 + 0.2 * part + 0.02 * rng.normal()
        accuracy = Spread(level, 0.02, level - 0.03, level + 0.03, level, level, 5)
        points.append(
            ArmPoint(f"arm_with_a_name_{place}", 5, 1e12, 5e10, part, accuracy, accuracy, accuracy, elides=place > 5)
        )
    figure = draw(with_dominated(points), "many", 100.0, "mean accuracy (%)")
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without the line to the mark
    assert len(boxes) == 18
    overlapping = [(a, b) for a, b in combinations(range(18), 2) if boxes[a].overlaps(boxes[b])]
    assert not overlapping
    outer = axes.get_window_extent(renderer)
    assert all(outer.x0 <= box.x0 and box.x1 <= outer.x1 for box in boxes)


def test_two_runs_of_one_seed_are_not_two_seeds(suite: Path) -> None:
    runs = load_runs(suite)
    twin = replace(runs[0], record={**runs[0].record, "id": "twin"}, _read={})
    with pytest.raises(StaleError, match="are both of seed 0"):
        suites([*runs, twin])


def test_weights_evaluated_as_they_are_have_no_curve(suite: Path) -> None:
    run = load_runs(suite)[0]
    assert suites([replace(run, record={**run.record, "totals": None}, _read={})]) == {}


def test_t_interval_of_seeds() -> None:
    """Against the textbook formula: sd of 1, 2, 3 is 1, so the half width is t / sqrt(3)."""
    interval = spread([1.0, 2.0, 3.0]).interval
    assert interval is not None
    half = float(t.ppf(0.975, 2)) / 3**0.5
    assert (interval.value, interval.low, interval.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert interval.n == 3
    assert spread([1.0]).interval is None, "the spread of one seed is unknown"


def test_the_mean_curve_has_the_steps_that_all_seeds_have() -> None:
    def point(step: int, value: float) -> Point:
        return Point(step, step, 2 * step, step, Interval(value, value, value, 10))

    mean = mean_curve([[point(1, 0.2), point(2, 0.4)], [point(2, 0.6), point(3, 0.9)]])
    assert [(p.step, p.accuracy.value) for p in mean] == [(2, pytest.approx(0.5))]
    assert mean_curve([[point(1, 0.2)], [point(2, 0.4)]]) == ()


# --- Figure 3 --------------------------------------------------------------------------------------------


def test_reference_losses_are_drawn_token_by_token(choice_world: World, tmp_path: Path) -> None:
    world = choice_world
    assert study(world.run, world.recipe.paths, Progress(quiet=True)) is None
    selection = read_selection(world.run.folder)
    assert selection is not None
    written = {path.name: path for path in build_figures(world.results)}
    svg = written[f"reference_loss_{world.run.id}.svg"].read_text()
    root = ElementTree.fromstring(svg)
    texts = {"".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")}
    for panel in selection["panels"]:
        assert {token["text"].strip() for token in panel["tokens"]} <= texts
    grounded = {token["text"].strip() for p in selection["panels"] for token in p["tokens"] if token["grounded"]}
    bold = {
        "".join(element.itertext())
        for element in root.iter()
        if element.tag.endswith("}text") and "font-weight: 700" in element.attrib["style"].replace("bold", "700")
    }
    assert grounded <= bold
    assert "50 % of an answer's targets" in svg
    assert f"elided_words_{world.run.id}.json" in written
    page = written[f"reference_loss_{world.run.id}.html"].read_text()
    for panel in selection["panels"]:
        assert f"<rt>{panel['tokens'][0]['loss']:.2f}</rt>" in page
    assert "<script" not in page
