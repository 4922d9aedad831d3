"""docs/numbers.md: its worked cell is recomputed from the records. docs/reproduce.md: its table is the plans'."""

from __future__ import annotations

import importlib.util
import math
import re
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from scipy.stats import t as student

from harness.analysis.runs import load_runs
from harness.cli.run_names import known_suites
from harness.report.tables import make_tables
from tests.architecture.tree import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PAGE = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
WORKED = PAGE.split("<!-- worked cell -->")[1]
EVIDENCE = ROOT / "results" / "evidence" / "tiny_claim"


def _scores() -> dict[tuple[str, int], list[float]]:
    """(arm, seed) -> parts right of the abilities that count, from the record alone."""
    scores = {}
    for run in load_runs(EVIDENCE):
        evaluation = max(run.record["evaluations"], key=lambda entry: entry["step"])
        counted = [task for task in evaluation["tasks"] if task["in_mean"]]
        assert run.suite is not None
        scores[run.suite[1], run.seed] = [task["correct"] / task["n"] for task in counted]
    return scores


def test_the_worked_cell_is_that_of_the_records() -> None:
    scores = {key: fmean(parts) for key, parts in _scores().items()}
    lines = re.findall(r"^\| (\d) \| (.+?) \| (.+?) \| (.+?) \|$", WORKED, re.MULTILINE)
    rows = [[float(text) for text in line] for line in lines]
    assert len(rows) == 5
    differences = []
    for seed, ours, base, difference in rows:
        pair = (scores["regate", int(seed)], scores["baseline", int(seed)])
        assert [ours, base] == [round(100 * value, 2) for value in pair]
        assert difference == round(100 * (pair[0] - pair[1]), 2)
        differences.append(100 * (pair[0] - pair[1]))
    mean, sd, quantile = fmean(differences), stdev(differences), float(student.ppf(0.975, len(rows) - 1))
    half = quantile * sd / math.sqrt(len(rows))
    for number in (f"{mean:.2f}", f"{sd:.2f}", f"{quantile:.3f}", f"{half:.2f}"):
        assert number in WORKED, number
    shown = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert f"**{shown}**" in PAGE
    table = next(table for table in make_tables(EVIDENCE, known_suites()) if table.name == "suite_tiny_claim")
    titles = [column.title for column in table.columns]
    row = next(row for row in table.rows if row[0].text == "regate")
    assert row[titles.index("- baseline")].text.startswith(shown)


def test_the_worked_score_is_that_of_the_answers() -> None:
    (parts,) = [parts for key, parts in _scores().items() if key == ("regate", 0)]
    listed = WORKED.split("Seed 0, ReGATE:")[1]
    counted = [(int(right), int(of)) for right, of in re.findall(r"(\d+)\s+of\s+(\d+)", listed)]
    assert [right / of for right, of in counted] == parts


def test_the_table_of_arms_is_that_of_the_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "docs" / "reproduce.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "python docs/reproduce.py writes it again"
