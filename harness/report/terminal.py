"""Tables as a terminal shows them: within its width, in letters that it can write, with no Markdown.

A table that is too wide is set in parts, one below the other, each of which repeats what its rows are called.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from harness.common.lines import in_width, terminal_width
from harness.common.streams import spelled
from harness.report.closing import COPIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from harness.report.table import Cell, Column, Table

_GAP: Final = 2
"""Spaces between two columns."""
_NARROWEST: Final = 12
"""Letters that a column of words is given at least, before a table is set in parts."""
_FIRST: Final = 18
"""Likewise the first column, which says what a row is."""
_NAMES: Final = 0.4
"""Part of the width that the names of the rows take at most in a table of several parts."""
_MARKS: Final = {"best": "bold", "second": "underline"}
_PLAIN_MARKS: Final = {"best": "*", "second": "+"}
_MARK_NOTE: Final = "* best and + second best of a column."


def to_terminal(tables: Sequence[Table], *, unprinted: str = "") -> str:
    """The tables as text for standard output, as wide as it is.

    Args:
        unprinted: a last line, on what is not shown.
    """
    from rich.console import Console

    console = Console()
    styled = console.is_terminal and not console.no_color
    parts = [to_text(_spelled(table, console.encoding), console.width, styled=styled) for table in tables]
    return "\n".join([*parts, *([wrapped(unprinted, console.width)] if unprinted else [])])


def _spelled(table: Table, encoding: str) -> Table:
    """The table in letters of the encoding, so that what is longer in them is laid out as long as it is."""
    rows = tuple(tuple(replace(cell, text=spelled(cell.text, encoding)) for cell in row) for row in table.rows)
    columns = tuple(replace(column, title=spelled(column.title, encoding)) for column in table.columns)
    notes = tuple(spelled(note, encoding) for note in table.notes)
    return replace(table, title=spelled(table.title, encoding), columns=columns, rows=rows, notes=notes)


def to_text(table: Table, width: int, *, styled: bool = False) -> str:
    """One table in lines of at most `width` letters.

    Args:
        styled: best and second best are bold and underlined; otherwise they are marked by a sign, which a note
            explains.
    """
    console = _console(width, styled=styled)
    console.print(table.title, style="bold" if styled else None, highlight=False, markup=False)
    texts = [[_text(cell, styled=styled) for cell in row] for row in table.rows]
    names, parts = _parts(table.columns, texts, width)
    for part in parts:
        console.print()
        _print_part(console, table, texts, names, part, styled=styled)
    marked = not styled and any(cell.mark for row in table.rows for cell in row)
    notes = [*table.notes, *([_MARK_NOTE] if marked else [])]
    if notes:
        console.print()
    for note in notes:
        _print_note(console, note)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def labelled(lines: Iterable[tuple[str, str]], width: int | None = None) -> str:
    """Each (label, sentence) with the labels in a column of their own. What can be copied, the lines of
    `closing.COPIED`, stays so: names of files are whole, and the lines of a broken command end with a backslash.

    Args:
        width: of a line; None takes the terminal's.
    """
    from rich.console import Console
    from rich.text import Text

    lines = list(lines)
    console = _console(width or Console().width, styled=False)
    margin = max((len(label) for label, _ in lines), default=0) + _GAP
    text = []
    for label, sentence in lines:
        room = max(1, console.width - margin)
        parts = [line.plain.rstrip() for line in Text(sentence).wrap(console, room, overflow="fold")]
        if label in COPIED:
            text += in_width(f"{label:<{margin}}{sentence}", width or terminal_width())
            continue
        text += [f"{label if place == 0 else '':<{margin}}{part}" for place, part in enumerate(parts)]
    return "\n".join(text)


def wrapped(text: str, width: int) -> str:
    """A sentence in lines of at most `width` letters; words that are longer are broken."""
    console = _console(width, styled=False)
    console.print(text, highlight=False, markup=False, overflow="fold")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _console(width: int, *, styled: bool) -> Console:
    from rich.console import Console

    system: Literal["standard"] | None = "standard" if styled else None
    return Console(
        file=io.StringIO(), width=width, color_system=system, force_terminal=styled, emoji=False, no_color=True
    )


def _text(cell: Cell, *, styled: bool) -> str:
    sign = "" if styled or not cell.mark else _PLAIN_MARKS[cell.mark]
    return f"{cell.text}{sign}"


def _parts(
    columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[list[int]]]:
    """The columns that name the rows, which every part of a table repeats, and the columns of each part; one part of
    all columns where they fit."""
    everything = list(range(len(columns)))
    needed = [_needed(columns, texts, index) for index in everything]
    if len(columns) == 1 or not _too_wide(columns, texts, everything, width):
        return _names(columns), [everything]
    names = _names(columns)
    if len(names) == len(columns) - 1:  # all but one are words: the first one names the rows
        names = names[:1]
    room = width - _names_width(texts, names, width) - _GAP
    parts: list[list[int]] = [[]]
    used = 0
    for index in everything[len(names) :]:
        if parts[-1] and used + needed[index] + _GAP > room:
            parts.append([])
            used = 0
        parts[-1].append(index)
        used += needed[index] + _GAP
    return names, [[*names, *part] for part in parts]


def _names(columns: Sequence[Column]) -> list[int]:
    """The leading columns of words, which say what a row is: not all of a table's columns, and at most three."""
    leading = 0
    while leading < min(3, len(columns) - 1) and not columns[leading].right:
        leading += 1
    return list(range(max(1, leading)))


