"""VideoLLaMA2 on the whole path: the toy pair from nothing to the table, the shipped recipe on given weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.evaluation.evaluate import kept_task
from harness.evaluation.task import MultipleChoiceTask
from harness.models import adapter_for
from harness.records.ledger import read_steps
from tests.harness.worlds.videollama2 import NAME, user_supplied, write_world
from tests.smoke.conftest import RECIPES, Ran, harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
PAIR = (RECIPES / "tiny_videollama2_baseline.yaml", RECIPES / "tiny_videollama2_regate.yaml")
GOLDEN = json.loads((RECIPES.parent / "tests" / "golden" / "tiny_videollama2.json").read_text())
"""Losses of an earlier version: weights, data, order, gate, loss and optimizer in one comparison."""
SHIPPED = [
    "evaluate.benchmarks=[]",
    "train.global_batch=2",
    "train.micro_batch=1",
    "train.precision=float32",
    "train.workers=0",
]


def test_the_toy_pair_from_nothing_to_the_table(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", *PAIR, "devices.frame_cache_gb=0.01")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ReGATE" in done.stdout
    ran = Ran(tmp_path, done.stdout, done.stderr)
    dense, gated = (ran.record(path.stem) for path in PAIR)
    assert dense["totals"]["counts"]["scored"] == dense["totals"]["counts"]["target"]
    counts = gated["totals"]["counts"]
    assert counts["target"] == dense["totals"]["counts"]["target"]
    assert counts["valid"] - counts["active"] > 0
    assert gated["reference"]["targets"] > 0
    assert 0.3 < gated["totals"]["targets_reduction"] < 0.45
    for found in (dense, gated):
        assert all(entry["counts"]["scored"] == entry["counts"]["expected"] for entry in found["evaluations"])
    for name, losses in GOLDEN["losses"].items():
        found_losses = [step["loss"] for step in read_steps(ran.run_dir(name) / "ledger.jsonl")]
        assert found_losses == pytest.approx(losses, rel=1e-5), f"{name}: not the losses of the golden run"
    _check_frames(ran)


def _check_frames(ran: Ran) -> None:
    """The clips that are asked about were decoded once, for the first arm, and the second one found them."""
    first = ran.run_dir(PAIR[0].stem)
    task = kept_task(first, "shapes")
    assert isinstance(task, MultipleChoiceTask)
    asked = {media for questions in task.tasks.values() for question in questions for media in question.media}
    kept = list((ran.folder / "workspace" / "stores" / "frames").rglob("*.bin"))
    assert len(kept) == len(asked) > 1
    finished = (first / "record.json").stat().st_mtime
    assert all(path.stat().st_mtime < finished for path in kept)


def test_the_shipped_recipe_runs_where_weights_and_data_are_at_their_paths(tmp_path: Path) -> None:
    """Videos, a picture and text; weights apart as published; bad media and missing weights have their say first."""
    empty = harness(tmp_path, "run", NAME, *SHIPPED)
    assert empty.returncode == 3
    for what in ("Qwen2-7B-Instruct", "siglip-so400m-patch14-384", "mm_projector.bin", "videochatgpt_tune.json"):
        assert what in empty.stderr
    write_world(tmp_path)
    done = harness(tmp_path, "run", NAME, *SHIPPED)
    assert done.returncode == 0, done.stderr[-4000:]
    ran = Ran(tmp_path, done.stdout, done.stderr)
    found = ran.record(NAME)
    steps = read_steps(ran.run_dir(NAME) / "ledger.jsonl")
    assert len(steps) == found["totals"]["steps"] == 2
    tokens = adapter_for(user_supplied(tmp_path), None).processor().visual_tokens
    assert sum(entry["counts"]["visual"] for entry in steps) == 3 * tokens
    assert found["totals"]["counts"]["active"] == found["totals"]["counts"]["valid"], "the first steps are dense"
