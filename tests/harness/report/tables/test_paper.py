"""The paper's tables: built from its own numbers they reproduce its pattern and its claims; nothing is invented."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import ttest_rel

from harness.analysis.paper.numbers import GATED, MODELS, TABLES, Paper, in_points, load_paper
from harness.analysis.paper.runs import paper_runs
from harness.analysis.runs import Run, load_runs
from harness.config.load import RECIPE, load_recipe, shipped
from harness.config.recipe import Recipe
from harness.report import table as render
from harness.report.tables.paper.build import paper_tables_of
from harness.report.tables.paper.claims import CLAIMS
from harness.report.tables.paper.costs import LAMBDAS, TEACHERS
from harness.report.tables.time_to_target import reaches
from tests.harness.report.tables.test_tables import check_latex
from tests.harness.worlds.paper_runs import definitions, paper_gate, papers_own_runs, papers_recipe, run_of
from tests.harness.worlds.run_builder import build_pair

if TYPE_CHECKING:
    from pathlib import Path

    from harness.report.table import Cell, Table


@pytest.fixture(scope="module")
def paper() -> Paper:
    return load_paper()


@pytest.fixture(scope="module")
def full(paper: Paper) -> dict[str, Table]:
    """All tables, with the paper's numbers as our runs."""
    return {table.name: table for table in paper_tables_of(paper, papers_own_runs(paper), definitions())}


@pytest.fixture(scope="module")
def empty(paper: Paper) -> dict[str, Table]:
    return {table.name: table for table in paper_tables_of(paper, [])}


