"""Names of somebody's in tables: no formula in a spreadsheet, no tag in a page."""

from __future__ import annotations

import csv
import io

import pytest

from harness.report import table as render

NAMES = ["=1+1", "+1", "-1 a", "@a", "\t=1", "\r=1", '=HYPERLINK("x")']


def _table(text: str) -> render.Table:
    return render.Table("t", "Title", (render.Column("run", ("run",)),), ((render.label(text),),))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_formula(name: str) -> None:
    _, (cell,) = csv.reader(io.StringIO(render.to_csv(_table(name)), newline=""))
    assert cell == f"'{name}".replace("\r", " ")


def test_numbers_below_zero_stay_numbers() -> None:
    assert render._csv_value(-0.25) == "-0.25"
    assert render._csv_value(-3) == "-3"


def test_a_name_begins_no_tag() -> None:
    text = render.to_markdown(_table("<img src=x onerror=y> a < b"))
    assert "&lt;img src=x onerror=y> a < b" in text
