"""Suites: what they expand to, what ships, and what a wrong one says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from harness.cli.arguments import recipes_of
from harness.cli.main import app
from harness.common.errors import RecipeError
from harness.config.data import ShapesData
from harness.config.load import EVALUATION, RECIPE, SUITE, check, kind_of, load, load_recipe, shipped, suite_recipes
from harness.data import shapes
from harness.data.sample import Media, Sample, Turn
from harness.models.tiny.sizes import footprint_of
from harness.plan import make_plan
from harness.plan.work import dense_and_sparse, lengths_in, sparse_ratios

if TYPE_CHECKING:
    from harness.config.recipe import Recipe

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
    recipes = suite_recipes(load(SUITE, written(tmp_path)))
    assert [recipe.name for recipe in recipes] == [
        "small.dense.seed3",
        "small.gated.seed3",
        "small.dense.seed5",
        "small.gated.seed5",
    ]
    assert [recipe.seed for recipe in recipes] == [3, 3, 5, 5]
    assert [recipe.suite.arm for recipe in recipes if recipe.suite] == ["dense", "gated"] * 2
    assert len({recipe.run_id for recipe in recipes}) == 4


def test_some_arms_and_seeds_are_picked_and_are_the_same_runs(tmp_path: Path) -> None:
    suite = load(SUITE, written(tmp_path))
    runs = {recipe.name: recipe.run_id for recipe in suite_recipes(suite, ["train.steps=9"])}
    for picks, names in (
        (["arms=gated"], ["small.gated.seed3", "small.gated.seed5"]),
        (["seeds=5"], ["small.dense.seed5", "small.gated.seed5"]),
        (["seeds=[5, 3]", "arms=[gated, 'dense']"], list(runs)),
        (["seeds=3", "arms=dense"], ["small.dense.seed3"]),
    ):
        picked = suite_recipes(suite, [*picks, "train.steps=9"])
        assert {recipe.name: recipe.run_id for recipe in picked} == {name: runs[name] for name in names}


@pytest.mark.parametrize(
    ("picks", "told"),
    [
        (["arms=gate"], "arms=gate: gate: none of the suite's arms"),
        (["seeds=[3, 4]"], "seeds=[3, 4]: 4: none of the suite's seeds"),
        (["seeds="], "seeds=: names none"),
        (["seeds=3", "seeds=5"], "seeds is given twice"),
        (["arms=gated", "seeds=5"], "has no run of these arms with these seeds"),
    ],
)
def test_what_a_suite_lacks_cannot_be_picked(tmp_path: Path, picks: list[str], told: str) -> None:
    arms = {**SMALL["arms"], "gated": {**SMALL["arms"]["gated"], "seeds": [3]}}  # type: ignore[dict-item]
    with pytest.raises(RecipeError, match=re.escape(told)):
        suite_recipes(load(SUITE, written(tmp_path, arms=arms)), picks)


def test_an_arm_is_its_recipe_but_for_what_it_sets(tmp_path: Path) -> None:
    gated = suite_recipes(load(SUITE, written(tmp_path)))[1]
    plain = load_recipe("tiny_smoke_regate", ["gate.keep_ratio=0.25", "seed=3"])
    assert {**gated.identity(), "name": ""} == {**plain.identity(), "name": ""}
    assert gated.devices.threads == 1


def test_the_mark_and_the_devices_are_not_part_of_a_runs_identity(tmp_path: Path) -> None:
    gated = suite_recipes(load(SUITE, written(tmp_path)))[1]
    changes = ["gate.keep_ratio=0.25", "seed=3", "name=small.gated.seed3"]
    assert gated.run_id == load_recipe("tiny_smoke_regate", changes).run_id


def test_overrides_reach_every_run(tmp_path: Path) -> None:
    recipes = recipes_of([written(tmp_path), "paths.results=elsewhere", "train.steps=7"])
    assert {(recipe.paths.results, recipe.train.steps) for recipe in recipes} == {("elsewhere", 7)}


def test_a_suite_and_a_recipe_may_stand_side_by_side(tmp_path: Path) -> None:
    assert len(recipes_of(["tiny_smoke_baseline", written(tmp_path)])) == 5


def test_a_file_is_of_the_kind_that_its_keys_say(tmp_path: Path) -> None:
    assert kind_of("tiny_baseline") is kind_of("recipes/tiny_baseline.yaml") is RECIPE
    assert kind_of("tiny_claim") is kind_of("recipes/suites/tiny_claim.yaml") is SUITE
    assert kind_of("evaluate/videochat2_official") is kind_of("videochat2_official") is EVALUATION
    assert kind_of("no_such_name") is kind_of(str(tmp_path)) is None
    assert kind_of(written(tmp_path)) is SUITE
    other = tmp_path / "other.yaml"
    for text, kind in {
        "# words\n\nseeds: [1]\nsuite: later\n": SUITE,
        "name: x\nsuite: null\n": RECIPE,
        "name: x\nsuite: {name: s, arm: a}\n": RECIPE,
        "name: x\nkind: evaluation\n": EVALUATION,
        "suite: [\n": RECIPE,
        "- suite: x\n": RECIPE,
        "": RECIPE,
    }.items():
        other.write_text(text)
        assert kind_of(other) is kind, text
    other.write_bytes(b"\xff\xfe")
    assert kind_of(other) is RECIPE


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
        suite_recipes(load(SUITE, written(tmp_path, **changes)))


def test_a_document_of_another_kind_is_called_by_its_kind(tmp_path: Path) -> None:
    path = written(tmp_path)
    for kind, name, message in (
        (RECIPE, path, "is a suite, not a recipe"),
        (RECIPE, "suites/tiny_claim", "is a suite, not a recipe"),
        (RECIPE, "evaluate/videochat2_official", "is an evaluation, not a recipe"),
        (SUITE, "tiny_regate", "is a recipe, not a suite"),
        (EVALUATION, path, "is a suite, not an evaluation"),
    ):
        with pytest.raises(RecipeError, match=message) as caught:
            load(kind, name)
        assert caught.value.hint == (f"harness eval {name}" if name.startswith("evaluate/") else None)


def test_the_mistakes_of_a_suite_come_at_once_with_their_places(tmp_path: Path) -> None:
    claims = [{"id": "same", "text": "as good", "first": "gatd", "second": "dense", "expect": "nicer"}]
    arms = {"dense": {"recipe": "tiny_smoke_baseline", "sett": {}}, "gated": {"recipe": "tiny_smoke_regate"}}
    path = written(tmp_path, baseline="dens", seeds=[3, 5, 3], claims=claims, arms=arms)
    problems = [str(problem) for problem in check(SUITE, path).problems]
    assert [problem.removeprefix(path) for problem in problems] == [
        ":5:3: a seed is given twice: 3",
        ":6:11: there is no arm dens; did you mean dense?",
        ":10:5: unknown key sett under arms.dense; did you mean set?",
        ":16:10: there is no arm gatd; did you mean gated?",
        ":18:11: claims[0].expect is \"nicer\", not one of better, not_worse",
    ]
    with pytest.raises(RecipeError, match="5 mistakes; nothing was run"):
        load(SUITE, path)


def test_the_mistakes_of_all_arms_come_at_once(tmp_path: Path) -> None:
    arms = {
        "dense": {"recipe": "tiny_smoke_baseline", "set": {"train.stepz": 3}},
        "gated": {"recipe": "tiny_smoke_regate", "set": {"gate.keep_ratio": 3}},
    }
    suite = load(SUITE, written(tmp_path, arms=arms))
    with pytest.raises(RecipeError, match=r"(?s)stepz.*keep_ratio.*\n2 mistakes"):
        suite_recipes(suite)


def test_a_wrong_override_in_an_arm_names_it(tmp_path: Path) -> None:
    arms = {"dense": {"recipe": "tiny_smoke_baseline", "set": {"train.stepz": 3}}}
    with pytest.raises(RecipeError, match="stepz"):
        suite_recipes(load(SUITE, written(tmp_path, arms=arms, claims=[])))


@pytest.mark.parametrize("name", sorted(shipped(SUITE)))
def test_every_run_of_a_shipped_suite_plans(name: str) -> None:
    suite = load(SUITE, name)
    assert suite.name == Path(name).name
    for recipe in suite_recipes(suite):
        assert make_plan(recipe).steps > 0


def test_the_arms_of_a_seed_start_from_the_same_things() -> None:
    """Model, data and batches are those of the baseline: only the gate, and once the length, is another."""
    suite = load(SUITE, "suites/tiny_claim")
    for recipe in suite_recipes(suite):
        base = load_recipe("tiny_baseline")
        assert (recipe.model, recipe.data, recipe.evaluate) == (base.model, base.data, base.evaluate)
        same = recipe.train.model_copy(update={"steps": base.train.steps})
        assert same == base.train
        assert recipe.devices.threads == 1


def test_the_arm_at_equal_targets_computes_what_regate_does() -> None:
    """By the schedule's closed form, to within the rounding within samples (a few parts in a hundred)."""
    by_arm = {recipe.suite.arm: recipe for recipe in suite_recipes(load(SUITE, "suites/tiny_claim")) if recipe.suite}
    regate, short = make_plan(by_arm["regate"]), make_plan(by_arm["baseline_equal_targets"])
    assert short.steps / regate.steps == pytest.approx(1 - regate.expected_reduction, abs=0.02)


