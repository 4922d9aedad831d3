"""Lines for a person, as long as a terminal is wide."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Final

from harness.common.streams import spelled

if TYPE_CHECKING:
    from collections.abc import Iterable

_INDENTED: Final = 0.6
"""Part of the width that labels or an indent may take of a line that is broken."""
_LEAST_INDENT: Final = 4
_LABELS: Final = re.compile(r"\S {2,}(?=\S)")
_MARK: Final = re.compile(r"-> |\[\d+\] |- ")
_COMMENT: Final = "# "
_COMMAND: Final = re.compile(r"(hf|harness|pip|python3?|\.venv/bin/\w+|srun) [a-z-]")


def fitted(lines: Iterable[str]) -> str:
    """Lines for a person as a terminal shows them: broken between words where they are longer than it is wide, what
    follows under the text of the line. A command that is broken can still be copied: its lines end with a backslash.
    Words stay whole, so that names and files can be found and copied. Where no terminal and no COLUMNS says how wide
    it is, lines stay as they are."""
    width = terminal_width()
    spelling = [spelled(line, sys.stdout.encoding) for text in lines for line in text.split("\n")]
    return "\n".join(part for line in spelling for part in in_width(line, width))


def terminal_width() -> int:
    """Letters of a line of the terminal, as COLUMNS or it says; 0 where neither does, as in a pipe."""
    return shutil.get_terminal_size((0, 0)).columns


def in_width(line: str, width: int) -> list[str]:
    """One line, in several ones where it is longer than `width`; 0 leaves it as it is."""
    if not width or len(line) <= width:
        return [line]
    lead = len(line) - len(line.lstrip())
    start = _text_start(line, width)
    command = _COMMAND.match(line[start:]) is not None
    indent = lead + 2 if start == lead or start > _INDENTED * width else start + 2 * command
    prefix = " " * lead + _COMMENT if line[start:].startswith(_COMMENT) else " " * indent
    parts = _broken(line, start, prefix, width, " \\" if command else "")
    if max(map(len, parts)) > width:  # a long word has more room at the margin
        parts = _broken(line, start, prefix[: min(lead, 2) + _LEAST_INDENT], width, " \\" if command else "")
    return parts


def _broken(line: str, start: int, prefix: str, width: int, end: str) -> list[str]:
    """The line with its text broken between words.

    Args:
        start: of the text; labels stand before it.
        prefix: of the lines that follow.
        end: of the lines that something follows.
    """
    parts = textwrap.wrap(
        line[start:],
        width - len(end),
        initial_indent=line[:start],
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [*(part + end for part in parts[:-1]), parts[-1]]


def _text_start(line: str, width: int) -> int:
    """Where the text of a line begins: behind its labels, which two spaces set off, if that leaves most of a line."""
    starts = [match.end() for match in _LABELS.finditer(line) if match.end() <= _INDENTED * width]
    start = starts[-1] if starts else len(line) - len(line.lstrip())
    mark = _MARK.match(line[start:])
    return start + (mark.end() if mark else 0)


__all__ = ["fitted", "in_width", "terminal_width"]
