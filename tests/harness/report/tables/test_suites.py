"""Tables of a suite: numbers of its records, differences within a seed, intervals over seeds, verdicts of claims."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from harness.analysis.frontier import accounted_recipe
from harness.analysis.option_loss import option_losses
from harness.analysis.runs import Run, load_runs
from harness.analysis.statistics import holm
from harness.common.errors import DataError
from harness.config.load import load_recipe
from harness.config.suite import Claim, Suite
from harness.plan import Planner
from harness.plan.shapes import parts_at, published_shapes, scaled
from harness.plan.work import dense_and_sparse
from harness.records.evaluations import items_digest
from harness.report import table as render
from harness.report.tables import make_tables, suite_tables
from harness.report.tables.time_to_target import KINDS, compared, reaches
from regate.config import GateConfig, KeepBelow, VisualConfig
from tests.harness.worlds.run_builder import build_run, finish, recipe

if TYPE_CHECKING:
    from pathlib import Path

    from harness.report.table import Table

SEEDS = (0, 1, 2, 3)
SKILLS = {"baseline": (40, 1.2), "regate": (40, 1.15), "short": (23, 1.0), "random": (40, 0.5)}


def _build(results: Path, arm: str, seed: int) -> None:
    steps, skill = SKILLS[arm]
    gate: dict[str, Any] | bool = {"regate": True, "random": {"selection": "random"}}.get(arm, False)
    mark = {"name": "claim", "arm": arm}
    fields = {"seed": seed, "suite": mark, "evaluate": {"benchmarks": ["shapes"], "at": [0.5, 0.75, 1.0]}}
    asked = recipe(results, f"claim.{arm}.seed{seed}", gate=gate, steps=steps, **fields)
    jitter = 0.1 * np.random.default_rng([seed, len(arm)]).normal()
    finish(asked, build_run(asked, skill=skill + jitter))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    for seed in SEEDS:
        for arm in SKILLS:
            if (arm, seed) != ("random", 3):
                _build(folder, arm, seed)
    return folder


def _suite() -> Suite:
    content = {
        "suite": "claim",
        "seeds": list(SEEDS),
        "baseline": "baseline",
        "arms": {arm: {"recipe": "tiny_baseline"} for arm in ("baseline", "short", "regate", "random", "not_run")},
        "claims": [
            {"id": "same", "text": "as good", "first": "regate", "second": "baseline", "expect": "not_worse"}
            | {"margin": 0.5},
            {"id": "gains", "text": "better", "first": "regate", "second": "random", "expect": "better"},
            {"id": "loses", "text": "wrongly better", "first": "random", "second": "regate", "expect": "better"},
            {"id": "unknown", "text": "not run", "first": "regate", "second": "not_run", "expect": "better"},
        ],
    }
    return Suite.model_validate_json(json.dumps(content))


@pytest.fixture(scope="module")
def runs(results: Path) -> list[Run]:
    return load_runs(results)


@pytest.fixture(scope="module")
def tables(runs: list[Run]) -> dict[str, Table]:
    return {table.name: table for table in suite_tables("claim", runs, _suite())}


def _rows(table: Table) -> dict[str, dict[str, Any]]:
    content = json.loads(render.to_json(table))
    return {next(iter(row.values())): row for row in content["rows"]}


def _scores(runs: list[Run], arm: str) -> dict[int, float]:
    members = [run for run in runs if run.suite == ("claim", arm)]
    return {run.seed: run.record["evaluations"][-1]["mean"]["value"] for run in members}


def test_arms_are_means_of_their_records(runs: list[Run], tables: dict[str, Table]) -> None:
    rows = _rows(tables["suite_claim"])
    assert list(rows) == ["baseline", "short", "regate", "random"], "in the order of the suite"
    for arm, row in rows.items():
        scores = list(_scores(runs, arm).values())
        counts = [run.totals["counts"] for run in runs if run.suite == ("claim", arm)]
        assert row["seeds"] == len(scores)
        assert row["targets_computed"] == round(np.mean([count["scored"] for count in counts]))
        assert row["positions_computed"] == round(np.mean([count["active"] for count in counts]))
        assert row["shapes_mean"] == pytest.approx(np.mean(scores))
        assert row["shapes_sd"] == pytest.approx(np.std(scores, ddof=1))
    assert rows["baseline"]["targets_reduction"] == rows["baseline"]["shapes_difference"] == ""
    assert 0.3 < rows["regate"]["targets_reduction"] < 0.5


def test_differences_are_paired_by_seed(runs: list[Run], tables: dict[str, Table]) -> None:
    rows = _rows(tables["suite_claim"])
    for arm in ("regate", "random"):
        scores, base = _scores(runs, arm), _scores(runs, "baseline")
        shared = sorted(scores.keys() & base.keys())
        values = [scores[seed] - base[seed] for seed in shared]
        interval = ttest_rel([scores[s] for s in shared], [base[s] for s in shared]).confidence_interval()
        row = rows[arm]
        difference = [row[f"shapes_difference{end}"] for end in ("", "_low", "_high", "_least", "_most", "_seeds")]
        expected = [np.mean(values), interval.low, interval.high, min(values), max(values), len(values)]
        assert difference == pytest.approx(expected, rel=1e-9)
    # The arm without a gate that computed as many targets is found by its number of targets.
    scores, short = _scores(runs, "regate"), _scores(runs, "short")
    assert rows["regate"]["shapes_equal_targets"] == pytest.approx(np.mean([scores[s] - short[s] for s in SEEDS]))
    assert rows["short"]["shapes_equal_targets"] == ""
    assert "random: no run with seed 3" in " ".join(tables["suite_claim"].notes)


def test_claims_get_their_verdict_from_the_interval_over_seeds(tables: dict[str, Table]) -> None:
    table = tables["suite_claim_claims"]
    rows = _rows(table)
    words = {claim: row["verdict"] for claim, row in rows.items()}
    assert words == {"same": "reproduced", "gains": "reproduced", "loses": "differs", "unknown": "missing"}
    assert (rows["same"]["seeds"], rows["gains"]["seeds"], rows["unknown"]["seeds"]) == (4, 3, 0)
    assert rows["gains"]["difference_low"] > 0
    assert rows["loses"]["difference"] == pytest.approx(-rows["gains"]["difference"])
    assert rows["gains"]["detectable"] > 0
    facts = {
        fact["claim"]: fact["bootstrap_over_seeds_and_items"] for fact in json.loads(render.to_json(table))["facts"]
    }
    assert facts["gains"]["value"] == pytest.approx(rows["gains"]["difference"], abs=1e-9)
    assert facts["gains"]["low"] < facts["gains"]["value"] < facts["gains"]["high"]
    assert facts["unknown"] is None
    assert any("above minus the margin" in note for note in table.notes)


def test_arms_stand_by_all_the_flops_that_they_need(runs: list[Run], tables: dict[str, Table]) -> None:
    """Training as the ledger has it and one pass of the teacher, as a part of the baseline with the same seed."""
    rows = _rows(tables["suite_claim_frontier_shapes"])
    assert list(rows) == sorted(rows, key=lambda arm: rows[arm]["flops_of_baseline"])
    by_seed = {arm: {run.seed: run for run in runs if run.suite == ("claim", arm)} for arm in SKILLS}
    hidden, layers, vocabulary = 128, 3, 285
    for arm, row in rows.items():
        parts = []
        for seed, run in by_seed[arm].items():
            counts, samples = run.totals["counts"], run.totals["samples"]
            text = (counts["valid"] - counts["visual"]) / samples
            weights = layers * (4 * hidden**2 + 3 * hidden * 2 * hidden)
            attention = 2 * layers * hidden * text * (text + 1)
            reading = 2 * weights * text + attention + 2 * hidden * vocabulary * counts["target"] / samples
            teacher = reading * run.record["plan"]["samples"] if arm == "regate" else 0.0
            parts.append((run.totals["flops"] + teacher) / by_seed["baseline"][seed].totals["flops"])
        assert row["flops_of_baseline"] == pytest.approx(np.mean(parts), rel=1e-9), arm
    assert rows["baseline"]["flops_of_baseline"] == 1
    assert rows["regate"]["teacher_flops"] > 0
    assert rows["random"]["teacher_flops"] == rows["short"]["teacher_flops"] == ""
    for arm, row in rows.items():
        others = [other for name, other in rows.items() if name != arm]
        value = {id(other): other["difference"] or 0.0 for other in (row, *others)}
        beaten = any(
            other["flops_of_baseline"] <= row["flops_of_baseline"] and value[id(other)] >= value[id(row)]
            for other in others
        )
        assert (row["on_the_front"] == "yes") is not beaten, arm
    assert {row["on_the_front"] for row in rows.values()} == {"yes", ""}


def test_one_seed_of_a_suite_has_no_interval(runs: list[Run]) -> None:
    first = [run for run in runs if run.seed == 0 or run.suite == ("claim", "baseline")]
    tables = {table.name: table for table in suite_tables("claim", first, _suite())}
    rows = _rows(tables["suite_claim_frontier_shapes"])
    assert rows["regate"]["seeds"] == 1
    assert rows["regate"]["difference"] is not None
    ends = [rows["regate"][f"{value}low"] for value in ("", "difference_")]
    assert ends == [None, None]
    alone = [run for run in runs if run.suite == ("claim", "regate")]
    names = [table.name for table in suite_tables("claim", alone, _suite())]
    assert not [name for name in names if "frontier" in name or "7b" in name], "nothing to compare it with"


def test_the_same_gate_at_the_shapes_of_the_papers_models(runs: list[Run], tables: dict[str, Table]) -> None:
    """The suite's steps, and a sparse step as `harness plan` has it of the large model with this gate."""
    rows = _rows(tables["suite_claim_flops_at_7b"])
    run = next(run for run in runs if run.suite == ("claim", "regate"))
    plan, gate = run.record["plan"], accounted_recipe(run).gate
    assert gate is not None
    overrides = [f"gate.keep_ratio={gate.keep_ratio}"]
    figures = Planner().costs(load_recipe("videollama2_regate", overrides)).figures["work"]
    (packed,) = [figure.low for figure in figures if figure.name == "sparse / dense, packed rows"]
    expected = 1 - plan["sparse_steps"] / plan["steps"] * (1 - packed)
    assert rows["regate"]["videollama2_1_7b"] == pytest.approx(expected)
    assert rows["regate"]["videollama2_1_7b_with_teacher"] > expected
    assert rows["random"]["videollama2_1_7b_with_teacher"] == pytest.approx(expected), "it needs no teacher"
    assert rows["short"]["videochat2_7b"] == pytest.approx(23 / 40)


