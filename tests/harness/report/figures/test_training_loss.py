"""The loss of a training: what the curves are made of, and that the arms are drawn over each other."""

from __future__ import annotations

import json
from statistics import fmean
from typing import TYPE_CHECKING

import pytest

from harness.analysis import training_loss
from harness.analysis.runs import Run, load_runs, pair_runs
from harness.analysis.training_loss import loss_curves
from harness.report.figures.style import LOOKS
from harness.report.figures.training_loss import loss_figure, suite_loss_figure
from harness.report.pages.runs import losses, runs_page
from harness.report.pages.suite import suite_page
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A baseline and a gated run of 40 steps: 4 of warm-up, then one dense step in eight."""
    results = tmp_path_factory.mktemp("losses")
    run_builder.build_pair(results)
    baseline, gated = load_runs(results)
    return baseline, gated


def logged(run: Run) -> dict[int, tuple[float, float]]:
    """step -> (loss, keep ratio)."""
    events = [json.loads(line) for line in (run.folder / "ledger.jsonl").read_text().splitlines()]
    return {e["step"] + 1: (e["loss"], e["keep_ratio"]) for e in events if e["event"] == "step"}


def test_dense_and_sparse_steps_are_apart_with_their_own_losses(runs: tuple[Run, Run]) -> None:
    baseline, gated = runs
    assert set(loss_curves(baseline)) == {"dense"}
    curves, steps = loss_curves(gated), logged(gated)
    assert set(curves) == {"dense", "sparse"}
    for kind, curve in curves.items():
        known = {step: loss for step, (loss, ratio) in steps.items() if (ratio < 1) == (kind == "sparse")}
        assert dict(zip(curve.steps, curve.losses, strict=True)) == known
        assert curve.together == 1
    sparse = curves["sparse"]
    assert sparse.smoothed[10] == pytest.approx(fmean(sparse.losses[9:12])), "5 % of 32 steps: one to each side"


def test_a_long_curve_is_drawn_by_means_of_neighbours(runs: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = loss_curves(runs[0])["dense"]
    monkeypatch.setattr(training_loss, "MOST_POINTS", 15)
    curve = loss_curves(runs[0])["dense"]
    assert curve.together == 3
    assert len(curve.losses) == 14
    assert curve.losses[1] == pytest.approx(fmean(whole.losses[3:6]))
    assert curve.steps[1] == 5
    assert curve.losses[-1] == whole.losses[-1], "the rest is a group of its own"


def test_the_arms_are_over_each_other_the_single_steps_faint(runs: tuple[Run, Run]) -> None:
    figure = loss_figure(runs, ["baseline", "ReGATE"])
    assert figure is not None
    dense, sparse = figure.axes
    assert [(line.get_color(), line.get_alpha()) for line in dense.lines] == [
        (LOOKS[arm][0], alpha) for arm in ("baseline", "regate") for alpha in (0.25, None)
    ]
    assert [line.get_label() for line in sparse.lines][1:] == ["ReGATE"]
    assert dense.get_ylabel() == "loss, nats a target"


def test_the_report_has_it_where_the_ledger_is_kept(runs: tuple[Run, Run], tmp_path: Path) -> None:
    page = runs_page(runs, pair_runs(runs), "a pair")
    assert "Loss during the training" in [section.title for section in page.sections]
    without = [Run(run.record, tmp_path) for run in runs]
    assert losses(without) == []


def test_a_suite_has_a_strong_mean_over_thin_seeds_and_each_arm_its_colour(
    runs: tuple[Run, Run], tmp_path: Path
) -> None:
    made = run_builder.recipe(tmp_path, "demo_seed1", seed=1)
    run_builder.finish(made, run_builder.build_run(made))
    (second,) = load_runs(tmp_path)
    arms = {"baseline": (runs[0], second), "keep25": (runs[1],)}
    figure = suite_loss_figure(arms)
    assert figure is not None
    dense, sparse = figure.axes
    assert dense.get_ylim() == sparse.get_ylim()
    assert [line.get_color() for line in dense.lines] == [LOOKS["baseline"][0]] * 3 + [LOOKS["keep25"][0]]
    *seeds, mean = dense.lines[:3]
    assert max(line.get_linewidth() for line in seeds) < mean.get_linewidth()
    halves = [fmean(pair) for pair in zip(*(line.get_ydata() for line in seeds), strict=True)]
    assert list(mean.get_ydata()) == pytest.approx(halves)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["baseline", "ReGATE, keep 0.25"]
    assert len(sparse.lines) == 1
    page = suite_page("demo", arms)
    assert "Loss during the training" in [section.title for section in page.sections]
    assert suite_loss_figure({"baseline": (Run(second.record, tmp_path),)}) is None


def test_losses_of_more_than_a_decade_have_a_logarithmic_axis(runs: tuple[Run, Run], tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    events = [json.loads(line) for line in (runs[0].folder / "ledger.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "step":
            event["loss"] = 5.0 / (event["step"] + 1)
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    steep, flat = (loss_figure([run], ["run"]) for run in (Run(runs[0].record, tmp_path), runs[0]))
    assert steep is not None
    assert flat is not None
    assert (steep.axes[0].get_yscale(), flat.axes[0].get_yscale()) == ("log", "linear")
