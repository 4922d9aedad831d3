"""Suites: what they expand to, what ships, and what a wrong one says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli.arguments import load
from harness.cli.main import app
from harness.common.errors import RecipeError
from harness.config.load import load_recipe
from harness.config.suite import find_suite, load_suite, shipped_suites
from harness.plan import make_plan

SMALL = {
    "suite": "small",
    "seeds": [3, 5],
    "baseline": "dense",
    "arms": {
        "dense": {"recipe": "tiny_smoke_baseline"},
        "gated": {"recipe": "tiny_smoke_regate", "set": {"gate.keep_ratio": 0.25, "devices.threads": 1}},
    },
    "claims": [{"id": "same", "text": "as good", "first": "gated", "second": "dense", "expect": "not_worse"}],
}


def written(tmp_path: Path, **changes: object) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False))
    return str(path)


def test_a_suite_is_one_run_for_each_seed_and_arm(tmp_path: Path) -> None:
    recipes = load_suite(written(tmp_path)).recipes()
    assert [recipe.name for recipe in recipes] == [
        "small.dense.seed3",
        "small.gated.seed3",
        "small.dense.seed5",
        "small.gated.seed5",
    ]
    assert [recipe.seed for recipe in recipes] == [3, 3, 5, 5]
    assert [recipe.suite.arm for recipe in recipes if recipe.suite] == ["dense", "gated"] * 2
    assert len({recipe.run_id for recipe in recipes}) == 4


def test_an_arm_is_its_recipe_but_for_what_it_sets(tmp_path: Path) -> None:
    gated = load_suite(written(tmp_path)).recipes()[1]
    plain = load_recipe("tiny_smoke_regate", ["gate.keep_ratio=0.25", "seed=3"])
    assert {**gated.identity(), "name": ""} == {**plain.identity(), "name": ""}
    assert gated.devices.threads == 1


def test_the_mark_and_the_devices_are_not_part_of_a_runs_identity(tmp_path: Path) -> None:
    gated = load_suite(written(tmp_path)).recipes()[1]
    changes = ["gate.keep_ratio=0.25", "seed=3", "name=small.gated.seed3"]
    assert gated.run_id == load_recipe("tiny_smoke_regate", changes).run_id


def test_overrides_reach_every_run(tmp_path: Path) -> None:
    recipes = load([written(tmp_path), "paths.results=elsewhere", "train.steps=7"])
    assert {(recipe.paths.results, recipe.train.steps) for recipe in recipes} == {("elsewhere", 7)}


def test_a_suite_and_a_recipe_may_stand_side_by_side(tmp_path: Path) -> None:
    assert len(load(["tiny_smoke_baseline", written(tmp_path)])) == 5


def test_a_recipe_is_no_suite() -> None:
    assert find_suite("tiny_baseline") is None
    assert find_suite("recipes/tiny_baseline.yaml") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "dens"}, "no arm dens; did you mean dense"),
        ({"seeds": [1, 1]}, "seed is given twice"),
        ({"seeds": []}, "seeds"),
        ({"arms": {"dense": {"recipe": "tiny_smok_baseline"}}, "claims": []}, "did you mean tiny_smoke_baseline"),
        ({"sedes": [1]}, "sedes"),
    ],
)
def test_a_wrong_suite_says_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_suite(written(tmp_path, **changes)).recipes()


def test_a_wrong_override_in_an_arm_names_it(tmp_path: Path) -> None:
    arms = {"dense": {"recipe": "tiny_smoke_baseline", "set": {"train.stepz": 3}}}
    with pytest.raises(RecipeError, match="stepz"):
        load_suite(written(tmp_path, arms=arms, claims=[])).recipes()


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_every_run_of_a_shipped_suite_plans(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == Path(name).name
    for recipe in suite.recipes():
        assert make_plan(recipe).steps > 0


def test_the_arms_of_a_seed_start_from_the_same_things() -> None:
    """Model, data and batches are those of the baseline: only the gate, and once the length, is another."""
    suite = load_suite("suites/tiny_claim")
    for recipe in suite.recipes():
        base = load_recipe("tiny_baseline")
        assert (recipe.model, recipe.data, recipe.evaluate) == (base.model, base.data, base.evaluate)
        same = recipe.train.model_copy(update={"steps": base.train.steps})
        assert same == base.train
        assert recipe.devices.threads == 1


def test_the_arm_at_equal_targets_computes_what_regate_does() -> None:
    """By the schedule's closed form, to within the rounding within samples (a few parts in a hundred)."""
    by_arm = {recipe.suite.arm: recipe for recipe in load_suite("suites/tiny_claim").recipes() if recipe.suite}
    regate, short = make_plan(by_arm["regate"]), make_plan(by_arm["baseline_equal_targets"])
    assert short.steps / regate.steps == pytest.approx(1 - regate.expected_reduction, abs=0.02)


def test_validate_and_list_know_suites(tmp_path: Path) -> None:
    runner = CliRunner()
    found = runner.invoke(app, ["validate", "--json", written(tmp_path)])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["recipes"]) == 4
    listed = runner.invoke(app, ["list", "suites", "--json"])
    assert "suites/tiny_claim" in {entry["name"] for entry in json.loads(listed.stdout)["suites"]}