@dataclass(frozen=True)
class Conversations:
    """What the account reads of a data set."""

    samples: list[Sample]


@cache
def arms_of(suite: str) -> dict[str, Recipe]:
    """The arms of a suite's first seed."""
    recipes = suite_recipes(load(SUITE, f"suites/{suite}"), ["seeds=0"])
    return {recipe.suite.arm: recipe for recipe in recipes if recipe.suite}


@cache
def conversations() -> Conversations:
    """Of a set of data.version 2, as far as the account reads them."""
    data = arms_of("frontier")["baseline"].data
    assert isinstance(data, ShapesData)
    records = shapes._conversations(shapes._scenes(data, 0, "train", 400), 0)
    return Conversations(
        [
            Sample(
                index,
                str(index),
                (Media("video", Path("clip.mp4")),),
                (Turn("user", asked["value"].replace("<video>", "")), Turn("assistant", answer["value"])),
            )
            for index, (asked, answer) in enumerate(record["conversations"] for record in records)
        ]
    )


@pytest.mark.parametrize(
    ("suite", "full", "short"),
    [("tiny_claim_2", "regate", "baseline_equal_flops")]
    + [("frontier", arm, f"baseline_flops_{arm}") for arm in ("regate", "deep1", "deep2", "pool25", "pool125")]
    + [("frontier", "pool25_deep1", "baseline_flops_pool25_deep1")]
    + [("frontier", "pool25_regate", "baseline_flops_pool125")]
    + [("comparators", arm, f"baseline_flops_{arm}") for arm in ("random_ltd", "fastv", "dycoke", "dualspeed")]
    + [("comparators", arm, "baseline_flops_cells") for arm in ("droptoken", "frames", "tome", "diverse")]
    + [("comparators", arm, "baseline_flops_words") for arm in ("regate", "random_targets")],
)
def test_the_arms_at_equal_flops_compute_as_much(suite: str, full: str, short: str) -> None:
    """By the account of `harness plan` over the conversations of a set, to within a few parts in a thousand; the arm
    that shares a baseline with another one to within a hundredth or two."""
    gated = arms_of(suite)[full]
    plan, footprint = make_plan(gated), footprint_of(gated)
    lengths = lengths_in(footprint, conversations())  # type: ignore[arg-type]
    ratio, _ = sparse_ratios(gated, footprint, lengths)
    dense = dense_and_sparse(gated, footprint, lengths)[0].total  # with the pass that it distils from
    whole = dense_and_sparse(arms_of(suite)[short], footprint, lengths)[0].total
    steps = make_plan(arms_of(suite)[short]).steps
    tolerance = 0.015 if full == "pool25_regate" else 0.004
    assert steps == pytest.approx(plan.dense_steps * dense / whole + plan.sparse_steps * ratio, rel=tolerance)
    assert ratio < 0.96