def test_layers_are_parts_of_the_depth_at_other_shapes() -> None:
    shape = published_shapes()["VideoLLaMA2.1-7B"]
    by_number = parts_at(shape, GateConfig(deep=1, from_layer=None), 4)
    by_part = parts_at(shape, GateConfig(deep=0.25), 99)
    assert by_number == by_part
    assert by_number.sparse < parts_at(shape, GateConfig(deep=3), 4).sparse < 1
    below = scaled(GateConfig(keep_below=(KeepBelow(1, 0.9), KeepBelow(2, 0.7))), 4).keep_below
    assert [level.layer for level in below] == [0.25, 0.5]
    late = scaled(GateConfig(visual=VisualConfig(how="attention", from_layer=1)), 4).visual
    assert late is not None
    assert late.from_layer == 0.25
    quarter = parts_at(shape, GateConfig(visual=VisualConfig(keep=0.25), keep_ratio=1.0), 4)
    tower = sum(part.forward for part in shape.footprint.parts if not part.trained)
    dense, _ = dense_and_sparse(shape.recipe, shape.footprint, shape.lengths)
    assert 0.25 + 0.7 * tower / dense.total < quarter.sparse < 0.55, "the tower still sees every picture"


@pytest.mark.parametrize("what", ["prompts", "questions", "frames", "limit", "scoring"])
def test_arms_that_were_asked_otherwise_are_no_pair(runs: list[Run], what: str) -> None:
    """The score of another way of asking is no evidence of the gate: the claim goes by the other seeds alone."""
    changed = []
    for run in runs:
        record = json.loads(json.dumps(run.record))
        if run.suite == ("claim", "regate") and run.seed in (1, 3):
            last = record["evaluations"][-1]
            last["mean"]["value"] = 0.0
            if what in ("frames", "limit"):
                record["recipe"]["data" if what == "frames" else "evaluate"][what] = 2
            else:
                key = {"prompts": "prompt_hash"}.get(what, what)
                last[key] = {"combine": "pooled"} if what == "scoring" else "0" * 64
        changed.append(Run(record, run.folder))
    tables = {table.name: table for table in suite_tables("claim", changed, _suite())}
    claim = _rows(tables["suite_claim_claims"])["same"]
    assert (claim["seeds"], claim["seeds_left_out"]) == (2, 2)
    values = [_scores(runs, "regate")[seed] - _scores(runs, "baseline")[seed] for seed in (0, 2)]
    assert claim["difference"] == pytest.approx(np.mean(values))
    assert "2 (2 left out)" in render.to_markdown(tables["suite_claim_claims"])
    arm = _rows(tables["suite_claim"])["regate"]
    assert arm["shapes_difference"] == pytest.approx(np.mean(values))
    assert arm["shapes_difference_seeds"] == 2
    note = f"regate: asked otherwise on shapes than the baseline ({what}) with seed 1, 3; left out of the differences"
    assert f"{note}." in tables["suite_claim"].notes


