"""A table as data, and its four written forms. Pure: the same table always gives the same bytes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.common import numbers
from harness.common.numbers import gigabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.analysis.statistics import Interval

Value = str | int | float | None
Mark = Literal["", "best", "second"]
"""Best and second best of a column: bold and underlined."""

MISSING: Final = "missing"
"""What a cell shows when a number should be there and is not: not measured, not kept, not reported."""
MISSING_CSV: Final = "NA"
NOT_REACHED: Final = "not reached"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: what people read, and the numbers for programs, one for each CSV name of its column.

    A value of None is missing; an empty string stands where a number makes no sense (a baseline's reduction). An
    infinite bound is one that was not reached. `runs` are ids of the runs behind it; in a
    row's first cell, behind the row.
    """

    text: str
    values: tuple[Value, ...]
    mark: Mark = ""
    runs: tuple[str, ...] = ()


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
    """Rows of cells under columns, and the notes that say where the numbers come from.

    A table that is not `printed` is written, and shown only when asked for; `facts` are for programs alone (JSON).
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    printed: bool = True
    facts: Any = None

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.name, row)
            assert all(len(cell.values) == len(c.names) for cell, c in zip(row, self.columns, strict=True)), row


_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
_TAG: Final = re.compile(r"<(?=[A-Za-z/!?])")
"""Where a name of somebody's would begin a tag of HTML in Markdown."""
FORMS: Final = ("md", "csv", "tex", "json")


def written(table: Table) -> dict[str, str]:
    """Suffix -> the table in that form."""
    makers = (to_markdown, to_csv, to_latex, to_json)
    return {suffix: make(table) for suffix, make in zip(FORMS, makers, strict=True)}


def to_markdown(table: Table) -> str:
    """Title, table with aligned columns (it reads as plain text, too), notes."""
    texts = [[column.title for column in table.columns]]
    texts += [[_MARKED[cell.mark].format(_TAG.sub("&lt;", cell.text)) for cell in row] for row in table.rows]
    texts = [[text.replace("|", "\\|").replace("\n", "<br>") for text in row] for row in texts]
    widths = [max(3, *(len(row[index]) for row in texts)) for index in range(len(table.columns))]
    lines = [f"### {table.title}", "", _line(texts[0], widths, table.columns)]
    rules = ["-" * (width - 1) + (":" if c.right else "-") for width, c in zip(widths, table.columns, strict=True)]
    lines.append("| " + " | ".join(rules) + " |")
    lines += [_line(row, widths, table.columns) for row in texts[1:]]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """A `table` environment in the booktabs style; needs the packages booktabs and, for wide ones, graphicx."""
    shape = "".join("r" if column.right else "l" for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{latex(table.title)}}}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table.name)}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{{shape}}}",
        "\\toprule",
        " & ".join(latex(column.title) for column in table.columns) + " \\\\",
        "\\midrule",
        *(" & ".join(_LATEX_MARKED[c.mark] % latex(c.text) for c in row) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}}",
        *(f"\\par\\raggedright\\footnotesize {latex(note)}" for note in table.notes),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """The text with what is special to LaTeX escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text).replace("\n", " ")


def to_json(table: Table) -> str:
    """Columns with the names of their numbers, and rows as objects from those names; null is missing, an empty text
    is a number that makes no sense there, and "inf" is not reached. `runs` are the ids of the runs behind each row.
    """
    names = [name for column in table.columns for name in column.names]
    rows = [dict(zip(names, (_json_value(v) for c in row for v in c.values), strict=True)) for row in table.rows]
    content = {
        "schema": 1,
        "name": table.name,
        "title": table.title,
        "columns": [{"title": column.title, "names": list(column.names)} for column in table.columns],
        "rows": rows,
        "runs": [list(runs_of(row)) for row in table.rows],
        "notes": list(table.notes),
        "facts": _json_value(table.facts),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def runs_of(row: Sequence[Cell]) -> tuple[str, ...]:
    """Ids of the runs that a row is made from, in the order of its cells."""
    return tuple(dict.fromkeys(run for cell in row for run in cell.runs))


def to_csv(table: Table) -> str:
    """One line a row, one column a number; missing numbers are `NA`, numbers that make no sense are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.names])
    for row in table.rows:
        writer.writerow([_csv_value(value) for cell in row for value in cell.values])
    return out.getvalue()