def test_the_arms_of_a_ramp_score_as_many_targets() -> None:
    plans = {name: make_plan(recipe) for name, recipe in arms_of("schedules").items()}
    for name in ("tighten", "relax"):
        assert plans[name].keep_ratio == pytest.approx(plans["regate"].keep_ratio, rel=0.002)
    for suite in ("schedules", "comparators"):
        part = make_plan(arms_of(suite)["regate"]).keep_ratio
        assert make_plan(arms_of(suite)["baseline_targets"]).steps == round(1000 * part)


def test_the_arm_at_equal_positions_computes_what_the_records_count() -> None:
    records = (Path(__file__).parents[3] / "results" / "evidence" / "tiny_claim" / "runs").glob("*/record.json")
    active: dict[str, list[int]] = {}
    for record in map(json.loads, (path.read_text() for path in records)):
        active.setdefault(record["suite"]["arm"], []).append(record["totals"]["counts"]["active"])
    recipes = suite_recipes(load(SUITE, "suites/tiny_claim_2"))
    by_arm = {recipe.suite.arm: recipe for recipe in recipes if recipe.suite}
    part = sum(active["regate"]) / sum(active["baseline"])
    short, whole = make_plan(by_arm["baseline_equal_positions"]).steps, make_plan(by_arm["regate"]).steps
    assert short / whole == pytest.approx(part, abs=0.001)