def test_claims_name_the_answers_that_are_no_evidence(runs: list[Run]) -> None:
    changed = [Run(json.loads(json.dumps(run.record)), run.folder) for run in runs]
    for run in changed:
        if run.suite == ("claim", "regate"):
            run.record["evaluations"][-1]["counts"] |= {"guessed": 3, "unparsable": 1}
        if run.suite == ("claim", "short"):
            del run.record["evaluations"][-1]["counts"]["guessed"]
    tables = {table.name: table for table in suite_tables("claim", changed, _suite())}
    claim = _rows(tables["suite_claim_claims"])["same"]
    names = [f"{kind}_{side}" for kind in ("guessed", "unparsable") for side in ("first", "second")]
    assert [claim[name] for name in names] == [12, 0, 4, 0]


def test_p_values_are_corrected_for_the_number_of_claims_and_arms(runs: list[Run]) -> None:
    tables = {table.name: table for table in suite_tables("claim", runs, _suite())}
    claims = _rows(tables["suite_claim_claims"])
    scores, base = _scores(runs, "regate"), _scores(runs, "baseline")
    expected = ttest_1samp([scores[seed] - base[seed] for seed in SEEDS], -0.5).pvalue
    assert claims["same"]["p"] == pytest.approx(expected)
    tested = [row for row in claims.values() if row["p"] is not None]
    assert [row["p_holm"] for row in tested] == pytest.approx(holm([row["p"] for row in tested]))
    assert claims["unknown"]["p"] is claims["unknown"]["p_holm"] is None
    arms = _rows(tables["suite_claim"])
    others = [row for name, row in arms.items() if name != "baseline"]
    corrected = holm([row["shapes_difference_p"] for row in others])
    assert [row["shapes_difference_p_holm"] for row in others] == pytest.approx(corrected)
    assert arms["baseline"]["shapes_difference_p"] == ""


