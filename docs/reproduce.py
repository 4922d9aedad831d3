"""Writes the table of arms in docs/reproduce.md from the account of `harness plan`:

    python docs/reproduce.py

What is planned is the shipped recipe in an empty folder: no weights and no data are needed.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.paper.definitions import BASELINE, EXTENDED, FAST, RECIPES
from harness.analysis.paper.numbers import load_paper
from harness.config.load import load_recipe
from harness.plan import Planner

if TYPE_CHECKING:
    from harness.plan.figures import Figure

PAGE = Path(__file__).resolve().parent / "reproduce.md"
MARKS = ("<!-- arms: python docs/reproduce.py -->", "<!-- end of the arms -->")
HEADINGS = (
    "row of the paper", "recipe", "training GPU-hours", "teacher GPU-hours", "evaluation GPU-hours",
    "GB of a GPU", "GB of the machine", "GB of disk", "paper's GPU-hours",
)  # fmt: skip
ENDS = {BASELINE: "", EXTENDED: "-ReGATE-extended", FAST: "-ReGATE-fast"}


def table() -> list[str]:
    """The lines of the table, a row an arm in the paper's order."""
    printed = load_paper().costs("table4_efficiency_acl")
    lines = [_line(HEADINGS), _line(["---"] * 2 + ["---:"] * (len(HEADINGS) - 2))]
    for (model, arm), name in RECIPES.items():
        row = printed.get(model + ENDS[arm]) if arm in ENDS else None
        hours = "not reported" if row is None else f"{row['train_gpu_hours']:g}"
        lines.append(_line([f"{model}, {arm}", f"`{name}`", *_figures(name), hours]))
    return lines


def page() -> str:
    """The document with the table that the plans give."""
    text = PAGE.read_text(encoding="utf-8")
    body = "\n".join([MARKS[0], *table(), MARKS[1]])
    return re.sub(f"{re.escape(MARKS[0])}.*?{re.escape(MARKS[1])}", lambda _: body, text, flags=re.DOTALL)


def _figures(name: str) -> list[str]:
    recipe = load_recipe(name)
    figures = Planner().costs(recipe).figures
    disk = [figure for figure in figures["disk"] if figure.name != "data of the benchmarks"]
    return [
        _hours(figures["time"], "training"),
        _hours(figures["time"], "teacher") or "none",
        _hours(figures["evaluation"], "their GPU-hours"),
        _number(figures["memory of a GPU in training"][-1:]),
        _number(figures["memory of the machine"]),
        _number(disk),
    ]


def _hours(figures: tuple[Figure, ...], name: str) -> str:
    words = [figure.words for figure in figures if figure.name == name and figure.unit == "GPU-hours"]
    return words[0].removesuffix(" GPU-hours") if words else ""


def _number(figures: tuple[Figure, ...] | list[Figure]) -> str:
    low, high = (round(sum(getattr(figure, end) for figure in figures)) for end in ("low", "high"))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        PAGE.write_text(page(), encoding="utf-8")
