"""What every reading verb prints in terminals of 60, 80 and 100 columns: no longer line, and no name cut or lost."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

import pytest

from harness import pipeline
from harness.analysis.runs import load_runs
from harness.cli import doctor
from harness.cli.run_names import known_suites
from harness.common.lines import fitted
from harness.report.terminal import labelled
from tests.harness.worlds import run_builder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.harness.cli.command import Command

WIDTHS = (60, 80, 100)
STEM = "demo.seven_words_name_this_arm"
VERBS = (
    ("status",),
    ("show", f"{STEM}_regate"),
    ("show", "videollama2_regate"),
    ("plan", "videollama2_regate", "internvl3_5_8b_regate"),
    ("trace", "accuracy_shapes", "1", "mean"),
    ("list",),
    ("validate", "tiny_regate"),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose names are as long as those of suites, below `results`."""
    folder = tmp_path_factory.mktemp("world")
    run_builder.build_pair(folder / "results", STEM)
    return folder


@pytest.fixture(autouse=True)
def _there(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)


def too_long(lines: Iterable[str], width: int) -> list[str]:
    """The lines that do not fit although their words would; a path that is wider than a terminal is not broken."""
    return [line for line in lines if len(line) > width and max(map(len, line.split())) < width - 12]


def content(text: str) -> str:
    return re.sub(r"^\s*#|[\s\\]", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_verb_fits_the_terminal_and_loses_nothing(
    harness: Command, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    assert harness(*verb) == 0, harness.err
    whole = harness.out
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        assert harness(*verb) == 0
        assert too_long(harness.out.splitlines(), width) == []
        assert content(harness.out) == content(whole)


@pytest.mark.parametrize("width", WIDTHS)
def test_comparisons_break_names_at_their_signs(
    harness: Command, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    assert harness("compare", f"{STEM}_baseline", f"{STEM}_regate") == 0, harness.err
    assert max(map(len, harness.out.splitlines())) <= width
    words = {word.rstrip(",") for word in harness.out.split()}
    for run in load_runs(run_builder.Path("results")):
        assert run.id in words or run.id.rpartition("-")[2] in words, "a digest is in one piece"
    for key in ("keep_ratio", "placeholders", "tokens_per_batch"):
        assert any(word.endswith(key) for word in words), "a key's last part is in one piece"


def test_the_end_of_a_run_and_a_doctors_findings_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    results = run_builder.Path("results")
    runs = load_runs(results)
    (closing,) = pipeline._close(results, runs, [runs[0].id], known_suites())
    long = doctor.Check("weights", "fail", "8 missing " * 20, "hf download a/b --include 'c d' --local-dir e")
    for width in WIDTHS:
        monkeypatch.setenv("COLUMNS", str(width))
        assert too_long(labelled(closing).splitlines(), width) == []
        assert too_long(fitted(doctor.render([long])).splitlines(), width) == []


def test_a_terminal_of_ascii_is_written_to(harness: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    harness("list", "recipes")
    text = written.getvalue().decode("ascii")
    assert "\x1b" not in text
    assert "lambda" in text
    assert too_long(text.splitlines(), 60) == []