def test_abilities_and_time_to_target(runs: list[Run], tables: dict[str, Table]) -> None:
    rows = _rows(tables["suite_claim_abilities_shapes"])
    members = [run for run in runs if run.suite == ("claim", "regate")]
    colour = [run.record["evaluations"][-1]["tasks"][0]["value"] for run in members]
    assert rows["regate"]["colour"] == pytest.approx(np.mean(colour))
    assert rows["regate"]["colour_sd"] == pytest.approx(np.std(colour, ddof=1))
    reach = _rows(tables["suite_claim_target_shapes"])
    assert "baseline" not in reach
    assert reach["random"]["reached"] == 0
    assert reach["random"]["targets"] == "inf"
    assert "not reached" in render.to_markdown(tables["suite_claim_target_shapes"])
    assert reach["regate"]["seeds"] == 4
    first, second = (
        next(run for run in runs if run.suite == ("claim", arm) and run.seed == 0) for arm in ("baseline", "regate")
    )
    evaluations = second.evaluations("shapes")
    crossings = reaches(first, second, "shapes")
    assert crossings is not None
    assert crossings.keys() == {"targets", "seconds"}, "device-hours of a CPU are wall time"
    longest = evaluations[-1]["progress"]
    assert crossings["seconds"].at is None or crossings["seconds"].at <= longest["train_cpu_seconds"]


