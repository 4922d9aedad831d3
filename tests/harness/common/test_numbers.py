"""One way to write a part in per cent, and bytes of memory and disk, wherever people read them."""

from __future__ import annotations

import re
from pathlib import Path

from harness.common.numbers import gigabytes, percent
from harness.report import table as render

SOURCES = sorted((Path(__file__).parents[3] / "harness").rglob("*.py"))
_OWN = re.compile(r":[,.\d]*%\}|\{100 \* [^{}]*:\.\d+f\} ?%")
"""A format of Python's that writes `41.72%`, or per cent written out at the spot."""

_SIZE = re.compile(r"\b[GM]iB\b|/ ?(1e9|GB)\b[^{}]*\} ?GB\b|2 ?\*\* ?30|1024 ?\*\* ?3")
"""Bytes in another unit, or in GB written out at the spot."""


def test_memory_and_disk_have_one_unit() -> None:
    assert [gigabytes(size) for size in (0, 1_500_000_000, 603_979_776, 363e9, 2_000_500)] == [
        "0 GB", "1.5 GB", "0.604 GB", "363 GB", "0.002 GB",
    ]  # fmt: skip


def test_percent_has_a_space_and_as_many_places_as_asked() -> None:
    assert [percent(0.41722), percent(0.5, 0), percent(0.0739, 1)] == ["41.72 %", "50 %", "7.4 %"]
    assert render.percent(0.42).text == percent(0.42)


def test_no_module_writes_per_cent_in_another_way() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    assert [str(path) for path, text in texts.items() if path.name != "numbers.py" and _OWN.search(text)] == []
    assert all(_OWN.search(text) for text in ('f"{part:.2%}"', 'f"{100 * part:.1f} %"', 'f"{part:.0%}"'))


def test_no_module_writes_bytes_in_another_way() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    assert [str(path) for path, text in texts.items() if path.name != "numbers.py" and _SIZE.search(text)] == []
    assert all(_SIZE.search(text) for text in ('f"{size / 2**30:.2f} GiB"', 'f"{size / 1e9:.0f} GB"'))
