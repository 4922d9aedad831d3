"""Tables: every number is that of a record, nothing is invented, the same records give the same bytes."""

from __future__ import annotations

import csv
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from harness.analysis.paper.numbers import load_paper
from harness.analysis.runs import Pair, Run, differences, load_runs, pair_runs, sign_tests
from harness.analysis.statistics import Interval, sign_flip_test, sign_test, wilson
from harness.benchmarks.scoring import Scoring
from harness.common.errors import DataError
from harness.records.record import read_records, write_record
from harness.report import table as render
from harness.report.table import Column, Table
from harness.report.tables import build_tables, make_tables, tables_markdown
from harness.report.tables.accuracy import accuracy_table
from tests.harness.worlds.run_builder import build_pair, build_run, finish, recipe

if TYPE_CHECKING:
    from pathlib import Path

LLAMA = {
    "model": {"adapter": "videollama2", "language_model": "a", "vision_tower": "b"},
    "evaluate": {"benchmarks": ["mvbench"]},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of tiny runs. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("results")
    build_pair(folder, "demo")
    build_pair(folder, "other", seed=1)
    return folder


def _csv(results: Path, name: str) -> list[dict[str, str]]:
    build_tables(results)
    with (results / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_cell_of_the_main_table_is_a_number_of_its_record(results: Path) -> None:
    records = {record["id"]: record for record in read_records(results)}
    rows = _csv(results, "pairs")
    assert [row["run"].rpartition("-")[0] for row in rows] == [
        "demo_baseline",
        "demo_regate",
        "other_baseline",
        "other_regate",
    ]
    for row in rows:
        totals = records[row["run"]]["totals"]
        assert int(row["targets_computed"]) == totals["counts"]["scored"]
        assert float(row["train_seconds"]) == pytest.approx(totals["seconds"]["train"])
        assert int(row["peak_bytes"]) == totals["peak_bytes"]
        mean = records[row["run"]]["evaluations"][-1]["mean"]["value"]
        assert float(row["shapes_mean"]) == pytest.approx(mean)
        assert float(row["shapes_mean_low"]) < mean < float(row["shapes_mean_high"])
    baseline, gated = rows[:2]
    assert baseline["targets_reduction"] == baseline["teacher_seconds"] == baseline["shapes_difference"] == ""
    assert float(gated["targets_reduction"]) == pytest.approx(1 - 1.0 * _scored(gated) / _scored(baseline))
    assert float(gated["expected_reduction"]) == pytest.approx(0.5 * 32 / 40)
    assert float(gated["teacher_seconds"]) == 2.5
    difference = float(gated["shapes_mean"]) - float(baseline["shapes_mean"])
    assert float(gated["shapes_difference"]) == pytest.approx(difference)


def _scored(row: dict[str, str]) -> int:
    return int(row["targets_computed"])


def test_step_times_stand_beside_the_flop_ideal(results: Path) -> None:
    gated = _csv(results, "time")[1]
    totals = read_records(results)[1]["totals"]
    steps = totals["step_seconds"]
    assert float(gated["sparse_over_dense"]) == pytest.approx(
        steps["cpu_sparse_median"] / steps["cpu_dense_median"]
    )
    assert float(gated["flop_ideal"]) == pytest.approx(totals["sparse_flops_ratio"])
    assert (gated["dense_steps"], gated["sparse_steps"]) == ("8", "32")


def test_accuracy_of_each_ability_with_its_interval_and_the_paired_difference(results: Path) -> None:
    baseline, gated, difference = _csv(results, "accuracy_shapes")[:3]
    task = read_records(results)[0]["evaluations"][-1]["tasks"][0]
    interval = wilson(round(task["value"] * task["n"]), task["n"])
    colour = [float(baseline[name]) for name in ("colour", "colour_low", "colour_high")]
    assert colour == pytest.approx([interval.value, interval.low, interval.high])
    assert difference["run"] == f"{gated['run']} - {baseline['run']}"
    for name in ("mean", "colour", "collision"):
        assert float(difference[name]) == pytest.approx(float(gated[name]) - float(baseline[name]), abs=1e-9)
    note = "Not in the mean: collision."
    assert note in tables_markdown(results)


def test_answers_that_are_no_evidence_stand_beside_the_difference(results: Path) -> None:
    pair = [run for run in load_runs(results) if run.name.startswith("demo")]
    runs = [Run(json.loads(json.dumps(run.record)), run.folder) for run in pair]
    table = accuracy_table(load_paper(), pair_runs(runs), "shapes")
    assert "Answers of the two" not in " ".join(table.notes), "none was guessed"
    for run, guessed in zip(runs, (3, 5), strict=True):
        run.record["evaluations"][-1]["counts"]["guessed"] = guessed
    runs[1].record["evaluations"][-1]["counts"]["beyond_option"] = 7
    table = accuracy_table(load_paper(), pair_runs(runs), "shapes")
    expected = "Answers of the two: guessed 3 : 5, more than an option not recorded : 7."
    assert any(note.endswith(expected) for note in table.notes)


def test_a_task_of_graded_answers_is_tested_by_its_mean() -> None:
    """Most answers are a little better in the second run and a few much worse: its mean is lower."""
    first = {str(i): 0.5 for i in range(40)}
    second = {str(i): 0.55 if i < 30 else 0.0 for i in range(40)}
    evaluation = {"tasks": [{"task": "t", "ability": "all"}]}
    (test,) = sign_tests(evaluation, {"t": first}, {"t": second}).values()
    assert (test.only_first, test.only_second) == (10, 30)
    assert test.p == pytest.approx(sign_flip_test(Scoring(), {"t": first}, {"t": second}), abs=0.01)
    assert sign_test(first, second).p < 0.01, "counting would call the second run better"


def _bytes(paths: list[Path], folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder / "tables").as_posix(): path.read_bytes() for path in paths}


def test_same_records_same_bytes_wherever_they_lie(results: Path, tmp_path: Path) -> None:
    first = _bytes(build_tables(results), results)
    shutil.copytree(results / "runs", tmp_path / "moved" / "runs")
    assert _bytes(build_tables(tmp_path / "moved"), tmp_path / "moved") == first
    present = {path.relative_to(results / "tables").as_posix() for path in (results / "tables").rglob("*.*")}
    assert present == first.keys(), "no temporary file stays"
    shown = [table for table in make_tables(results) if table.printed]
    text = "\n".join(first[f"{table.name}.md"].decode() for table in shown)
    assert tables_markdown(results).startswith(text)
    assert "paper/claims.md" in tables_markdown(results)[len(text) :], "what is not printed is named"


def test_every_form_of_every_table_is_well_formed(results: Path) -> None:
    suffixes = set()
    for path in build_tables(results):
        text = path.read_text()
        suffixes.add(path.suffix)
        if path.suffix == ".md":
            lines = [line for line in text.splitlines() if line.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
            assert len({len(line) for line in lines}) == 1, "columns are aligned"
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(text.splitlines())}) == 1
        elif path.suffix == ".json":
            content = json.loads(text)
            names = [name for column in content["columns"] for name in column["names"]]
            assert len(set(names)) == len(names), "a name is one number"
            assert all(list(row) == names for row in content["rows"])
        else:
            check_latex(text)
    assert suffixes == {".md", ".csv", ".json", ".tex"}


