"""Tables in the terminal: within its width, complete, in the letters that it has, and never Markdown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.analysis.paper.numbers import load_paper
from harness.cli import main as cli
from harness.cli.run_names import known_suites
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables import make_tables
from harness.report.tables.paper.build import paper_tables_of
from harness.report.terminal import labelled, to_text
from tests.harness.worlds.paper_runs import definitions, papers_own_runs
from tests.harness.worlds.run_builder import build_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
EVIDENCE = ROOT / "results" / "evidence" / "tiny_claim"


@pytest.fixture(scope="module")
def tables() -> list[Table]:
    """Every table there is: of the suite whose records are kept, and of the paper with all its cells filled."""
    full = paper_tables_of(load_paper(), papers_own_runs(load_paper()), definitions())
    return [*make_tables(EVIDENCE, known_suites()), *full]


def _words(text: str) -> Iterator[str]:
    return iter(re.findall(r"[^\s]+", text))


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_table_fits_the_width_and_loses_nothing(tables: list[Table], width: int) -> None:
    for table in tables:
        text = to_text(table, width)
        assert max(map(len, text.splitlines())) <= width, table.name
        assert not re.search(r"^\|| \| |\*\*|<u>|^###", text, re.MULTILINE), "no Markdown"
        assert "\x1b" not in text
        squeezed = re.sub(r"\s+", "", text)
        for row in table.rows:
            for cell, column in zip(row, table.columns, strict=True):
                if column.right and len(cell.text) < width // 2:
                    assert cell.text in " ".join(text.split()) or cell.text in text, (table.name, cell.text)
        for note in table.notes:
            assert re.sub(r"\s+", "", note) in squeezed, table.name


def test_a_wide_table_is_set_in_parts_that_repeat_its_rows(tables: list[Table]) -> None:
    table = next(table for table in tables if table.name == "suite_tiny_claim")
    narrow, wide = to_text(table, 60), to_text(table, 400)
    rows = [line for line in narrow.splitlines() if line.startswith("regate")]
    assert len(rows) == narrow.count("\narm ") > 3
    assert wide.count("\narm ") == 1
    assert "42.02 %" in rows[0]


def test_a_name_too_long_for_its_column_is_broken_at_its_signs() -> None:
    """An id's digest is in one piece, so that it is found by whoever looks for it."""
    columns = (Column("run", ("run",), right=False), *(Column(f"number {n}", (f"n{n}",)) for n in range(9)))
    run = "tiny_smoke_baseline-fbeda516"
    row = (render.label(run), *(render.count(1_000_000) for _ in range(9)))
    lines = to_text(Table("t", "T", columns, (row,)), 60).splitlines()
    assert sum(line.startswith("tiny_smoke_baseline- ") for line in lines) == lines.count("fbeda516") > 1


def test_best_and_second_best_are_signs_without_styles() -> None:
    cells = render.marked([Cell("1.0", (1.0,)), Cell("3.0", (3.0,)), Cell("2.0", (2.0,))])
    rows = tuple((render.label(name), cell) for name, cell in zip("abc", cells, strict=True))
    table = Table("t", "Title", (Column("row", ("row",), right=False), Column("x", ("x",))), rows)
    plain = to_text(table, 60)
    assert "3.0*" in plain
    assert "2.0+" in plain
    assert "* best and + second best" in plain
    styled = to_text(table, 60, styled=True)
    assert "\x1b[1m3.0\x1b[0m" in styled
    assert "\x1b[4m2.0\x1b[0m" in styled
    assert "* best" not in styled


def test_labels_stand_in_a_column_and_what_is_copied_can_be() -> None:
    command = "harness compare " + "x" * 46
    files = f"report.html; {'r' * 50}.json"
    text = labelled([("verdict", "word " * 20), ("files", files), ("next", command)], 60)
    lines = text.splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].startswith(" " * 9)
    assert set(files.split()) <= {word for line in lines for word in line.split()}, "names of files are whole"
    label, first, second = "\n".join(lines[-2:]).partition("harness")[0].strip(), *lines[-2:]
    assert (label, first.endswith(" \\")) == ("next", True)
    assert f"{first[9:-1]}{second}".split() == command.split(), "as a shell reads it"


def _shown(environment: dict[str, str], *arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "harness", *arguments]
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env={**clean, **path, **environment}, capture_output=True, check=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    for seed in (0, 1):
        build_pair(folder / "results", seed=seed)
    return folder


def test_an_encoding_without_the_letters_and_no_colour(pair: Path) -> None:
    """A terminal of ASCII alone, 60 columns wide, that wants no colour."""
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "60", "NO_COLOR": "1", "FORCE_COLOR": "1"}
    shown = _shown(environment, "tables", folder=pair)
    assert shown.returncode == 0, shown.stderr.decode()
    text = shown.stdout.decode("ascii")
    assert "shapes: mean +- sd" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 60
    assert "McNemar" in text


def test_a_terminal_is_given_styles_and_no_markdown(
    pair: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pair)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in (("COLUMNS", "80"), ("FORCE_COLOR", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["harness", "tables"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    text = capsys.readouterr().out
    assert "\x1b[1mBaseline and ReGATE\x1b[0m" in text
    assert "| demo_regate" not in text
    assert "| demo_regate-" in (pair / "results" / "tables" / "pairs.md").read_text()