def _rows(table: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(render.to_json(table))["rows"]
    return rows


def _column(table: Table, name: str) -> list[Cell]:
    index = next(place for place, column in enumerate(table.columns) if name in column.names)
    return [row[index] for row in table.rows]


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_own_numbers_give_its_best_and_second_best(
    full: dict[str, Table], paper: Paper, name: str
) -> None:
    table = full[f"paper/{name}"]
    sources = [row[2].text for row in table.rows]
    labels = [row[0].text for row in table.rows]
    groups = {row.label: row.group for row in paper.benchmark_table(name)}
    for benchmark in TABLES[name]:
        cells = _column(table, benchmark.name)
        printed = {
            label: cell
            for label, source, cell in zip(labels, sources, cells, strict=True)
            if source == "paper" and groups.get(label) in ("open_source", "regate")
        }
        numbers = sorted({cell.values[0] for cell in printed.values() if cell.values[0] is not None}, reverse=True)  # type: ignore[type-var]
        assert {label for label, cell in printed.items() if cell.mark == "best"} == {
            label for label, cell in printed.items() if cell.values[0] == numbers[0]
        }
        assert {label for label, cell in printed.items() if cell.mark == "second"} == {
            label for label, cell in printed.items() if cell.values[0] == numbers[1]
        }
        ours = {label: cell for label, source, cell in zip(labels, sources, cells, strict=True) if source == "ours"}
        for label, cell in ours.items():
            assert cell.values[0] == pytest.approx(_paper_value(table, benchmark.name, label))
            if label in groups:
                assert cell.mark == printed[label].mark, (benchmark.name, label)
        assert all(
            cell.mark == "" for label, cell in zip(labels, cells, strict=True) if groups.get(label) == "proprietary"
        )


def _paper_value(table: Table, name: str, label: str) -> Any:
    cells = _column(table, name)
    rows = zip(table.rows, cells, strict=True)
    return next(cell.values[0] for row, cell in rows if (row[0].text, row[2].text) == (label, "paper"))


def test_a_few_marks_and_deltas_by_hand(full: dict[str, Table]) -> None:
    image = {(row["model"], row["source"]): row for row in _rows(full["paper/table1_image"])}
    assert image["VideoLLaMA2-ReGATE - VideoLLaMA2", "paper"]["scienceqa"] == pytest.approx(0.191)
    assert image["VideoLLaMA2-ReGATE - VideoLLaMA2", "ours"]["mme_perception"] == pytest.approx(33.1)
    assert image["VideoChat2-ReGATE - VideoChat2", "ours"]["pope"] == pytest.approx(-0.011)
    text = render.to_markdown(full["paper/table1_image"])
    assert "**95.4**" in text
    assert "<u>94.4</u>" in text
    assert "\\textbf{95.4}" in render.to_latex(full["paper/table1_image"])
    assert "\\underline{94.4}" in render.to_latex(full["paper/table1_image"])
    assert (image["GPT-4o", "paper (proprietary)"]["mme_cognition"]) == 719.3


def test_with_the_papers_numbers_every_row_is_reproduced(full: dict[str, Table]) -> None:
    for name, table in full.items():
        if name.startswith(("paper/scores", "paper/table4_efficiency_v1_judged", "paper/table5")):
            # Reaching a target needs the items of several checkpoints, which the paper does not give.
            rows = [row for row in _rows(table) if row["quantity"] != "time-to-target speed-up"]
            judged = [row for row in rows if row["paper"] is not None and row["verdict"]]
            assert judged
            assert {row["verdict"] for row in judged} == {"reproduced"}, name
    claims = {row["claim"]: row["claim_verdict"] for row in _rows(full["paper/claims"])}
    without = {"teacher-aligned"}  # the paper prints an average that its scores do not give
    assert {claim for claim, word in claims.items() if word != "reproduced"} == without


def test_every_claim_of_the_paper_is_checked(paper: Paper, empty: dict[str, Table]) -> None:
    assert [claim["id"] for claim in paper.claims] == list(CLAIMS)
    assert {row["verdict"] for row in _rows(empty["paper/claims"])} == {"missing"}
    parts = {(row["claim"], row["part"]): row["paper"] for row in _rows(empty["paper/claims"])}
    time = next(claim for claim in paper.claims if claim["id"] == "llama2-matched-time")
    tokens = next(claim for claim in paper.claims if claim["id"] == "llama2-matched-tokens")
    hours = parts["llama2-matched-time", "train hours, fast / baseline"]
    assert hours == pytest.approx(time["ratio_time"], abs=5e-4)
    computed = parts["llama2-matched-tokens", "targets computed, fast / baseline"]
    assert computed == pytest.approx(tokens["ratio_tokens"], abs=5e-4)
    assert parts["lambda-combined", "MVBench, lambda 0.5 - lambda 0.0"] == pytest.approx(0.023)


def test_without_runs_ours_is_missing_and_the_paper_stands(empty: dict[str, Table], full: dict[str, Table]) -> None:
    assert empty.keys() == full.keys()
    assert not any(table.printed for table in empty.values())
    assert all(full[name].printed for name in ("paper/claims", "paper/table1_image", "paper/scores_videochat2"))
    for model in MODELS.values():
        rows = _rows(empty[f"paper/scores_{''.join(c for c in model.lower() if c.isalnum())}"])
        assert {row["ours"] for row in rows} == {None}
        assert {row["verdict"] for row in rows} == {"missing"}
        assert sum(row["paper"] is not None for row in rows) >= 30
    for row in _rows(empty["paper/table2_long_video"]):
        assert (row["videomme"] is None) or row["source"].startswith("paper")


def test_what_the_paper_prints_twice_is_computed_again(empty: dict[str, Table], paper: Paper) -> None:
    rows = {(row["number"], row["printed"]): row for row in _rows(empty["paper/inconsistencies"])}
    twice = [row for (name, _), row in rows.items() if name == "VideoLLaMA2: reduction of tokens"]
    assert [(row["printed"], row["agree"]) for row in twice] == [(0.4122, "yes"), (0.4151, "no")]
    assert twice[0]["recomputed"] == pytest.approx(1 - 49.27 / 83.82)
    assert {row["agree"] for (name, _), row in rows.items() if "GPU-hours" in name} == {"yes"}
    sentences = " ".join(paper.inconsistencies)
    for printed in ("41.22%", "41.51%", "43.51%", "41.41%"):
        assert printed in sentences
    notes = " ".join(empty["paper/inconsistencies"].notes)
    assert "reference loss only" in notes


def test_no_subset_of_the_printed_scores_has_the_printed_average(paper: Paper) -> None:
    """What the note below the tables of costs says."""
    labels = ["VideoLLaMA2", f"VideoLLaMA2{GATED}", "VideoChat2", f"VideoChat2{GATED}"]
    ends = ["", f"{GATED}-extended", "", f"{GATED}-extended"]
    costs = paper.costs("table4_efficiency_acl")
    printed = np.array(
        [costs[label.removesuffix(GATED) + end]["avg_accuracy"] for label, end in zip(labels, ends, strict=True)]
    )
    names = [benchmark.name for columns in TABLES.values() for benchmark in columns]
    scale = {"mme_cognition": 100 / 800, "mme_perception": 100 / 2000}
    scores = np.array([[(paper.reported(r, n) or 0) * scale.get(n, 100) for n in names] for r in labels])
    nearest = min(
        float(np.abs(scores[:, list(some)].mean(axis=1) - printed).max())
        for size in range(1, len(names) + 1)
        for some in combinations(range(len(names)), size)
    )
    assert nearest > 0.3


def test_costs_name_what_they_count_and_keep_the_speedups_apart(full: dict[str, Table]) -> None:
    rows = _rows(full["paper/table4_efficiency_v1_judged"])
    quantities = {row["quantity"] for row in rows}
    assert "targets computed (paper: tokens)" in quantities
    assert {"step speed-up", "time-to-target speed-up"} <= quantities
    by = {(row["row"], row["quantity"]): row for row in rows}
    assert by["VideoLLaMA2-ReGATE-fast", "time-to-target speed-up"]["paper"] == pytest.approx(32.4 / 16.0)
    assert by["VideoLLaMA2-ReGATE-fast", "step speed-up"]["paper"] is None
    assert by["VideoLLaMA2-ReGATE-extended", "reduction of them"]["ours"] == pytest.approx(0.4122, abs=1e-4)
    assert by["VideoLLaMA2", "train hours (wall)"]["verdict"] == "reproduced"
    assert by["VideoLLaMA2-ReGATE-fast", "time-to-target speed-up"]["verdict"] == "missing"


def test_hours_are_compared_on_one_machine_only(paper: Paper) -> None:
    base = run_of("VideoLLaMA2", "baseline", {}, hours=100.0)
    for gpu, word in (("NVIDIA H100", "reproduced"), ("NVIDIA A100", "")):
        fast = run_of("VideoLLaMA2", "fast", {}, steps=1190, hours=49.4, gpu=gpu, gate=paper_gate())
        table = next(t for t in paper_tables_of(paper, [base, fast]) if t.name == "paper/claims")
        row = next(row for row in _rows(table) if row["part"] == "train hours, fast / baseline")
        assert (row["ours"], row["verdict"]) == (pytest.approx(0.494), word)


def _papers_own(run: Run) -> Run:
    """A built run with what the shipped recipe of its arm asks for in the place of its own."""
    built = run.record["recipe"]
    asked = papers_recipe("VideoLLaMA2", "baseline" if run.gate is None else "extended")
    recipe = {**asked, "name": built["name"], "seed": built["seed"], "evaluate": built["evaluate"]}
    return Run({**run.record, "recipe": recipe}, run.folder)


def test_time_to_target_is_that_of_the_curve(paper: Paper, tmp_path: Path) -> None:
    evaluate = {"benchmarks": ["mvbench"], "at": [0.25, 0.5, 1.0]}
    llama = {"adapter": "videollama2", "language_model": "a", "vision_tower": "b"}
    for skills, word in (((0.8, 1.4), None), ((1.4, 0.8), "inf")):
        folder = tmp_path / str(skills[0])
        build_pair(folder, "llama", skills=skills, model=llama, evaluate=evaluate)
        runs = [_papers_own(run) for run in load_runs(folder)]
        table = next(t for t in paper_tables_of(paper, runs) if t.name == "paper/table4_efficiency_v1_judged")
        rows = {(row["row"], row["quantity"]): row["ours"] for row in _rows(table)}
        speedup = rows["VideoLLaMA2-ReGATE-extended", "time-to-target speed-up"]
        if word is None:
            assert speedup > 1
            reach = reaches(runs[0], runs[1], "mvbench")
            assert reach is not None
            assert reach["seconds"].at is not None
            assert speedup == pytest.approx(runs[0].totals["cpu_seconds"] / reach["seconds"].at)
        else:
            assert speedup == word
            assert "not reached" in render.to_markdown(table)


def test_hours_of_another_machine_are_shown_and_not_judged(paper: Paper) -> None:
    run = run_of("VideoLLaMA2", "baseline", {"mvbench": 0.5}, hours=500.0, gpu="NVIDIA A100")
    table = next(t for t in paper_tables_of(paper, [run]) if t.name == "paper/table4_efficiency_v1_judged")
    row = next(row for row in _rows(table) if row["quantity"] == "train hours (wall)" and row["row"] == "VideoLLaMA2")
    assert (row["ours"], row["verdict"]) == (125.0, "")


def test_which_run_is_which_row_is_read_from_its_settings(paper: Paper) -> None:
    odd = run_of("VideoLLaMA2", "odd", {}, gate=paper_gate(keep_ratio=0.25))
    own = run_of("VideoLLaMA2", "own", {}, gate=paper_gate(selection="random"))
    small = paper_gate()
    small["reference"] = {**small["reference"], "model": "Qwen2-1.5B-Instruct"}
    teacher = run_of("VideoLLaMA2", "other teacher", {}, gate=small)
    part = run_of("VideoChat2", "baseline", {})
    part.record["recipe"]["evaluate"]["limit"] = 10
    again = run_of("VideoLLaMA2", "zz again", {})
    sorted_runs = paper_runs(paper, [*papers_own_runs(paper), odd, own, teacher, part, again], definitions())
    arms = {arm for model, arm in sorted_runs.runs if model == "VideoLLaMA2"}
    assert arms == {"baseline", "extended", "fast", "lambda 0", "lambda 1", "teacher Qwen2-1.5B"}
    assert len(sorted_runs.left_out) == 4
    assert any("limit" in note for note in sorted_runs.left_out)


def test_a_run_that_is_left_out_is_given_the_field(paper: Paper) -> None:
    gate = paper_gate(keep_ratio=0.25, execution="loss_only")
    runs = [
        run_of("VideoLLaMA2", "baseline", {}),
        run_of("VideoLLaMA2", "short", {}),
        run_of("VideoLLaMA2", "odd", {}, gate=gate),
        run_of("VideoLLaMA2", "weight", {}, gate=paper_gate(reference_weight=0.25)),
        run_of("InternVL3.5", "baseline", {}),
    ]
    runs[1].record["recipe"]["train"]["epochs"] = 0.5
    ours = paper_runs(paper, runs)
    gated = "not the paper's VideoLLaMA2 extended (videollama2_regate)"
    assert dict(note.split(": ", 1) for note in ours.left_out) == {
        "videollama2-short-42": "not the paper's VideoLLaMA2 baseline (videollama2_baseline): "
        "train.epochs 0.5 and not 1.0",
        "videollama2-odd-42": f"{gated}: gate.keep_ratio 0.25 and not 0.5, gate.execution loss_only and not compact",
        "videollama2-weight-42": f"{gated}: gate.reference_weight 0.25 and not 0.5",
        "internvl3.5-baseline-42": "the paper does not state what its InternVL3.5 was trained on",
    }
    for table in paper_tables_of(paper, runs):
        if table.name not in ("paper/table6_prompts", "paper/inconsistencies"):
            assert sum(note.startswith("Left out: ") for note in table.notes) == 4, table.name


OTHERS: dict[str, Any] = {
    "data.subset.unit": "samples",
    "train.optimizer.betas": [0.9, 0.95],
    "train.optimizer.warmup_fraction": 0.05,
    "train.optimizer.min_lr_ratio": 0.125,
    "gate.keep_ratio": 0.75,
    "gate.ema_decay": 0.5,
    "gate.selection": "random",
    "gate.visual": {"keep": 0.5, "how": "pool"},
    "gate.ramp": {"to": 0.25, "steps": 100},
    "gate.keep_below": [{"layer": 0.5, "keep": 0.75}],
    "evaluate.benchmarks": ["mvbench"],
    "evaluate.at": [0.5, 1.0],
    "suite": {"name": "mine", "arm": "a"},
}
"""Values of keys whose type does not say what else they may be."""
NEEDED: dict[str, dict[str, Any]] = {
    "devices.reduce": {"devices.sharding": "node"},
    "devices.offload": {"devices.sharding": "full"},
}
"""Keys of which another value is accepted only beside others."""


def _with_another(asked: dict[str, Any], key: str) -> Recipe:
    """The recipe with another value of one key: the first that the key may have."""
    value: Any = asked
    for part in key.split("."):
        value = value[part]
    candidates = [OTHERS[key]] if key in OTHERS else _candidates(value)
    tried = 0
    while tried < len(candidates):
        changed = json.loads(json.dumps(asked))
        for name, other in {key: candidates[tried], **NEEDED.get(key, {})}.items():
            section = changed
            for part in name.split(".")[:-1]:
                section = section[part]
            section[name.rpartition(".")[2]] = other
        tried += 1
        try:
            return Recipe.model_validate_json(json.dumps(changed))
        except ValidationError as error:
            for problem in error.errors():
                # A closed list of words names its words.
                expected = str(problem.get("ctx", {}).get("expected", ""))
                words = re.findall("'([^']+)'", expected)
                candidates += [word for word in words if word != value and word not in candidates]
    raise AssertionError(f"{key}: no other value than {value} was found")


def _candidates(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 1.5 + 0.0005]
    if isinstance(value, list):
        return [[*value, *value[:1]]]
    return [f"{value}x"] if isinstance(value, str) else ["x", 1]


def _keys(section: dict[str, Any], before: str = "") -> list[str]:
    keys = []
    for name, value in section.items():
        keys += _keys(value, f"{before}{name}.") if isinstance(value, dict) else [f"{before}{name}"]
    return keys


HARMLESS = (
    *("name", "description", "seed", "hardware", "suite", "devices", "paths", "track", "evaluate", "train.workers"),
    *("train.checkpoint_every", "train.gradient_checkpointing", "data.media", "data.samples", "data.damaged"),
    *("data.targets_per_sample", "gate.reference.tokens_per_batch", "model.attention", "model.vision_checkpointing"),
    *("train.recompute", "train.rows"),
)
"""What may differ in a run of the paper's: it changes neither the samples nor the arithmetic."""
FIXED = ("gate", "model.adapter", "data.source", "evaluate.limit")
"""Keys that have one value, or are tested apart."""


@pytest.mark.parametrize(
    "name", ["videollama2_baseline", "videollama2_regate", "videochat2_baseline", "videochat2_regate_fast"]
)
def test_one_field_moves_a_run_out_of_the_papers_table_and_a_harmless_one_does_not(paper: Paper, name: str) -> None:
    """Each field of a shipped recipe in turn has another value."""
    asked = load_recipe(name)
    model = MODELS[asked.model.adapter]
    plain = asked.model_dump(mode="json")
    checked = 0
    for key in _keys(plain):
        if key in FIXED:
            continue
        recipe = _with_another(plain, key)
        run = run_of(model, "x", {})
        ours = paper_runs(paper, [Run({**run.record, "recipe": recipe.identity()}, run.folder)])
        harmless = any(key == other or key.startswith(f"{other}.") for other in HARMLESS)
        if key == "data.annotations" or not harmless:
            assert not ours.runs, key
            [note] = ours.left_out
            # A section that the paper's run does not have is named by what stands in it.
            assert f"{key} " in note or (isinstance(OTHERS.get(key), dict) and f"{key}." in note)
        else:
            assert len(ours.runs) == 1, (key, ours.left_out)
        checked += 1
    assert checked > 40, checked


def test_weights_in_another_folder_are_the_same_arm_and_others_are_not(paper: Paper) -> None:
    plain = load_recipe("videollama2_regate_teacher_1.5b").model_dump(mode="json")

    def rows(**paths: str) -> int:
        recipe = json.loads(json.dumps(plain))
        recipe["gate"]["reference"]["model"] = paths.pop("teacher", recipe["gate"]["reference"]["model"])
        recipe["model"] |= paths
        run = run_of("VideoLLaMA2", "x", {})
        record = {**run.record, "recipe": Recipe.model_validate_json(json.dumps(recipe)).identity()}
        return len(paper_runs(paper, [Run(record, run.folder)]).runs)

    elsewhere = "/another/place"
    assert rows(language_model=f"{elsewhere}/Qwen2-7B-Instruct", teacher=f"{elsewhere}/Qwen2-1.5B-Instruct") == 1
    assert rows(projector=f"{elsewhere}/{plain['model']['projector']}") == 1
    assert rows(projector=f"{elsewhere}/mm_projector.bin") == 0
    assert rows(language_model=f"{elsewhere}/Qwen2-7B") == 0
    assert rows(teacher=f"{elsewhere}/Qwen2-7B-Instruct") == 0


def test_other_samples_than_the_paper_states_are_a_note(paper: Paper) -> None:
    run = run_of("VideoLLaMA2", "baseline", {})
    run.record["plan"] = {"samples": 99_998, "samples_basis": "counted", "excluded": 2}
    ours = paper_runs(paper, [run])
    note = "videollama2-baseline-42: 100,000 samples were counted, where the paper states 300,000."
    assert ours.remarks == (note,)
    assert ours.of("VideoLLaMA2", "baseline")
    tables = {table.name: table for table in paper_tables_of(paper, [run])}
    assert note in tables["paper/table4_efficiency_v1"].notes
    run.record["plan"] = {"samples": 300_000, "samples_basis": "counted", "excluded": 0}
    assert paper_runs(paper, [run]).remarks == ()


def test_table_4_has_the_papers_shape(full: dict[str, Table], paper: Paper) -> None:
    """A row an arm, in the paper's order, with the paper's columns; ours below the paper's."""
    table = full["paper/table4_efficiency_v1"]
    rows = _rows(table)
    assert [row["model"] for row in rows[::2]] == list(paper.costs("table4_efficiency_v1"))
    assert [row["source"] for row in rows] == ["paper", "ours"] * 6
    for printed, ours in zip(rows[::2], rows[1::2], strict=True):
        assert ours["model"] == printed["model"]
        assert ours["tokens"] == pytest.approx(printed["tokens"])
        assert ours["train_hours"] == pytest.approx(printed["train_hours"], abs=0.06)
        assert ours["mvbench"] == pytest.approx(printed["mvbench"])
    latex = render.to_latex(table)
    assert "VideoLLaMA2-ReGATE-fast & paper & 29.32M & 16.0 & 51.9" in latex
    camera_ready = _rows(full["paper/table4_efficiency_acl"])
    assert [row["model"] for row in camera_ready[::2]] == list(paper.costs("table4_efficiency_acl"))
    assert camera_ready[2]["teacher_gpu_hours"] == 2.1
    assert camera_ready[0]["teacher_gpu_hours"] == ""


NAMES = [benchmark.name for columns in TABLES.values() for benchmark in columns if not in_points(benchmark)]


def _over_seeds(scores: np.ndarray, arm: str = "baseline", gate: dict[str, Any] | None = None) -> list[Run]:
    """A run a seed. scores: [seeds, benchmarks]."""
    return [
        run_of("VideoLLaMA2", arm, dict(zip(NAMES, row, strict=True)), seed=seed, gate=gate)
        for seed, row in enumerate(scores.tolist())
    ]


def test_the_interval_of_an_average_covers_where_a_seed_is_good_on_all_benchmarks(paper: Paper) -> None:
    """Benchmarks of one seed are not independent: an interval that adds their variances covers .60 of the time."""
    rng = np.random.default_rng(17)
    trials, seeds, hits = 400, 5, 0
    for _ in range(trials):
        shared = rng.normal(scale=0.02, size=(seeds, 1))
        scores = 0.5 + shared + rng.normal(scale=0.01, size=(seeds, len(NAMES)))
        measured = paper_runs(paper, _over_seeds(scores)).average("VideoLLaMA2", "baseline")
        assert measured.value == pytest.approx(scores.mean())
        assert measured.interval is not None
        assert measured.interval.n == seeds
        hits += measured.interval.low <= 0.5 <= measured.interval.high
    assert hits / trials == pytest.approx(0.95, abs=0.03)


def test_the_difference_of_averages_is_paired_by_seed(paper: Paper) -> None:
    rng = np.random.default_rng(18)
    base = 0.5 + rng.normal(scale=0.05, size=(4, 1)) + rng.normal(scale=0.01, size=(4, len(NAMES)))
    gated = base + 0.02 + rng.normal(scale=0.005, size=base.shape)
    runs = paper_runs(paper, [*_over_seeds(base), *_over_seeds(gated, "gated", paper_gate())])
    measured = runs.average("VideoLLaMA2", "extended", "baseline")
    expected = ttest_rel(gated.mean(axis=1), base.mean(axis=1)).confidence_interval()
    assert measured.interval is not None
    assert (measured.interval.low, measured.interval.high) == pytest.approx((expected.low, expected.high))
    whole = runs.average("VideoLLaMA2", "extended")
    assert whole.interval is not None
    assert whole.half_width == pytest.approx(math.sqrt(5) * (whole.interval.high - whole.interval.low) / 2)
    runs.of("VideoLLaMA2", "extended")[0].record["evaluations"].pop()
    assert len(runs.average("VideoLLaMA2", "extended", "baseline").runs) == 6, "seed 0 lacks a benchmark"


def test_runs_that_were_asked_otherwise_are_no_pair_of_the_papers(paper: Paper) -> None:
    scores = np.full((3, len(NAMES)), 0.5)
    runs = [*_over_seeds(scores), *_over_seeds(scores + 0.1, "gated", paper_gate())]
    for run in runs[-2:]:
        for evaluation in run.record["evaluations"]:
            evaluation["prompt_hash"] = "other"
    sorted_runs = paper_runs(paper, runs)
    difference = sorted_runs.difference("VideoLLaMA2", "extended", "baseline", "mvbench")
    average = sorted_runs.average("VideoLLaMA2", "extended", "baseline")
    for measured in (difference, average):
        assert measured.runs == ("videollama2-gated-0", "videollama2-baseline-0")
        assert measured.left_out == 2
    table = next(table for table in paper_tables_of(paper, runs) if table.name == "paper/scores_videollama2")
    quantities = [row["quantity"] for row in _rows(table) if row["row"] == "VideoLLaMA2-ReGATE - VideoLLaMA2"]
    assert "MVBench (2 pairs asked otherwise left out)" in quantities


def test_weights_that_were_only_evaluated_have_a_row_of_their_own(paper: Paper) -> None:
    run = run_of("VideoLLaMA2", "released", {"mvbench": 0.61, "nextqa": 0.7})
    run.record["totals"] = None
    table = next(t for t in paper_tables_of(paper, [run]) if t.name == "paper/table3_short_video")
    rows = {(row["model"], row["source"]): row for row in _rows(table)}
    assert rows[run.id, "ours (evaluated only)"]["mvbench"] == 0.61
    assert rows[run.id, "ours (evaluated only)"]["tokens"] == ""
    assert rows["VideoLLaMA2", "ours"]["mvbench"] is None, "it is no run of the paper's"
    assert table.printed


def test_the_shipped_recipes_are_the_papers_rows(paper: Paper) -> None:
    runs = []
    for name in (name for name in shipped(RECIPE) if name.startswith(("videollama2_", "videochat2_"))):
        asked = load_recipe(name)
        run = run_of(MODELS[asked.model.adapter], name, {}, steps=round(2000 * (asked.train.epochs or 1)))
        runs.append(Run({**run.record, "recipe": asked.identity()}, run.folder))
    rows = {key: [run.name for run in by_seed.values()] for key, by_seed in paper_runs(paper, runs).runs.items()}
    llama = "videollama2-videollama2"
    assert rows == {
        ("VideoLLaMA2", "baseline"): [f"{llama}_baseline"],
        ("VideoLLaMA2", "extended"): [f"{llama}_regate"],
        ("VideoLLaMA2", "fast"): [f"{llama}_regate_fast"],
        ("VideoLLaMA2", "lambda 0"): [f"{llama}_regate_lambda0"],
        ("VideoLLaMA2", "lambda 1"): [f"{llama}_regate_lambda1"],
        ("VideoLLaMA2", TEACHERS["Qwen2-1.5B"]): [f"{llama}_regate_teacher_1.5b"],
        ("VideoLLaMA2", TEACHERS["Qwen2-57B"]): [f"{llama}_regate_teacher_57b"],
        ("VideoChat2", "baseline"): ["videochat2-videochat2_baseline"],
        ("VideoChat2", "extended"): ["videochat2-videochat2_regate"],
        ("VideoChat2", "fast"): ["videochat2-videochat2_regate_fast"],
    }
    assert set(LAMBDAS.values()) <= {arm for _, arm in rows}


def test_several_seeds_are_one_number_with_the_interval_of_the_seeds(paper: Paper) -> None:
    runs = []
    for seed, (base, gated) in enumerate([(0.520, 0.536), (0.525, 0.540), (0.515, 0.533)]):
        runs.append(run_of("VideoLLaMA2", "baseline", {"mvbench": base}, seed=seed))
        runs.append(run_of("VideoLLaMA2", "extended", {"mvbench": gated}, seed=seed, gate=paper_gate()))
    table = next(t for t in paper_tables_of(paper, runs) if t.name == "paper/scores_videollama2")
    rows = {(row["row"], row["quantity"]): row for row in _rows(table)}
    mean = rows["VideoLLaMA2", "MVBench"]
    assert mean["ours"] == pytest.approx(0.52)
    assert mean["low"] == pytest.approx(0.52 - 4.302653 * 0.005 / 3**0.5)
    assert mean["runs"].count("videollama2-baseline") == 3
    gain = rows["VideoLLaMA2-ReGATE - VideoLLaMA2", "MVBench"]
    assert gain["verdict"] == "reproduced"
    assert gain["low"] > 0
    assert rows["VideoLLaMA2", "POPE"]["verdict"] == "missing"


def test_a_score_of_items_has_its_interval_and_a_verdict(paper: Paper, tmp_path: Path) -> None:
    evaluate = {"benchmarks": ["mvbench"], "at": [1.0]}
    llama = {"adapter": "videollama2", "language_model": "a", "vision_tower": "b"}
    build_pair(tmp_path, "llama", model=llama, evaluate=evaluate)
    runs = [_papers_own(run) for run in load_runs(tmp_path)]
    table = next(t for t in paper_tables_of(paper, runs) if t.name == "paper/scores_videollama2")
    rows = {(row["row"], row["quantity"]): row for row in _rows(table)}
    for row in (rows["VideoLLaMA2", "MVBench"], rows["VideoLLaMA2-ReGATE - VideoLLaMA2", "MVBench"]):
        assert row["low"] < row["ours"] < row["high"]
        assert row["verdict"] in ("within noise", "undecided", "differs", "reproduced")
    assert rows["VideoLLaMA2", "MVBench"]["verdict"] == "differs"


def test_prompts_of_the_paper_and_of_the_tasks_stand_side_by_side(empty: dict[str, Table]) -> None:
    rows = {row["benchmark"]: row for row in _rows(empty["paper/table6_prompts"])}
    assert rows["mvbench"]["paper"] == "Only give the best option."
    assert {name for name, row in rows.items() if row["same"] == "no"} == {"vizwiz", "pope", "mlvu"}
    assert "(" in rows["mlvu"]["task"]
    assert rows["videomme"]["task"].startswith("Select the best answer")


def test_latex_of_every_table_of_the_paper_is_well_formed(full: dict[str, Table]) -> None:
    for table in full.values():
        check_latex(render.to_latex(table))
