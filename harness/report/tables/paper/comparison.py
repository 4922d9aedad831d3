"""Ours beside the paper's, one number a row: ours, paper, difference, interval, verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.analysis import verdicts
from harness.analysis.paper.numbers import GATED, PAPER_NAMES, TABLES, in_points
from harness.analysis.paper.runs import BASELINE, EXTENDED, FAST, MISSING, Measured
from harness.analysis.runs import machine
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.accuracy import answer_note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.analysis.paper.runs import PaperRuns
    from harness.analysis.verdicts import Verdict
    from harness.benchmarks import PaperBenchmark

COLUMNS: Final = (
    Column("row of the paper", ("row",), right=False),
    Column("quantity", ("quantity",), right=False),
    Column("ours", ("ours",)),
    Column("paper", ("paper",)),
    Column("difference", ("difference",)),
    Column("interval of ours", ("low", "high")),
    Column("verdict", ("verdict",), right=False),
    Column("runs", ("runs",)),
)
UNKEPT: Final = (
    "Intervals: 95 %, over the items for one run and over the seeds for several. A score whose items are not kept "
    "has none, and is judged only where it equals the paper's as printed."
)
ROUNDING: Final = 0.0005
"""Half of the last digit of a score that the paper prints in per cent, in parts of one."""
ROUNDING_POINTS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: what is compared, and the word for it; `verdict` None where it is not judged.

    `show` writes a number of this quantity; a difference is ours minus the paper's. A quantity that is not `sampled`
    has no interval.
    """

    row: str
    quantity: str
    ours: Measured
    paper: float | None
    verdict: Verdict | None
    show: Callable[[float], str]
    sampled: bool = True

    @property
    def difference(self) -> float | None:
        if self.ours.value is None or self.paper is None:
            return None
        return round(self.ours.value - self.paper, 12) + 0.0  # no minus before a zero

    def bounds(self) -> Cell:
        """The interval of ours."""
        if not self.sampled:
            return Cell("", ("", ""))
        interval = self.ours.interval
        if interval is None:
            return Cell(render.MISSING, (None, None))
        return Cell(f"[{self.show(interval.low)}, {self.show(interval.high)}]", (interval.low, interval.high))


def number(value: float | None, show: Callable[[float], str]) -> Cell:
    """A number as its quantity is written; an infinite one was not reached."""
    if value is None:
        return Cell(render.MISSING, (None,))
    return Cell(render.NOT_REACHED if math.isinf(value) else show(value), (value,))


def per_cent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{value:.1f}"


def signed(show: Callable[[float], str]) -> Callable[[float], str]:
    """The same with its sign."""

    def shown(value: float) -> str:
        text = show(value)
        return text if text[0] in "+-" else f"+{text}"

    return shown


def comparison_table(
    name: str, title: str, entries: Sequence[Entry], notes: Sequence[str], *, printed: bool
) -> Table:
    """The entries as a table."""
    rows = tuple(_row(entry) for entry in entries)
    return Table(name, title, COLUMNS, rows, tuple(notes), printed=printed)


def model_comparison(runs: PaperRuns, model: str) -> Table:
    """Every score of one model in the paper's Tables 1 to 3, and what ReGATE changes on each benchmark."""
    entries = []
    for label, arm in ((model, BASELINE), (model + GATED, EXTENDED)):
        for columns in TABLES.values():
            for benchmark in columns:
                ours, paper = runs.score(model, arm, benchmark.name), runs.paper.reported(label, benchmark.name)
                show = points if in_points(benchmark) else per_cent
                rounding = ROUNDING_POINTS if in_points(benchmark) else ROUNDING
                verdict = judge_score(ours, paper, rounding, full_score(benchmark))
                entries.append(Entry(label, benchmark.title, ours, paper, verdict, show))
    for columns in TABLES.values():
        for benchmark in columns:
            before = runs.paper.reported(model, benchmark.name)
            after = runs.paper.reported(model + GATED, benchmark.name)
            paper = None if before is None or after is None else round(after - before, 6)
            entries.append(
                difference_entry(
                    f"{model}{GATED} - {model}",
                    benchmark.title,
                    runs.difference(model, EXTENDED, BASELINE, benchmark.name),
                    paper,
                    signed(points if in_points(benchmark) else per_cent),
                    full_score(benchmark),
                )
            )
    notes = (
        "Scores in per cent, MME in points. Paper: v1 Tables 1 to 3 and the camera-ready.",
        UNKEPT,
        verdicts.RULES["score"],
        verdicts.RULES["difference"],
        *_how_asked(runs, model),
        *_unread(runs, model),
        *runs.notes,
    )
    plain = "".join(letter for letter in model.lower() if letter.isalnum())
    name, title = f"paper/scores_{plain}", f"{model}: ours and the paper's"
    return comparison_table(name, title, entries, notes, printed=model in runs.models())


