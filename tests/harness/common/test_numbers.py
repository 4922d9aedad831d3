"""One way to write a number in per cent, wherever people read one."""

from __future__ import annotations

import re
from pathlib import Path

from harness.common.numbers import percent
from harness.report import table as render

SOURCES = sorted((Path(__file__).parents[3] / "harness").rglob("*.py"))
_OWN = re.compile(r":[,.\d]*%\}|\{100 \* [^{}]*:\.\d+f\} ?%")
"""A format of Python's that writes `41.72%`, or per cent written out at the spot."""


def test_percent_has_a_space_and_as_many_places_as_asked() -> None:
    assert [percent(0.41722), percent(0.5, 0), percent(0.0739, 1)] == ["41.72 %", "50 %", "7.4 %"]
    assert render.percent(0.42).text == percent(0.42)


def test_no_module_writes_per_cent_in_another_way() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    assert [str(path) for path, text in texts.items() if path.name != "numbers.py" and _OWN.search(text)] == []
    assert all(_OWN.search(text) for text in ('f"{part:.2%}"', 'f"{100 * part:.1f} %"', 'f"{part:.0%}"'))
