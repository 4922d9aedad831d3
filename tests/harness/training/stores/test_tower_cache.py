"""Kept features of a frozen tower change no loss, and stand in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.common.progress import Progress
from harness.config.recipe import Devices
from harness.pipeline import prepare, train
from harness.plan import make_plan
from harness.plan.costs import costs_of
from harness.records.ledger import read_steps
from harness.training.stores.tower_cache import kept_tower_features, lacks_tower_features
from regate.config import GateConfig
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from harness.training.run import Prepared

GATE = GateConfig(selection="random", warmup_steps=0, cycle_steps=2, dense_steps=1)
SAMPLES = 20  # of five steps


def prepared(folder: Path, *, gigabytes: float, name: str, **changes: Any) -> Prepared:
    recipe = tiny_recipe(folder)
    training = recipe.train.model_copy(update={"steps": 5, "workers": 0, **changes})
    update = {"name": name, "train": training, "gate": GATE, "devices": Devices(tower_cache_gb=gigabytes)}
    return prepare(recipe.model_copy(update=update), Progress(quiet=True))


def steps(run: Prepared) -> list[dict[str, Any]]:
    train(run)
    return list(read_steps(run.run_dir / "ledger.jsonl"))


def test_the_losses_are_the_same_to_the_bit(tmp_path: Path) -> None:
    computed = steps(prepared(tmp_path, gigabytes=0.0, name="computed"))
    run = prepared(tmp_path, gigabytes=1.0, name="kept")
    kept = steps(run)
    assert not lacks_tower_features(run)
    for name in ("loss", "grad_norm", "counts"):
        assert [step[name] for step in kept] == [step[name] for step in computed]
    assert [step["tower_kept"] for step in computed] == [0] * 5
    assert sum(step["tower_kept"] for step in kept) == SAMPLES
    tower = 4 * run.adapter.shape().tower_flops
    for key in ("flops", "flops_dense"):
        assert [step[key] + tower for step in kept] == pytest.approx([step[key] for step in computed], rel=1e-12)


def test_none_are_kept_where_they_may_differ_or_are_too_large(tmp_path: Path) -> None:
    assert lacks_tower_features(prepared(tmp_path, gigabytes=0.0, name="none")) is False
    run = prepared(tmp_path, gigabytes=1e-6, name="too_large")
    assert kept_tower_features(run.recipe, run.data, run.adapter) is None
    half = prepared(tmp_path, gigabytes=1.0, name="bfloat16", precision="bfloat16")
    assert kept_tower_features(half.recipe, half.data, half.adapter) is None
    once = prepared(tmp_path, gigabytes=1.0, name="one_epoch", steps=1)
    assert not lacks_tower_features(once)
    assert not list((tmp_path / "stores").glob("tower-*"))


def test_the_plan_says_their_size_and_leaves_the_tower_out(tmp_path: Path) -> None:
    run = prepared(tmp_path, gigabytes=1.0, name="planned")
    figures = costs_of(run.recipe, make_plan(run.recipe), run.data).figures
    size = next(figure for figure in figures["disk"] if figure.name == "tower features")
    assert size.low * 1e9 == pytest.approx(len(run.data.samples) * 8 * 64 * 16 * 4)  # frames, channels, cells, bytes
    assert "kept on a CPU, within" in size.source
    assert next(figure.low for figure in figures["work"] if figure.name == "vision tower") == 0
    kept = kept_tower_features(run.recipe, run.data, run.adapter)
    assert kept is not None
    assert kept.samples == len(run.data.samples)
