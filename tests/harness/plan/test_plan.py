"""Plans: the numbers of a run before anything is computed, against Eq. 4 counted out by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.common.errors import DataError, RecipeError
from harness.config.load import load_recipe
from harness.data.sources import make_data, open_data
from harness.plan import by_origin, make_plan, render, require
from regate.config import GateConfig
from regate.schedule import DualCycle

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


LENGTH = ("train.steps=600", "train.global_batch=32", "train.micro_batch=32", "train.checkpoint_every=200")
SCHEDULE = ("gate.cycle_steps=32", "gate.dense_steps=4", "gate.warmup_steps=36")


def plan(*overrides: str, name: str = "tiny_regate"):  # type: ignore[no-untyped-def]
    """A plan of a recipe; the tiny one with a length and a schedule of its own, whatever is shipped."""
    given = {override.partition("=")[0] for override in overrides}
    fixed = (*LENGTH, *(() if "gate" in given else SCHEDULE)) if name == "tiny_regate" else ()
    kept = [override for override in fixed if override.partition("=")[0] not in given]
    return make_plan(load_recipe(name, (*kept, *overrides)))


def test_a_schedule_counted_by_hand() -> None:
    gated = plan()
    assert (gated.steps, gated.steps_per_epoch, gated.left_out_per_epoch) == (600, 187, 16)
    # 36 warm-up steps; then cycles 2 to 18 of 28 sparse steps each (17 of them), and 20 of the last 24 steps.
    assert (gated.dense_steps, gated.sparse_steps) == (104, 17 * 28 + 20)
    assert gated.expected_reduction == pytest.approx(496 / 600 / 2)
    assert gated.closed_form == pytest.approx((1 - 36 / 600) * (1 - 4 / 32) / 2)
    assert gated.evaluation_steps == (150, 300, 450, 600)


def test_the_tiny_pair() -> None:
    gated, baseline = (make_plan(load_recipe(name)) for name in ("tiny_regate", "tiny_baseline"))
    assert gated.samples == 6000
    assert gated.samples_basis == "stated"
    assert (gated.steps, gated.steps_per_epoch, gated.left_out_per_epoch) == (1000, 375, 0)
    # 64 warm-up steps are one cycle; then 14 whole cycles of 56 sparse steps and 32 of the last 40 steps.
    assert (gated.dense_steps, gated.sparse_steps) == (184, 14 * 56 + 32)
    assert gated.expected_reduction == pytest.approx(816 / 1000 / 2)
    assert gated.closed_form == pytest.approx((1 - 64 / 1000) * (1 - 8 / 64) / 2)
    assert gated.evaluation_steps == (250, 500, 750, 1000)
    assert (baseline.expected_reduction, baseline.sparse_steps, baseline.closed_form) == (0, 0, None)
    assert baseline.teacher_pass is False
    assert gated.teacher_pass is True
    assert gated.warnings == ()
    assert baseline.warnings == ()


@settings(deadline=None)  # a machine under load pauses anybody
@given(
    steps=st.integers(1, 300),
    cycle=st.integers(2, 40),
    dense=st.integers(0, 39),
    warmup=st.integers(0, 80),
    keep=st.floats(0.05, 1),
)
def test_the_schedule_is_that_of_the_gate(steps: int, cycle: int, dense: int, warmup: int, keep: float) -> None:
    dense = min(dense, cycle - 1)
    gate = f"gate={{cycle_steps: {cycle}, dense_steps: {dense}, warmup_steps: {warmup}, keep_ratio: {keep}}}"
    made = plan(gate, f"train.steps={steps}")
    schedule = DualCycle.from_config(GateConfig(keep, cycle, dense, warmup))
    assert made.expected_reduction == pytest.approx(1 - schedule.expected_keep(steps))
    assert made.dense_steps + made.sparse_steps == steps


def test_epochs_give_steps() -> None:
    made = plan("train.steps=null", "train.epochs=2")
    assert (made.steps, made.epochs) == (374, 2.0)
    assert plan("train.steps=null", "train.epochs=0.001").steps == 1
    assert plan("train.steps=null", "train.epochs=0.1").steps == 19


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.steps=187"], "difficulty is never read and the score is the reference loss alone"),
        (["train.steps=187", "gate.selection=difficulty"], "the selection goes by position"),
        (["train.steps=187", "gate.reference_weight=0.0"], "the selection goes by position"),
        (["gate.warmup_steps=600"], "as long as the run"),
        (["train.steps=3", "gate.warmup_steps=0"], "end before the first sparse step"),
        (["gate.keep_ratio=1.0"], "gate.keep_ratio is 1"),
        (["train.steps=63", "gate.warmup_steps=0", "gate.dense_steps=30"], "the schedule is cut"),
        (["gate.execution=loss_only"], "no time"),
        (["evaluate.at=[0.0001, 0.0002, 1.0]"], "fall on the same step"),
        (["evaluate.benchmarks=[]"], "nothing is scored"),
        (["evaluate.benchmarks=[pope]", "evaluate.limit=8"], "on a part of a benchmark are not the paper's"),
        (["train.global_batch=3500", "train.micro_batch=3500"], "left out of every epoch"),
        (["train.checkpoint_every=600", "devices.checkpoint_minutes=null"], "starts again from step 0"),
    ],
)
def test_what_a_run_should_be_warned_of(overrides: list[str], words: str) -> None:
    matching = [line for line in plan(*overrides).warnings if words in line]
    assert len(matching) == 1, plan(*overrides).warnings


def test_a_weight_of_zero_needs_no_teacher() -> None:
    assert plan().teacher_pass
    weightless = plan("gate.reference_weight=0.0")
    assert not weightless.teacher_pass
    assert "  teacher     not needed: this gate reads no reference losses" in render(weightless)
    assert plan("gate.reference_weight=0.0", "gate.ema_init=reference").teacher_pass


@pytest.mark.parametrize("selection", ["reference", "random", "first"])
def test_one_epoch_is_no_warning_where_no_difficulty_is_read(selection: str) -> None:
    assert not any("difficulty" in line for line in plan("train.steps=187", f"gate.selection={selection}").warnings)


def test_what_is_missing_of_the_papers_benchmarks_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    made = plan("evaluate.benchmarks=[shapes, mvbench, pope]", f"paths.data={tmp_path}")
    assert [line.split(": ")[0] for line in made.missing_data] == [
        f"{tmp_path}/benchmarks/mvbench",
        f"{tmp_path}/benchmarks/pope",
    ]
    with pytest.raises(
        DataError, match=r"data are missing(.|\n)*OpenGVLab/MVBench.*about 17 GB; access: open, except"
    ):
        require(made)
    lines = "\n".join(render(made))
    assert "shapes, mvbench (4,000 items), pope (9,000 items) after steps" in lines
    assert plan("evaluate.benchmarks=[shapes]").missing_data == ()


def test_points_on_the_same_step_are_evaluated_once() -> None:
    made = plan("evaluate.at=[0.0001, 0.0002, 1.0]")
    assert [(point.fraction, point.step) for point in made.evaluations] == [(0.0002, 1), (1.0, 600)]


def test_too_few_samples_and_unknown_samples() -> None:
    with pytest.raises(RecipeError, match="more than the 6000 samples"):
        plan("train.global_batch=6001", "train.micro_batch=6001")
    with pytest.raises(RecipeError, match="does not say how many samples"):
        plan("data.samples=null", name="videollama2_regate")


def test_made_data_are_counted() -> None:
    small = ["data.train_clips=10", "data.test_clips=20", "data.stage_clips=1", "train.global_batch=4"]
    small += ["train.micro_batch=4"]
    recipe = load_recipe("tiny_smoke_regate", small)
    before = make_plan(recipe)
    make_data(recipe.data, recipe.paths, recipe.seed)
    after = make_plan(recipe)
    assert (before.samples, before.samples_basis, len(before.to_make)) == (30, "stated", 1)
    assert (after.samples, after.samples_basis, after.to_make) == (30, "counted", ())
    assert before.targets is None
    assert after.targets is not None
    assert after.targets.basis == "estimated"
    # Answers are sentences of 7 to 57 words.
    assert 8 < after.targets.per_sample < 60
    assert after.targets.total == round(after.targets.per_sample * 60 * 4)
    assert after.targets.scored == pytest.approx(after.targets.total * after.keep_ratio, abs=1)


def test_a_stated_number_of_samples_that_is_not_there(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is said?"}, {"from": "gpt", "value": "A word or two."}]
    rows = [{"id": str(number), "conversations": turns} for number in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    data = ["data.annotations=[rows.json]", "data.media=.", f"paths.data={tmp_path}", "evaluate.benchmarks=[]"]
    data += ["train.global_batch=4", "train.micro_batch=4"]
    words = "data.samples states 300,000, and 8 were counted"
    recipe = load_recipe("videollama2_regate", data)
    assert any(words in line for line in make_plan(recipe).warnings)
    right = load_recipe("videollama2_regate", [*data, "data.samples=8"])
    assert not any("were counted" in line for line in make_plan(right).warnings)


def test_excluded_samples_are_told() -> None:
    small = ["data.train_clips=10", "data.test_clips=20", "data.stage_clips=1", "train.global_batch=4"]
    recipe = load_recipe("tiny_smoke_regate", [*small, "train.micro_batch=4", "data.damaged=exclude"])
    root = make_data(recipe.data, recipe.paths, recipe.seed)
    (root / "clips" / "train" / "000003.mp4").write_bytes(b"not a video")
    open_data(recipe.data, recipe.paths, recipe.seed)
    made = make_plan(recipe)
    assert (made.samples, made.excluded) == (27, 3)
    assert "27 (counted), 3 damaged ones excluded" in "\n".join(render(made))


def test_a_plan_is_plain_json_and_lines() -> None:
    for name in ("tiny_regate", "tiny_baseline", "videochat2_regate"):
        made = plan(name=name)
        again = json.loads(json.dumps(made.as_dict(), allow_nan=False))
        assert again["schema"] == 1
        assert (again["steps"], again["expected_reduction"]) == (made.steps, made.expected_reduction)
        text = "\n".join(render(made))
        assert made.run_id in text
        assert f"{made.steps:,} steps" in text
        assert ("% of the targets elided" in text) == (made.closed_form is not None)
        assert text.count("from OpenGVLab/VideoChat2-IT") <= 2, "an origin is told once for all its files"


def test_files_of_one_origin_are_told_together() -> None:
    lines = [f"f{number}: from A: there" for number in range(8)] + ["g: from B"]
    told = by_origin(lines)
    assert told == [*(f"f{number}" for number in range(6)), "and 2 more", "  from A: there", "g", "  from B"]
