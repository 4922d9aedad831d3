"""The end of a run: six lines that say what the tables and the report say."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import pipeline
from harness.analysis.curves import LABELS as LABELS_OF_ARMS
from harness.analysis.curves import suites
from harness.analysis.runs import difference_of_means, load_runs, pair_runs
from harness.cli.run_names import known_suites
from harness.report import closing as closing_module
from harness.report import table as render
from harness.report.closing import LABELS, closing, endings, next_command
from harness.report.pages.html import Tabular
from harness.report.pages.suite import _cost
from harness.report.tables import make_tables
from tests.harness.worlds.run_builder import build_pair, build_run, finish, recipe

EVIDENCE = Path(__file__).parents[3] / "results" / "evidence" / "tiny_claim"


def _told(results: Path, ids: list[str]) -> list[dict[str, str]]:
    return [dict(lines) for lines in pipeline._close(results, load_runs(results), ids, known_suites())]


def test_a_pair_ends_in_six_lines(tmp_path: Path) -> None:
    build_pair(tmp_path)
    runs = load_runs(tmp_path)
    (told,) = _told(tmp_path, [runs[0].id])
    assert tuple(told) == LABELS
    (pair,) = pair_runs(runs)
    difference = render.accuracy(difference_of_means(pair, "shapes"), signed=True).text
    assert f"difference {difference} points" in told["accuracy"]
    assert told["verdict"].startswith("Undecided: no difference from demo_baseline is shown on shapes; one of less")
    pairs = next(table for table in make_tables(tmp_path) if table.name == "pairs")
    gated = next(row for row in pairs.rows if row[1].text == "ReGATE")
    assert gated[3].text.split(" (")[0] in told["saved"], "the reduction of the tables"
    assert f"ReGATE {gated[4].text}" in told["time"], "the training time of the tables"
    assert "Builder CPU, 2 threads" in told["time"]
    report, record = told["files"].split("; ")
    assert Path(report).is_file()
    assert Path(record).is_file()
    assert gated[4].text in Path(report).read_text()
    assert told["next"] == f"harness compare {runs[0].id} {runs[1].id} paths.results={tmp_path}"


@pytest.mark.parametrize(("skills", "word"), [((1.6, 0.4), "worse"), ((0.4, 1.6), "better")])
def test_a_difference_that_is_shown_is_said(tmp_path: Path, skills: tuple[float, float], word: str) -> None:
    build_pair(tmp_path, skills=skills)
    (told,) = _told(tmp_path, [run.id for run in load_runs(tmp_path)])
    assert told["verdict"].startswith(f"demo_regate answers {word} than demo_baseline on shapes, by ")


def test_one_arm_alone_says_that_nothing_is_compared(tmp_path: Path) -> None:
    for name, gate in (("tiny_baseline", False), ("own_regate", True)):
        asked = recipe(tmp_path, name, gate=gate, seed=int(gate))
        finish(asked, build_run(asked))
    alone = {lines["next"]: lines for lines in _told(tmp_path, [run.id for run in load_runs(tmp_path)])}
    commands = ("harness run tiny_regate", "harness tables")
    assert set(alone) == {f"{command} paths.results={tmp_path}" for command in commands}
    for told in alone.values():
        assert "is done" in told["verdict"]
        assert tuple(told) == LABELS


def test_runs_that_were_asked_otherwise_get_no_verdict(tmp_path: Path) -> None:
    build_pair(tmp_path)
    runs = load_runs(tmp_path)
    for evaluation in runs[1].record["evaluations"]:
        evaluation["prompt_hash"] = "other"
    (ending,) = endings(runs, [runs[0].id], {})
    told = dict(closing(ending, {}, report=tmp_path / "r.html", results=tmp_path, next_command="x"))
    assert told["verdict"] == "No verdict: the two runs were asked otherwise on shapes (prompts)."


def test_a_suite_ends_in_its_claims() -> None:
    suites = known_suites()
    runs = load_runs(EVIDENCE)
    (ending,) = endings(runs, [runs[7].id], suites)
    command = next_command(ending, Path("results"))
    told = dict(closing(ending, suites, report=Path("r.html"), results=EVIDENCE, next_command=command))
    assert told["verdict"].startswith("Of 6 claims on shapes: 3 reproduced, 1 within noise, 2 undecided")
    assert "difference -2.6 [-5.3, +0.2] points over 5 seeds" in told["accuracy"]
    assert "42.02 % of the targets" in told["saved"]
    arms = next(table for table in make_tables(EVIDENCE, suites) if table.name == "suite_tiny_claim")
    time = next(row for row in arms.rows if row[0].text == "regate")[5].text
    assert f"regate {time}, baseline " in told["time"]
    assert told["next"] == "harness tables suites/tiny_claim"


def test_tables_and_report_give_one_number_for_an_arm() -> None:
    """The report's table of costs has the numbers of the suite's table."""
    runs = load_runs(EVIDENCE)
    arms = next(table for table in make_tables(EVIDENCE, known_suites()) if table.name == "suite_tiny_claim")
    by_arm = suites(runs)["tiny_claim"]
    (costs,) = [block.table for block in _cost(by_arm).blocks if isinstance(block, Tabular)]
    shown = {LABELS_OF_ARMS[row[0].text]: row for row in arms.rows}
    assert len(costs.rows) == len(shown) == 10
    for row in costs.rows:
        told = [cell.text for cell in shown[row[0].text][2:7]]
        assert [row[index].text for index in (3, 4, 5, 6, 9)] == told, row[0].text


def test_where_every_position_is_computed_somewhere_the_flops_say_what_was_saved() -> None:
    run = next(run for run in load_runs(EVIDENCE) if run.gate is not None)
    totals = run.totals
    flops = render.percent(1 - totals["flops"] / totals["flops_dense"]).text
    assert closing_module._positions_and_flops([run]).endswith(f" of the positions, {flops} of the FLOPs")
    totals["counts"]["active"] = totals["counts"]["valid"]
    assert closing_module._positions_and_flops([run]) == f"{flops} of the FLOPs"
