"""The committed tables of elided words are those that the committed selection.json gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.analysis.choices.selection import FILE, read_selection
from harness.report.tables.selection import write_tables

EVIDENCE = Path(__file__).parents[4] / "results" / "evidence"
CHOICES = sorted(EVIDENCE.glob(f"*/runs/*/{FILE}"))


def test_there_is_evidence_to_check() -> None:
    assert CHOICES


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.parent.name)
def test_the_committed_tables_are_what_the_choices_give(path: Path, tmp_path: Path) -> None:
    selection = read_selection(path.parent)
    assert selection is not None
    committed = path.parents[2] / "selection"
    for written in write_tables(tmp_path, selection):
        assert (committed / written.name).read_bytes() == written.read_bytes(), written.name