def test_an_arm_may_have_some_of_the_seeds(tmp_path: Path) -> None:
    arms = {"one": {"recipe": "tiny_smoke_baseline"}, "two": {"recipe": "tiny_smoke_regate", "seeds": [1]}}
    recipes = suite_recipes(load(SUITE, written(tmp_path, arms=arms, claims=[], baseline="one", seeds=[0, 1])))
    members = [(recipe.suite.arm, recipe.seed) for recipe in recipes if recipe.suite]
    assert members == [("one", 0), ("one", 1), ("two", 1)]
    for wrong, words in (([1, 1], "a seed is given twice: 1"), ([7], "seed 7 is none of the suite's seeds")):
        arms["two"]["seeds"] = wrong
        with pytest.raises(RecipeError, match=words):
            load(SUITE, written(tmp_path, arms=arms, claims=[], baseline="one", seeds=[0, 1]))


def test_validate_and_list_know_suites(tmp_path: Path) -> None:
    runner = CliRunner()
    answer = runner.invoke(app, ["validate", "--json", written(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert len(json.loads(answer.stdout)["recipes"]) == 4
    listed = runner.invoke(app, ["list", "suites", "--json"])
    assert "suites/tiny_claim" in {entry["name"] for entry in json.loads(listed.stdout)["suites"]}


def test_the_committed_runs_are_those_that_the_suite_names() -> None:
    """A recipe's id is made from its model, data, training, gate and evaluation: no key or default of them moved."""
    records = (Path(__file__).parents[3] / "results" / "evidence" / "tiny_claim" / "runs").glob("*/record.json")
    by_id = {record["id"]: record for record in map(json.loads, (path.read_text() for path in records))}
    recipes = {recipe.run_id: recipe for recipe in suite_recipes(load(SUITE, "suites/tiny_claim"))}
    assert set(by_id) == set(recipes)
    for run_id, recipe in recipes.items():
        assert recipe.suite is not None
        assert by_id[run_id]["suite"]["arm"] == recipe.suite.arm
        gated = recipe.gate is not None and recipe.gate.selection == "regate"
        # Those of lambda0 were made with a teacher's pass, which the recipe does not ask for any more.
        assert (by_id[run_id]["reference"] is not None) == gated
        if recipe.gate is not None and recipe.suite.arm == "lambda0":
            assert not recipe.gate.needs_reference