def _needed(columns: Sequence[Column], texts: Sequence[Sequence[str]], index: int) -> int:
    """Letters that a column cannot do without: numbers are not broken, words are."""
    heading = max((len(word) for word in columns[index].title.split()), default=1)
    longest = max((len(row[index]) for row in texts), default=0)
    words = _NARROWEST if index else _FIRST
    return max(heading, longest if columns[index].right else min(longest, words), 1)


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], shown: Sequence[int], room: int) -> list[int]:
    """Letters of each of these columns: what it needs, and of what is left over as much as its longest text has,
    the column that lacks most first. A column alone is not wider than the room."""
    widths = [min(_needed(columns, texts, index), room) for index in shown]
    wanted = [max(len(columns[i].title), max((len(row[i]) for row in texts), default=0)) for i in shown]
    for _ in range(room - sum(widths) - _GAP * (len(shown) - 1)):
        lacks = [want - width for want, width in zip(wanted, widths, strict=True)]
        if max(lacks) <= 0:
            break
        widths[lacks.index(max(lacks))] += 1
    return widths


def _names_width(texts: Sequence[Sequence[str]], names: Sequence[int], width: int) -> int:
    """Letters of the joined names of a table in parts."""
    longest = max((len(_joined([row[index] for index in names])) for row in texts), default=1)
    return min(max(longest, 1), max(_NARROWEST, int(_NAMES * width)))


def _joined(names: Sequence[str]) -> str:
    return ", ".join(name for name in names if name)


def _broken(names: str, width: int) -> str:
    """Names that are longer than a line, broken behind a sign of theirs: a digest or a key's part stays whole where a
    line has room for it."""
    lines = []
    for word in names.split(" "):
        rest, parts = word, []
        while len(rest) > width and (end := _last_sign(rest, width)) > 0:
            parts.append(rest[: end + 1])
            rest = rest[end + 1 :]
        lines.append("\n".join([*parts, rest]))
    return " ".join(lines)


def _last_sign(word: str, width: int) -> int:
    """Where a word is broken: behind the last sign between its parts or, where that leaves little, within one."""
    between = max(word.rfind(sign, 0, width) for sign in "-./")
    return between if between > width / 3 else max(between, word.rfind("_", 0, width))


def _print_part(
    console: Console,
    table: Table,
    texts: Sequence[Sequence[str]],
    names: Sequence[int],
    part: Sequence[int],
    *,
    styled: bool,
) -> None:
    from rich.box import Box
    from rich.table import Table as RichTable
    from rich.text import Text

    whole = len(part) == len(table.columns) and not _too_wide(table.columns, texts, part, console.width)
    # One space of padding and the one of the box between two columns: _GAP.
    grid = RichTable(box=Box(_RULES, ascii=True), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    numbers = [index for index in part if index not in names] if not whole else list(part)
    room, width_of_names = console.width, 0
    if not whole:
        width_of_names = _names_width(texts, names, console.width)
        room -= width_of_names + _GAP
        title = Text(_broken(_joined([table.columns[index].title for index in names]), width_of_names))
        grid.add_column(title, overflow="fold", width=width_of_names)
    widths = _widths(table.columns, texts, numbers, room)
    for index, width in zip(numbers, widths, strict=True):
        column = table.columns[index]
        justify: Literal["left", "right"] = "right" if column.right else "left"
        grid.add_column(Text(_broken(column.title, width)), justify=justify, overflow="fold", width=width)
    for row, cells in zip(texts, table.rows, strict=True):
        first = [] if whole else [Text(_broken(_joined([row[index] for index in names]), width_of_names))]
        styles = [_MARKS.get(cells[index].mark, "") if styled else "" for index in numbers]
        broken = [_broken(row[index], width) for index, width in zip(numbers, widths, strict=True)]
        shown = [Text(text, style=style) for text, style in zip(broken, styles, strict=True)]
        grid.add_row(*first, *shown)
    console.print(grid)


def _too_wide(columns: Sequence[Column], texts: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> bool:
    return sum(_needed(columns, texts, index) for index in shown) + _GAP * (len(shown) - 1) > width


_RULES: Final = "    \n    \n -- \n    \n    \n    \n    \n    \n"
"""A line of hyphens below the headings, and nothing else: every terminal and every encoding has it."""


def _print_note(console: Console, note: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    lines = Text(f"- {note}", overflow="fold").wrap(console, max(1, console.width - _GAP), overflow="fold")
    for place, line in enumerate(lines):
        console.print(line if place == 0 else Padding(line, (0, 0, 0, _GAP)), highlight=False)


__all__ = ["labelled", "to_terminal", "to_text", "wrapped"]
