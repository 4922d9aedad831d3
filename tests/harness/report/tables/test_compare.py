"""`compare` and `tables --check`: any runs side by side, and tables that no longer are the records'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.runs import Run, load_runs
from harness.analysis.statistics import mcnemar, score_difference, sign_flip_test
from harness.benchmarks.scoring import Scoring
from harness.cli.run_names import known_suites, runs_to_compare
from harness.common.errors import DataError, RecipeError, StaleError
from harness.records.record import read_record, write_record
from harness.report import table as render
from harness.report.tables import build_tables, check_tables, make_tables, tables_markdown
from harness.report.tables.compare import as_json, compare_tables, runs_table
from tests.harness.worlds.run_builder import build_pair, build_run, finish, recipe

EVIDENCE = sorted(path.parent for path in (Path(__file__).parents[4] / "results" / "evidence").glob("*/tables"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, and a longer run of another machine. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("compare")
    build_pair(folder, "demo")
    longer = recipe(folder, "longer", gate={"keep_ratio": 0.25}, steps=50)
    finish(longer, build_run(longer, skill=1.3))
    path = folder / "runs" / longer.run_id
    record = read_record(path / "record.json")
    record["provenance"]["hardware"]["cpu"] = "Another CPU"
    for evaluation in record["evaluations"]:
        evaluation["versions"]["lmms_eval"] = "0.8.0"
    write_record(record, path)
    return folder


def _tables(runs: list[Run]) -> dict[str, dict[str, Any]]:
    return {table["name"]: table for table in as_json(compare_tables(runs))["tables"]}


def test_what_differs_is_named_and_nothing_else(results: Path) -> None:
    baseline, gated = load_runs(results)[:2]
    rows = _tables([baseline, gated])["settings"]["rows"]
    assert {row["key"].split(".")[1] for row in rows} == {"gate"}
    longer = next(run for run in load_runs(results) if run.name == "longer")
    keys = {row["key"]: row for row in _tables([gated, longer])["settings"]["rows"]}
    assert keys.keys() == {"recipe.gate.keep_ratio", "recipe.train.steps", "machine"}
    assert keys["recipe.gate.keep_ratio"][longer.id] == "0.25"
    again = compare_tables([gated, Run({**gated.record, "name": "other"}, gated.folder)])[1]
    assert again.rows == ()
    assert again.notes == ("Nothing differs but the name.",)


def test_times_of_cpus_are_set_side_by_side_in_cpu_seconds_and_only_where_they_can_be(results: Path) -> None:
    first, second = load_runs(results)[:2]
    cells = [row[8] for row in runs_table([first, second]).rows]
    cpu = [run.totals["cpu_seconds"] for run in (first, second)]
    assert [cell.values[0] for cell in cells] == [1.0, pytest.approx(cpu[1] / cpu[0])]
    shared = {**second.totals, "waited_seconds": second.totals["cpu_seconds"]}
    waited = Run({**second.record, "totals": shared}, second.folder)
    assert [row[8].values[0] for row in runs_table([first, waited]).rows] == [1.0, None]


def test_differences_are_paired_on_the_items_and_tested(results: Path) -> None:
    baseline, gated, longer = load_runs(results)
    rows = {row["run"]: row for row in _tables([baseline, gated, longer])["benchmarks"]["rows"]}
    ours, theirs = baseline.items(baseline.evaluations("shapes")[-1]), gated.items(gated.evaluations("shapes")[-1])
    assert ours is not None
    assert theirs is not None
    tasks = [f"shapes_{name}" for name in ("colour", "shape", "direction", "count", "order")]
    a, b = {task: ours[task] for task in tasks}, {task: theirs[task] for task in tasks}
    expected = score_difference(Scoring(), a, b)
    row = rows[gated.id]
    difference = [row["difference"], row["difference_low"], row["difference_high"]]
    assert difference == pytest.approx([expected.value, expected.low, expected.high])
    tests = [mcnemar(a[task], b[task]) for task in tasks]
    assert row["only_first"] == sum(test.only_first for test in tests)
    assert row["only_this"] == sum(test.only_second for test in tests)
    assert row["p"] == pytest.approx(sign_flip_test(Scoring(), a, b))
    assert (row["guessed_first"], row["guessed_this"], row["unparsable_this"]) == (0, 0, 0)
    assert row["beyond_option_first"] is None, "these evaluations did not count them"
    assert row["shared_units"] == 600
    assert rows[baseline.id]["difference"] == ""
    assert rows[longer.id]["but"] == "step 40 against 50; lmms-eval 0.7.3 against 0.8.0"
    assert rows[longer.id]["difference"] is not None, "another machine and version is labelled and not refused"


def test_runs_of_other_machines_are_labelled(results: Path) -> None:
    baseline, _, longer = load_runs(results)
    table = compare_tables([baseline, longer])[0]
    assert any("hardware.cpu differ" in note for note in table.notes)
    rows = {row["run"]: row for row in json.loads(render.to_json(table))["rows"]}
    assert rows[longer.id]["machine"].startswith("Another CPU")
    assert rows[longer.id]["targets_computed"] == longer.totals["counts"]["scored"]
    ratio = longer.totals["seconds"]["train"] / baseline.totals["seconds"]["train"]
    assert rows[longer.id]["train_ratio"] == pytest.approx(ratio)


def test_runs_are_named_by_id_its_beginning_or_a_recipe(results: Path, tmp_path: Path) -> None:
    at = f"paths.results={results}"
    ids = [run.id for run in load_runs(results)]
    assert [run.id for run in runs_to_compare([ids[1], "demo_baseline", at])] == [ids[1], ids[0]]
    assert [run.id for run in runs_to_compare(["longer", ids[0], at])] == [ids[2], ids[0]]
    with pytest.raises(RecipeError, match="two runs or more"):
        runs_to_compare(["longer", at])
    with pytest.raises(RecipeError, match="demo is the beginning of several runs"):
        runs_to_compare(["demo", "longer", at])
    with pytest.raises(RecipeError, match="named twice"):
        runs_to_compare(["longer", ids[2], at])
    with pytest.raises(RecipeError, match=r"no run below .* and no recipe"):
        runs_to_compare(["longer", "nobody", at])
    with pytest.raises(DataError, match=r"tiny_regate: its run tiny_regate-.* has no record"):
        runs_to_compare(["longer", "tiny_regate", at])
    shutil.copytree(results, tmp_path / "results")
    (tmp_path / "results" / "runs" / ids[2] / "record.json").unlink()
    with pytest.raises(DataError, match="no record yet"):
        runs_to_compare(["longer", ids[0], f"paths.results={tmp_path / 'results'}"])


def test_other_prompts_and_items_that_are_not_kept_give_no_difference(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "runs", tmp_path / "runs")
    baseline, gated, longer = load_runs(tmp_path)
    for path in gated.folder.rglob("*.items.jsonl"):
        path.unlink()
    for evaluation in longer.record["evaluations"]:
        evaluation["prompt_hash"] = "q"
    rows = {row["run"]: row for row in _tables([baseline, gated, longer])["benchmarks"]["rows"]}
    assert rows[gated.id]["but"] == "items not kept"
    assert rows[longer.id]["but"].endswith("other questions")
    assert rows[gated.id]["difference"] is None
    assert rows[longer.id]["p"] is None
    assert rows[longer.id]["score"] is not None


def test_weights_that_were_only_evaluated_have_rows_without_training(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "runs", tmp_path / "runs")
    path = next((tmp_path / "runs").glob("longer-*"))
    record = json.loads((path / "record.json").read_text())
    record |= {"status": "evaluated", "totals": None, "plan": None, "reference": None}
    write_record(record, path)
    tables = {table.name: table for table in make_tables(tmp_path)}
    assert not any("longer" in row[0].text for row in tables["pairs"].rows)
    row = next(row for row in tables["accuracy_shapes"].rows if "longer" in row[0].text)
    assert row[1].text == "evaluated only"
    assert "[" in row[3].text, "its score has an interval"
    runs = load_runs(tmp_path)
    shown = {row["run"]: row for row in _tables(runs)["runs"]["rows"]}
    assert shown[path.name]["train_seconds"] == ""
    # A record that claims to be of a training needs its totals.
    write_record({**record, "status": "complete"}, path)
    with pytest.raises(DataError, match="totals is not an object"):
        load_runs(tmp_path)


# --- check -----------------------------------------------------------------------------------------------


def test_tables_that_the_records_do_not_give_are_named(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "runs", tmp_path / "runs")
    with pytest.raises(StaleError, match=r"pairs\.md is missing"):
        check_tables(tmp_path)
    written = build_tables(tmp_path)
    assert check_tables(tmp_path) == written
    (tmp_path / "tables" / "time.csv").write_text("edited\n")
    (tmp_path / "tables" / "old.md").write_text("of a run that is gone\n")
    (tmp_path / "tables" / "paper" / "claims.tex").unlink()
    with pytest.raises(StaleError) as caught:
        check_tables(tmp_path)
    for words in ("time.csv differs", "old.md comes from no record", "paper/claims.tex is missing"):
        assert words in str(caught.value)
    assert "pairs" not in str(caught.value)
    assert caught.value.exit_code == 5
    build_tables(tmp_path)
    with pytest.raises(StaleError, match=r"1 of \d+ files .*: old\.md comes from no record"):
        check_tables(tmp_path)
    (tmp_path / "tables" / "old.md").unlink()
    check_tables(tmp_path)


@pytest.mark.parametrize("folder", EVIDENCE, ids=lambda folder: folder.name)
def test_the_committed_tables_are_those_of_their_records(folder: Path) -> None:
    assert check_tables(folder, known_suites())


def test_there_is_evidence_to_check() -> None:
    assert EVIDENCE


def test_printed_text_has_the_tables_of_the_runs_and_names_the_rest(results: Path) -> None:
    text = tables_markdown(results)
    assert "### Time to target" in text
    assert "### Claims of the paper" not in text
    assert "paper/table1_image.md" in text.splitlines()[-1]