def test_wall_seconds_of_a_cpu_are_compared_with_nothing(results: Path) -> None:
    first, second = (run for run in load_runs(results) if run.suite in (("claim", "baseline"), ("claim", "regate"))
                     and run.seed == 0)  # fmt: skip
    assert [compared(kind, first, second, "shapes") for kind in KINDS] == ["scored", "train_cpu_seconds", None]
    first.evaluations("shapes")[-1]["progress"]["train_cpu_seconds"] = None
    assert [compared(kind, first, second, "shapes") for kind in KINDS] == ["scored", None, None], "an earlier record"
    for run in (first, second):
        run.record["provenance"]["hardware"]["gpus"] = [{"name": "a GPU"}]
    every = [compared(kind, first, second, "shapes") for kind in KINDS]
    assert every == ["scored", "train_seconds", "train_device_hours"]


def _cross_entropy(run: Run) -> float:
    """By hand, from the lines of the item file: the mean over the abilities that count of the items' means."""
    evaluation = run.record["evaluations"][-1]
    lines = run.folder / "eval" / f"step-{evaluation['step']:06d}" / evaluation["items"]
    by_ability: dict[str, list[float]] = {}
    for line in lines.read_text().splitlines():
        item = json.loads(line)
        logits = -np.array(item["option_loss"])
        probability = np.exp(logits) / np.exp(logits).sum()
        by_ability.setdefault(item["ability"], []).append(-np.log(probability[item["answer"]]))
    return float(np.mean([np.mean(losses) for name, losses in by_ability.items() if name != "collision"]))