def full_score(benchmark: PaperBenchmark) -> float:
    """What the margins of the verdicts are parts of, in the unit of the benchmark's score."""
    return verdicts.POINTS if in_points(benchmark) else 1.0


def difference_entry(
    row: str,
    quantity: str,
    ours: Measured,
    paper: float | None,
    show: Callable[[float], str],
    full: float = 1.0,
) -> Entry:
    """A difference of two arms, judged by its sign; pairs that were asked otherwise are named in the quantity.

    Args:
        full: the unit of the numbers, as for `verdicts.of_score`.
    """
    verdict = verdicts.of_difference(ours.interval, paper, full=full)
    if ours.value is not None and paper is not None and ours.interval is None and abs(ours.value - paper) < 1e-9:
        verdict = "reproduced"
    return Entry(row, with_left_out(quantity, ours), ours, paper, verdict, show)


def with_left_out(quantity: str, ours: Measured) -> str:
    """The quantity, and how many pairs of runs it leaves out because the two were asked otherwise."""
    if not ours.left_out:
        return quantity
    return f"{quantity} ({ours.left_out} {'pair' if ours.left_out == 1 else 'pairs'} asked otherwise left out)"


def judge_score(ours: Measured, paper: float | None, rounding: float, full: float = 1.0) -> Verdict:
    """Rule "score", and for a score without an interval whether it is the paper's as printed."""
    if ours.value is not None and paper is not None and ours.interval is None:
        return "reproduced" if abs(ours.value - paper) <= rounding + 1e-12 else "missing"
    return verdicts.of_score(ours.value, paper, half_width=ours.half_width, rounding=rounding, full=full)


def cost_entry(
    row: str, quantity: str, ours: Measured, paper: float | None, show: Callable[[float], str], *, judged: bool = True
) -> Entry:
    """A cost; not judged where it was taken on another machine than the paper's."""
    verdict = verdicts.of_cost(ours.value, paper) if judged or ours.value is None else None
    return Entry(row, quantity, ours, paper, verdict, show, sampled=False)


def _row(entry: Entry) -> tuple[Cell, ...]:
    return (
        render.label(entry.row, *entry.ours.runs),
        render.label(entry.quantity),
        number(entry.ours.value, entry.show),
        number(entry.paper, entry.show),
        number(entry.difference, signed(entry.show)),
        entry.bounds(),
        render.label(entry.verdict or ""),
        Cell(str(len(entry.ours.runs)), (" ".join(entry.ours.runs),)),
    )


def _unread(runs: PaperRuns, model: str) -> list[str]:
    """Answers of both arms of each difference that are no evidence of either: guessed, not understood."""
    notes = []
    for benchmark in (benchmark for columns in TABLES.values() for benchmark in columns):
        arms = [runs.of(model, arm) for arm in (BASELINE, EXTENDED)]
        for seed in sorted(arms[0].keys() & arms[1].keys()):
            note = answer_note(arms[0][seed], arms[1][seed], benchmark.name)
            notes += [f"{benchmark.title}, seed {seed}, {BASELINE} and {EXTENDED}:{note}"] if note else []
    return notes


def _how_asked(runs: PaperRuns, model: str) -> list[str]:
    """On which machines the runs were trained, with which prompts and which lmms-eval they were asked."""
    asked = set()
    for arm in (BASELINE, EXTENDED, FAST):
        for run in runs.of(model, arm).values():
            for entry in run.record["evaluations"]:
                if entry["benchmark"] in PAPER_NAMES:
                    version = entry.get("lmms_eval") or entry.get("versions", {}).get("lmms_eval", "unknown")
                    asked.add((str(entry.get("prompts", "task")), str(version)))
    machines = {machine(run) for arm in (BASELINE, EXTENDED, FAST) for run in runs.of(model, arm).values()}
    notes = [f"Trained on {place}." for place in sorted(machines)]
    notes += [f"Asked with the {prompts}'s prompts by lmms-eval {version}." for prompts, version in sorted(asked)]
    if max(len(machines), len(asked)) > 1:
        notes.append("The rows above mix these.")
    return notes


__all__ = [
    "MISSING",
    "Entry",
    "comparison_table",
    "cost_entry",
    "difference_entry",
    "judge_score",
    "model_comparison",
]
