"""A table as data, and its two written forms. Pure: the same table always gives the same bytes."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.stats import Interval

Value = str | int | float | None

MISSING: Final = "missing"
"""What a cell shows when a number should be there and is not: not measured, not kept, not reported."""
MISSING_CSV: Final = "NA"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what people read, and the numbers for programs, one for each CSV name of its column.

    A value of None is missing; an empty string stands where a number makes no sense (a baseline's reduction).
    """

    text: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading with its unit, and the names (with units) that its numbers have in CSV."""

    title: str
    names: tuple[str, ...]
    right: bool = True

    def missing(self) -> Cell:
        return Cell(MISSING, (None,) * len(self.names))

    def empty(self) -> Cell:
        return Cell("", ("",) * len(self.names))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns, and the notes that say where the numbers come from."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.name, row)
            assert all(len(cell.values) == len(c.names) for cell, c in zip(row, self.columns, strict=True)), row


def to_markdown(table: Table) -> str:
    """Title, table with aligned columns (it reads as plain text, too), notes."""
    texts = [[column.title for column in table.columns]]
    texts += [[cell.text for cell in row] for row in table.rows]
    texts = [[text.replace("|", "\\|") for text in row] for row in texts]
    widths = [max(3, *(len(row[index]) for row in texts)) for index in range(len(table.columns))]
    lines = [f"### {table.title}", "", _line(texts[0], widths, table.columns)]
    rules = ["-" * (width - 1) + (":" if c.right else "-") for width, c in zip(widths, table.columns, strict=True)]
    lines.append("| " + " | ".join(rules) + " |")
    lines += [_line(row, widths, table.columns) for row in texts[1:]]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line a row, one column a number; missing numbers are `NA`, numbers that make no sense are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.names])
    for row in table.rows:
        writer.writerow([_csv_value(value) for cell in row for value in cell.values])
    return out.getvalue()


def label(text: str) -> Cell:
    return Cell(text, (text,))


def count(value: int | None) -> Cell:
    """A number of things: 1,234,567."""
    return Cell(MISSING, (None,)) if value is None else Cell(f"{value:,}", (value,))


def large(value: float | None) -> Cell:
    """A number that was reported rounded: 83.82M, 3.93B."""
    if value is None:
        return Cell(MISSING, (None,))
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return Cell(f"{value / size:.2f}{unit}", (value,))
    return Cell(f"{value:g}", (value,))


def percent(value: float | None) -> Cell:
    """A part of one, shown in per cent; CSV keeps the part."""
    return Cell(MISSING, (None,)) if value is None else Cell(f"{100 * value:.2f} %", (value,))


def beside(cell: Cell, other: Cell) -> Cell:
    """Two numbers in one cell, the second in brackets."""
    return Cell(f"{cell.text} ({other.text})", (*cell.values, *other.values))


def ratio(value: float | None) -> Cell:
    return Cell(MISSING, (None,)) if value is None else Cell(f"{value:.3f}", (value,))


def duration(seconds: float | None) -> Cell:
    """Seconds in the unit that suits: 93.1 ms, 93.1 s, 12.3 min, 32.4 h."""
    if seconds is None:
        return Cell(MISSING, (None,))
    for size, unit in ((3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= size * (2 if size > 1 else 1):
            return Cell(f"{seconds / size:.1f} {unit}", (seconds,))
    return Cell(f"{1000 * seconds:.1f} ms" if seconds else "0 s", (seconds,))


def memory(size: int | None) -> Cell:
    """Bytes, shown in GiB."""
    return Cell(MISSING, (None,)) if size is None else Cell(f"{size / 2**30:.2f} GiB", (size,))


def accuracy(interval: Interval | None, *, scale: float = 100.0, signed: bool = False) -> Cell:
    """A value and its interval; CSV: value, low, high. Accuracies are shown in per cent, differences in points."""
    if interval is None:
        return Cell(MISSING, (None, None, None))
    sign = "+" if signed else ""
    value, low, high = (f"{scale * number:{sign}.1f}" for number in (interval.value, interval.low, interval.high))
    return Cell(f"{value} [{low}, {high}]", (interval.value, interval.low, interval.high))


def _line(texts: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = [
        text.rjust(width) if column.right else text.ljust(width)
        for text, width, column in zip(texts, widths, columns, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def _csv_value(value: Value) -> str:
    if value is None:
        return MISSING_CSV
    # Twelve digits: more than is measured, and free of the last bits that differ between machines.
    return f"{value:.12g}" if isinstance(value, float) else str(value)