def check_latex(text: str) -> None:
    """Every brace and environment closed, every row with the cells of its columns, nothing special unescaped."""
    body = re.sub(r"(?<!\\)%.*", "", text)
    assert len(re.findall(r"(?<!\\)\{", body)) == len(re.findall(r"(?<!\\)\}", body))
    assert re.findall(r"\\begin\{(\w+)\}", body) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", body) == ["tabular", "table"]
    shape = re.search(r"\\begin\{tabular\}\{([lr]+)\}", body)
    assert shape is not None
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert rows
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(shape[1]) - 1}
    assert "\\midrule" in body
    assert "\\bottomrule" in body
    words = [line for line in body.splitlines() if not line.startswith("\\label")]
    assert not any(re.search(r"(?<!\\)[#_^]", line) for line in words)


def test_missing_is_shown_as_missing_and_never_invented(tmp_path: Path) -> None:
    build_pair(tmp_path)
    for path in tmp_path.glob("runs/demo_regate-*/eval/step-000040/*.items.jsonl"):
        path.unlink()
    records = read_records(tmp_path)
    record = {**records[1], "totals": {**records[1]["totals"], "peak_bytes": None}}
    write_record(record, tmp_path / "runs" / record["id"])
    gated = _csv(tmp_path, "pairs")[1]
    assert gated["peak_bytes"] == "NA"
    assert gated["shapes_difference"] == "NA", "no paired difference without the items"
    assert float(gated["shapes_mean_low"]) < float(gated["shapes_mean"]), "the number of right answers is kept"
    row = next(line for line in tables_markdown(tmp_path).splitlines() if line.startswith("| demo_regate"))
    assert row.count("missing") == 2


