"""The paper's efficiency tables in the paper's own shape: a row an arm, the paper's numbers above ours.

The judged tables (`costs`) hold the same numbers one a row, each with its verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.analysis.paper.numbers import GATED, MODELS
from harness.analysis.paper.runs import (
    BASELINE,
    EXTENDED,
    FAST,
    Measured,
    PaperRuns,
    device_hours,
    memory_gb,
    targets,
    teacher_hours,
    wall_hours,
)
from harness.report import table as render
from harness.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from harness.analysis.runs import Run
    from harness.report.tables.common import Row

ARMS: Final = {BASELINE: "", EXTENDED: f"{GATED}-extended", FAST: f"{GATED}-fast"}
"""Arm -> what follows the model's name in the tables of efficiency."""
_HEAD: Final = (
    Column("model", ("model",), right=False),
    Column("numbers of", ("source",), right=False),
    Column("targets computed (paper: tokens)", ("tokens",)),
)
_NOTES: Final = (
    "The paper says tokens without saying which are counted; ours are targets computed.",
    "[low, high]: 95 %, over the items for one run and over the seeds for several.",
)


def efficiency_v1_table(runs: PaperRuns) -> Table:
    """v1 Table 4: tokens, hours of wall time, MVBench."""
    columns = (
        *_HEAD,
        Column("train hours (wall)", ("train_hours",)),
        Column("MVBench %", ("mvbench", "mvbench_low", "mvbench_high")),
    )
    printed = runs.paper.costs("table4_efficiency_v1")
    rows: list[Row] = []
    for model, arm, label in _arms(("VideoLLaMA2", "VideoChat2")):
        row = printed[label]
        paper = render.accuracy(None, value=row["MVBench"] / 100)
        rows.append((*_paper_head(label, row), _hours(row["train_hours"]), paper))
        score = runs.score(model, arm, "mvbench")
        ours = render.accuracy(score.interval, value=score.value)
        rows.append((*_our_head(runs, model, arm, label), _hours(_cost(runs, model, arm, wall_hours)), ours))
    title = "Table 4 of the paper (v1): efficiency"
    return _table("paper/table4_efficiency_v1", title, columns, rows, runs, ())


def efficiency_acl_table(runs: PaperRuns) -> Table:
    """The camera-ready's efficiency table: GPU-hours, teacher, memory, average accuracy."""
    columns = (
        *_HEAD,
        Column("teacher GPU-hours", ("teacher_gpu_hours",)),
        Column("train GPU-hours", ("train_gpu_hours",)),
        Column("memory GB a GPU", ("mem_gb_per_gpu",)),
        Column("average accuracy %", ("avg_accuracy", "avg_accuracy_low", "avg_accuracy_high")),
    )
    printed = runs.paper.costs("table4_efficiency_acl")
    rows: list[Row] = []
    for model, arm, label in _arms(MODELS.values()):
        row = printed[label]
        teacher = Cell("", ("",)) if arm == BASELINE else None
        paper = render.accuracy(None, value=row["avg_accuracy"] / 100)
        costs = (_hours(row["train_gpu_hours"]), _hours(row["avg_mem_gb_per_gpu"]))
        rows.append((*_paper_head(label, row), teacher or _hours(row["teacher_gpu_hours"]), *costs, paper))
        average = runs.average(model, arm)
        ours = render.accuracy(average.interval, value=average.value)
        costs = (_hours(_cost(runs, model, arm, device_hours)), _hours(_cost(runs, model, arm, memory_gb)))
        head = _our_head(runs, model, arm, label)
        rows.append((*head, teacher or _hours(_cost(runs, model, arm, teacher_hours)), *costs, ours))
    notes = ("Memory: the paper's is an average, ours a peak. Average accuracy: see the judged table.",)
    title = "Efficiency table of the camera-ready"
    return _table("paper/table4_efficiency_acl", title, columns, rows, runs, notes)


def _arms(models: Iterable[str]) -> list[tuple[str, str, str]]:
    """Model, arm and the paper's label, in the paper's order."""
    return [(model, arm, model + end) for model in models for arm, end in ARMS.items()]


def _paper_head(label: str, row: Mapping[str, Any]) -> Row:
    return (render.label(label), render.label("paper"), render.large(row["tokens"]))


def _our_head(runs: PaperRuns, model: str, arm: str, label: str) -> Row:
    ids = (run.id for run in runs.of(model, arm).values())
    return (render.label(label, *ids), render.label("ours"), render.large(_cost(runs, model, arm, targets)))


def _cost(runs: PaperRuns, model: str, arm: str, number: Callable[[Run], float | None]) -> float | None:
    measured: Measured = runs.cost(model, arm, number)
    return measured.value


def _hours(value: float | None) -> Cell:
    """Hours, or gigabytes, with the paper's one decimal."""
    return Cell(render.MISSING, (None,)) if value is None else Cell(f"{value:.1f}", (value,))


def _table(
    name: str,
    title: str,
    columns: tuple[Column, ...],
    rows: list[Row],
    runs: PaperRuns,
    notes: tuple[str, ...],
) -> Table:
    judged = f"Each number with its verdict: {name}_judged."
    whole = (*_NOTES, *notes, judged, *runs.notes)
    return Table(name, title, columns, tuple(rows), whole, printed=bool(runs.models()))


__all__ = ["ARMS", "efficiency_acl_table", "efficiency_v1_table"]