def label(text: str, *runs: str) -> Cell:
    """A word or a name.

    Args:
        runs: ids of the runs that its row is made from.
    """
    return Cell(text, (text,), runs=runs)


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
    return Cell(MISSING, (None,)) if value is None else Cell(numbers.percent(value), (value,))


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


def train_time(wall: float | None, cpu: float | None) -> Cell:
    """Wall seconds; behind the CPU seconds, which alone are compared, where a CPU trained and they are recorded. The
    value is the wall's."""
    cell = duration(wall)
    return cell if cpu is None else Cell(f"CPU {duration(cpu).text} (wall {cell.text})", cell.values)


def amount(reach: float | None, low: float | None, high: float | None, show: Callable[[float], Cell]) -> Cell:
    """A number that may lie beyond what was measured: `show` writes it, an infinite one is "not reached"."""
    shown = [NOT_REACHED if v is None or math.isinf(v) else show(v).text for v in (reach, low, high)]
    value = math.inf if reach is None else reach
    text = shown[0] if low is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"
    return Cell(text, (value, low, high))


def memory(size: int | None) -> Cell:
    """Bytes of memory or disk."""
    return Cell(MISSING, (None,)) if size is None else Cell(gigabytes(size), (size,))


def accuracy(
    interval: Interval | None, *, scale: float = 100.0, signed: bool = False, value: float | None = None
) -> Cell:
    """A value and its interval; CSV: value, low, high. Accuracies are shown in per cent, differences in points.

    Args:
        value: shown alone where there is no interval.
    """
    sign = "+" if signed else ""
    if interval is None:
        text = MISSING if value is None else f"{scale * value:{sign}.1f}"
        return Cell(text, (value, None, None))
    shown, low, high = (f"{scale * number:{sign}.1f}" for number in (interval.value, interval.low, interval.high))
    return Cell(f"{shown} [{low}, {high}]", (interval.value, interval.low, interval.high))


_MARKED: Final = {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}
_LATEX_MARKED: Final = {"": "%s", "best": "\\textbf{%s}", "second": "\\underline{%s}"}
_LATEX: Final = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "±": "$\\pm$",
    "[": "{[}",
    "]": "{]}",
}


def marked(cells: Sequence[Cell], *, lower: bool = False) -> list[Cell]:
    """The cells of one column with the best and the second best number marked, by their first value; ties share a
    mark, what is missing has none.

    Args:
        lower: whether less is better.
    """
    numbers = sorted({c.values[0] for c in cells if isinstance(c.values[0], int | float)}, reverse=not lower)
    marks: dict[Value, Mark] = {}
    for number, mark in zip(numbers, _BEST, strict=False):
        marks[number] = mark
    return [replace(cell, mark=marks.get(cell.values[0], "")) for cell in cells]


_BEST: Final[tuple[Mark, ...]] = ("best", "second")


def _line(texts: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    padded = [
        text.rjust(width) if column.right else text.ljust(width)
        for text, width, column in zip(texts, widths, columns, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"


def _json_value(value: Any) -> Any:
    """Plain values with numbers of twelve digits, as in CSV; what JSON has no number for becomes a word."""
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    return [_json_value(entry) for entry in value] if isinstance(value, list | tuple) else value


def _csv_value(value: Value) -> str:
    if value is None:
        return MISSING_CSV
    # Twelve digits: more than is measured, and free of the last bits that differ between machines.
    if isinstance(value, float):
        return f"{value:.12g}"
    # A spreadsheet takes such a text for a formula and computes it: the apostrophe makes it a text again.
    text = str(value)
    marked = f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text
    return marked.replace("\r", " ")  # it would begin a row in some readers