def test_the_cross_entropy_of_the_right_option_is_paired_by_seed(runs: list[Run], tables: dict[str, Table]) -> None:
    table = tables["suite_claim_option_loss_shapes"]
    content = json.loads(render.to_json(table))["rows"]
    assert [(row["first"], row["second"]) for row in content] == [
        ("baseline", ""),
        ("short", "baseline"),
        ("regate", "baseline"),
        ("random", "baseline"),
        ("regate", "random"),
        ("random", "regate"),
    ], "an arm each, then what only a claim compares; not what was not run"
    by_hand = {
        arm: {run.seed: _cross_entropy(run) for run in runs if run.suite == ("claim", arm)}
        for arm in ("baseline", "regate", "random")
    }
    base, gated, against_random = content[0], content[2], content[4]
    assert base["mean"] == pytest.approx(np.mean(list(by_hand["baseline"].values())))
    assert gated["sd"] == pytest.approx(np.std(list(by_hand["regate"].values()), ddof=1))
    test = ttest_rel(list(by_hand["regate"].values()), list(by_hand["baseline"].values()))
    assert (gated["seeds"], gated["p"]) == (4, pytest.approx(test.pvalue))
    interval = test.confidence_interval(0.95)
    assert (gated["difference_low"], gated["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert against_random["seeds"] == 3, "random was not run with seed 3"
    differences = [by_hand["regate"][seed] - by_hand["random"][seed] for seed in (0, 1, 2)]
    assert against_random["difference"] == pytest.approx(np.mean(differences))
    tested = [row for row in content if row["second"]]
    assert [row["p_holm"] for row in tested] == pytest.approx(holm([row["p"] for row in tested]))


def test_answers_that_were_written_have_no_cross_entropy(tmp_path: Path) -> None:
    """One item without the losses of its options, and the suite has no such table."""
    for arm in ("baseline", "regate"):
        _build(tmp_path, arm, 0)
    for path in tmp_path.glob("runs/*/eval/*/shapes.items.jsonl"):
        first, *others = path.read_text().splitlines()
        item = json.loads(first)
        path.write_text("\n".join([json.dumps({**item, "option_loss": None}), *others]) + "\n")
    for run in load_runs(tmp_path):
        evaluation = run.record["evaluations"][-1]
        items = [json.loads(line) for line in (run.folder / "eval" / "step-000040" / "shapes.items.jsonl").open()]
        evaluation["items_digest"] = items_digest(items)
        evaluation["items_sha256"] = None
        assert option_losses(run, evaluation) is None


def test_every_run_is_named_with_its_numbers(runs: list[Run], tables: dict[str, Table]) -> None:
    rows = _rows(tables["suite_claim_runs"])
    assert rows.keys() == {run.id for run in runs}
    run = runs[0]
    assert rows[run.id]["targets_computed"] == run.totals["counts"]["scored"]
    assert rows[run.id]["train_cpu_seconds"] == pytest.approx(run.totals["cpu_seconds"])
    assert not tables["suite_claim_runs"].printed


def test_runs_of_a_suite_are_in_its_tables_alone(results: Path) -> None:
    names = {table.name for table in make_tables(results, {"claim": _suite()})}
    assert "suite_claim_claims" in names
    assert "pairs" not in names
    assert not any(name.startswith("accuracy") for name in names)


def test_a_suite_without_its_definition_is_shown_without_claims(runs: list[Run]) -> None:
    tables = {table.name: table for table in suite_tables("claim", runs)}
    assert "suite_claim_claims" not in tables
    rows = _rows(tables["suite_claim"])
    assert list(rows) == ["baseline", "random", "regate", "short"]
    assert rows["baseline"]["shapes_difference"] == "", "the arm without a gate that computed most is the baseline"


def test_recipes_run_with_several_seeds_get_a_table_without_a_suite(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for name, gate, skill in (("plain", False, 1.2), ("gated", True, 1.0)):
            asked = recipe(tmp_path, name, gate=gate, seed=seed)
            finish(asked, build_run(asked, skill=skill + 0.05 * seed))
    other = recipe(tmp_path, "gated", gate={"keep_ratio": 0.25})
    finish(other, build_run(other))
    tables = {table.name: table for table in make_tables(tmp_path)}
    rows = _rows(tables["seeds_plain"])
    plain, *gated = rows
    assert plain == "plain"
    assert [rows[name]["seeds"] for name in gated] in ([3, 1], [1, 3])
    assert all(name.startswith("gated ") for name in gated), "two gates of one name are told apart"
    values = {run.seed: run.record["evaluations"][-1]["mean"]["value"] for run in load_runs(tmp_path) if not run.gate}
    assert rows["plain"]["shapes_mean"] == pytest.approx(np.mean(list(values.values())))
    assert len(tables["pairs"].rows) == 7, "each run is still a row of its own"


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path: Path) -> None:
    _build(tmp_path, "baseline", 0)
    mark = {"name": "claim", "arm": "baseline"}
    twin = recipe(tmp_path, "claim.baseline.seed0", steps=30, suite=mark)
    finish(twin, build_run(twin))
    with pytest.raises(DataError, match="a second run of arm baseline of suite claim with seed 0"):
        make_tables(tmp_path)


def test_one_seed_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    for arm in ("baseline", "regate"):
        _build(tmp_path, arm, 0)
    tables = {table.name: table for table in suite_tables("claim", load_runs(tmp_path), _suite())}
    row = _rows(tables["suite_claim"])["regate"]
    assert row["shapes_low"] is None
    assert row["shapes_difference"] is not None
    assert _rows(tables["suite_claim_claims"])["same"]["verdict"] == "missing"


def test_the_suites_claim_is_what_tables_read() -> None:
    claim = Claim(id="a", text="b", first="c", second="d", expect="better")
    assert (claim.margin, claim.expect) == (0.0, "better")
