"""Draws docs/rooms.svg, the rooms of harness/ and what imports what, from the code itself:

    python docs/rooms.py

A room's words are the beginning of its docstring, the order is that of the layers contract in pyproject.toml, a dot
is at least one import (also one inside a function; not one that only the type checker sees).
"""

from __future__ import annotations

import ast
import re
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "rooms.svg"
METHOD = "regate"
"""The library: beside the rooms, below all of them."""
ROW, HEAD, NAMES, WORDS, CELL = 30, 96, 16, 132, 26
"""Pixels: height of a row and of the heading; where names and sentences start; width of a column."""


def rooms() -> list[str]:
    """Top to bottom, as the contract has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return list(layers)


def files_of(room: str) -> list[Path]:
    """The source files of a room, or of the library."""
    place = ROOT / METHOD if room == METHOD else ROOT / "harness" / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def purpose(room: str) -> str:
    """The first words of a room's docstring, up to a colon, comma or stop."""
    file = files_of(room)[0]
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r"[:,.](?:\s|$)", " ".join(text.split()))[0]


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports when it runs."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return names


def arrows() -> dict[str, set[str]]:
    """Room -> the rooms, and the library, that it imports."""
    known = [*rooms(), METHOD]
    result: dict[str, set[str]] = {}
    for room in known:
        names = {name for file in files_of(room) for name in imported(file)}
        parts = {name.split(".")[1] if name.startswith("harness.") else name.split(".")[0] for name in names}
        result[room] = (parts & set(known)) - {room}
    return result


def draw() -> str:
    """The picture as SVG: a row and a column each; dots right of the diagonal point down, others would point up."""
    known, reached = [*rooms(), METHOD], arrows()
    sentences = {room: purpose(room) for room in known}
    left = WORDS + round(max(len(text) for text in sentences.values()) * 6.5) + 16
    width, height = left + CELL * len(known) + 40, HEAD + ROW * len(known) + 16
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        "<title>The rooms of harness/, top to bottom, and which imports which</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{NAMES}" y="24" fill="#555555">A room imports only rooms below it.</text>',
        f'<text x="{NAMES}" y="42" fill="#555555">A dot: the room of the row imports that of the column.</text>',
    ]
    for number, room in enumerate(known):
        top, middle = HEAD + ROW * number, HEAD + ROW * number + ROW // 2
        x = left + CELL * number + CELL // 2
        label = f"{room}/" if files_of(room)[0].stem == "__init__" else room
        if number % 2 == 0:
            lines.append(f'<rect x="8" y="{top}" width="{width - 16}" height="{ROW}" fill="#f3f5f8"/>')
        lines += [
            f'<text x="{NAMES}" y="{middle + 4}" font-weight="bold" fill="#17324d">{label}</text>',
            f'<text x="{WORDS}" y="{middle + 4}" fill="#222222">{escape(sentences[room])}</text>',
            f'<text transform="translate({x + 4} {HEAD - 8}) rotate(-60)" fill="#17324d">{room}</text>',
            f'<rect x="{x - 4}" y="{middle - 4}" width="8" height="8" fill="#c3cbd5"/>',
        ]
        for column, other in enumerate(known):
            if other in reached[room]:
                colour = "#1f6fb2" if column > number else "#c0392b"
                place = left + CELL * column + CELL // 2
                lines.append(f'<circle cx="{place}" cy="{middle}" r="5" fill="{colour}"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
