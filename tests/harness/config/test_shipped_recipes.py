"""Every recipe that ships: it loads, it plans, and a pair is a pair."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.config.load import RECIPE, load_recipe, shipped
from harness.plan import make_plan

ROOT = Path(__file__).parents[3]
NAMES = sorted(shipped(RECIPE))
PAIRS = sorted(name.removesuffix("_regate") for name in NAMES if name.endswith("_regate"))
PAPER = yaml.safe_load((ROOT / "results" / "paper" / "tables.yaml").read_text())


def test_every_recipe_file_of_the_repository_ships() -> None:
    assert [(ROOT / "recipes" / f"{name}.yaml").is_file() for name in NAMES] == [True] * len(NAMES)
    assert len(NAMES) == len(list((ROOT / "recipes").glob("*.yaml"))) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_plans(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(name)
    assert recipe.name == name
    plan = make_plan(recipe)
    assert plan.steps > 0
    # DualSpeed's setting elides pictures alone, and scores every target.
    assert (plan.expected_reduction > 0) == (recipe.gate is not None and recipe.gate.keep_ratio < 1)
    assert (plan.sparse_steps > 0) == (recipe.gate is not None)
    brought = [need for need in recipe.model.needs() if getattr(recipe.model, need.field) is not None]
    assert bool(plan.missing_weights) == bool(brought)
    assert bool(plan.missing_data) == (not recipe.model.generated)
    assert brought or recipe.model.generated
    assert bool(plan.to_make) == recipe.model.generated
    assert not list(tmp_path.iterdir()), "planning writes nothing"


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_differs_in_name_and_gate_only(name: str) -> None:
    baseline = load_recipe(f"{name}_baseline").model_dump(mode="json")
    regate = load_recipe(f"{name}_regate").model_dump(mode="json")
    assert baseline["gate"] is None
    assert {key for key in baseline if baseline[key] != regate[key]} == {"name", "gate"}
    written = [
        yaml.safe_load((ROOT / "recipes" / f"{name}_{arm}.yaml").read_text()) for arm in ("baseline", "regate")
    ]
    assert {key for key in written[0] if written[0][key] != written[1][key]} == {"name", "gate"}


@pytest.mark.parametrize("model", ["videollama2", "videochat2"])
def test_the_papers_hyperparameters(model: str) -> None:
    """What results/paper/tables.yaml says of section 4.1 is what the recipes of the real models have."""
    gate = load_recipe(f"{model}_regate").gate
    assert gate is not None
    named = {
        "cycle_steps": gate.cycle_steps,
        "dense_steps": gate.dense_steps,
        "p_sparse": gate.keep_ratio,
        "warmup_steps": gate.warmup_steps,
        "ema_decay": gate.ema_decay,
        "reference_weight": gate.reference_weight,
    }
    assert named == PAPER["hyperparameters"]
    key = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2"}[model]
    data = load_recipe(f"{model}_regate").data
    assert data.source != "shapes"
    assert (data.samples, data.frames) == (PAPER["data"][key]["pairs"], PAPER["data"][key]["frames"])


@pytest.mark.parametrize(("model", "tokens"), [("videollama2", 83.82e6), ("videochat2", 3.93e9)])
def test_the_stated_targets_are_the_papers_tokens(model: str, tokens: float) -> None:
    plan = make_plan(load_recipe(f"{model}_baseline"))
    assert plan.targets is not None
    assert plan.targets.basis == "stated"
    assert plan.targets.total == pytest.approx(tokens, rel=1e-3)


def test_an_installed_package_finds_them_without_the_checkout(tmp_path: Path) -> None:
    build = ["setup.py", "-q", "egg_info", "-e", str(tmp_path)]
    build += ["build_py", "-d", str(tmp_path / "installed")]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    script = "import harness.config.load as load; print(load.__file__, *sorted(load.shipped(load.RECIPE)))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert printed == [str(tmp_path / "installed" / "harness" / "config" / "load.py"), *NAMES]