def test_intervals_are_the_same_from_items_and_from_their_number(tmp_path: Path) -> None:
    build_pair(tmp_path)
    before = _csv(tmp_path, "accuracy_shapes")[0]
    for path in tmp_path.glob("runs/demo_baseline-*/eval/*/*.items.jsonl"):
        path.unlink()
    assert _csv(tmp_path, "accuracy_shapes")[0] == before


def test_an_arm_without_its_partner_is_shown_and_named(tmp_path: Path) -> None:
    lonely = recipe(tmp_path, "lonely_regate", gate=True)
    finish(lonely, build_run(lonely))
    assert "lonely_regate: its baseline has no record; differences are missing." in tables_markdown(tmp_path)
    assert _csv(tmp_path, "pairs")[0]["shapes_difference"] == "NA"


def test_pairs_are_runs_equal_but_for_name_and_gate(tmp_path: Path) -> None:
    build_pair(tmp_path, "demo")
    for name, fields in (
        ("demo_random", {"gate": {"selection": "random"}}),
        ("demo_longer", {"gate": {"selection": "random"}, "steps": 50}),
        ("demo_again", {}),
    ):
        asked = recipe(tmp_path, name, **fields)
        finish(asked, build_run(asked))
    pairs = pair_runs(load_runs(tmp_path))
    arms = [tuple(run.name if run else None for run in (pair.baseline, pair.gated)) for pair in pairs]
    assert arms == [
        ("demo_baseline", None),
        (None, "demo_longer"),
        ("demo_again", "demo_random"),
        ("demo_again", "demo_regate"),
    ]
    assert {pair.gated.arm for pair in pairs if pair.gated} == {"random", "ReGATE"}


def test_what_else_differs_between_the_arms_is_said(results: Path) -> None:
    pair = pair_runs(load_runs(results))[0]
    assert differences(pair) == []
    assert pair.gated is not None
    record: dict[str, Any] = json.loads(json.dumps(pair.gated.record))
    record["provenance"]["hardware"]["threads"] = 1
    record["provenance"]["packages"]["torch"] = "2.14.0"
    record["totals"]["counts"]["target"] += 1
    changed = Pair(pair.baseline, Run(record, pair.gated.folder))
    assert differences(changed) == ["hardware.threads", "torch", "number of targets seen"]


def test_the_papers_numbers_stand_beside_the_same_model_only(results: Path, tmp_path: Path) -> None:
    assert "paper |" not in tables_markdown(results)
    build_pair(tmp_path, "llama", **LLAMA)
    accuracy = _csv(tmp_path, "accuracy_mvbench")
    paper = {row["run"]: row for row in accuracy if row["arm"] == "paper"}
    assert paper.keys() == {"VideoLLaMA2", "VideoLLaMA2-ReGATE"}
    assert float(paper["VideoLLaMA2-ReGATE"]["mean"]) == pytest.approx(0.536)
    assert paper["VideoLLaMA2-ReGATE"]["mean_low"] == "NA"


def test_no_records_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished run") as caught:
        build_tables(tmp_path)
    assert "harness run" in str(caught.value.hint)


def test_cells() -> None:
    assert render.duration(0.0931).text == "93.1 ms"
    assert render.duration(93.1).text == "93.1 s"
    assert render.duration(1250).text == "20.8 min"
    assert render.duration(32.4 * 3600).text == "32.4 h"
    assert render.count(1234567).text == "1,234,567"
    assert render.large(83.82e6).text == "83.82M"
    assert render.memory(1_500_000_000).text == "1.5 GB"
    assert render.accuracy(Interval(0.013, -0.02, 0.046, 9), signed=True).text == "+1.3 [-2.0, +4.6]"
    assert render.percent(None).text == render.ratio(None).text == render.duration(None).text == "missing"


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    table = Table("t", "T", (Column("a|b", ("a",), right=False),), ((render.label("x|y"),),))
    assert "| x\\|y |" in render.to_markdown(table)
    assert render.to_csv(table) == "a\nx|y\n"
