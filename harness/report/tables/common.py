"""What the builders of tables share: columns, notes, and rows of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.analysis.runs import differences, teacher_cost
from harness.report import table as render
from harness.report.table import Cell, Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from harness.analysis.runs import Pair, Run

Row = tuple[Cell, ...]

RUN: Final = Column("run", ("run",), right=False)
ARM: Final = Column("arm", ("arm",), right=False)
TRACE: Final = (
    "A row is made from results/runs/<run>/record.json of the run that it names, a difference from both runs of "
    "its pair."
)
INTERVALS: Final = (
    "[low, high]: 95 % over the items, with the trained model fixed; the spread between seeds is not in it. "
    "One ability: Wilson. Mean: bootstrap within each ability. Difference: paired by item, in points."
)


def attempts_notes(runs: Iterable[Run]) -> list[str]:
    """A line for each run whose attempts did not all run on the same hardware, code and packages."""
    notes = []
    for run in runs:
        for change in run.record.get("provenance", {}).get("changes", ()):
            names = ", ".join(change["changed"])
            notes.append(f"{run.id}: attempt {change['attempt']} ran on something else than the one before: {names}.")
    return notes


def rows_of(pairs: Iterable[Pair], cells: Callable[[Pair, Run], list[Cell]]) -> tuple[Row, ...]:
    """One row a run, arms of a pair together, a baseline that is in several pairs once."""
    rows: list[Row] = []
    shown: set[str] = set()
    for pair in pairs:
        for run in pair.runs:
            if run.id not in shown:
                rows.append((render.label(run.id, run.id), render.label(run.arm), *cells(pair, run)))
            shown.add(run.id)
    return tuple(rows)


def gated_only(run: Run, column: Column, cell: Cell) -> Cell:
    return column.empty() if run.gate is None else cell


def teacher(run: Run, what: str, column: Column) -> Cell:
    """The reference pass; empty for a run that has none."""
    if run.record["reference"] is None:
        return column.empty()
    cost = teacher_cost(run)[what]
    if what == "seconds":
        return render.duration(cost)
    return column.missing() if cost is None else Cell(f"{cost:.3g}", (cost,))


def models_of(runs: Iterable[Run]) -> set[str]:
    return {run.record["recipe"]["model"]["adapter"] for run in runs}


def comparison_notes(pairs: Iterable[Pair]) -> list[str]:
    """What makes a pair less than a clean comparison, and pairs that are not whole."""
    notes = []
    for pair in pairs:
        differing = differences(pair)
        if differing:
            notes.append(f"{pair.name}: its two arms also differ in {', '.join(differing)}.")
        if pair.baseline is None:
            notes.append(f"{pair.name}: its baseline has no record; differences are missing.")
        if pair.gated is None:
            notes.append(f"{pair.name}: no gated run of this recipe has a record.")
    return notes
