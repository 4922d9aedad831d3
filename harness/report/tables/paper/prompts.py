"""Table 6 of the paper, the prompts, beside those of lmms-eval's tasks; and what of the paper does not add up."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Final

from harness.analysis.paper.numbers import MODELS, TABLES, Paper, cell_of, in_points
from harness.common.numbers import percent
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.paper.efficiency import ARMS

if TYPE_CHECKING:
    from harness.report.tables.common import Row

NONE: Final = "none"
LMMS_EVAL: Final = "0.7.3"


def prompts_table(paper: Paper, *, printed: bool) -> Table:
    """What follows the question: the paper's response formats and the fixed words of lmms-eval's tasks."""
    columns = (
        Column("benchmark", ("benchmark",), right=False),
        Column("paper", ("paper",), right=False),
        Column(f"task of lmms-eval {LMMS_EVAL}", ("task",), right=False),
        Column("same words after the question", ("same",), right=False),
    )
    rows = []
    for benchmark in (benchmark for in_table in TABLES.values() for benchmark in in_table):
        words = paper.prompts[cell_of(benchmark).column]
        task = f"{benchmark.lead} ... {benchmark.prompt}" if benchmark.lead else benchmark.prompt
        rows.append(
            (
                Cell(benchmark.title, (benchmark.name,)),
                Cell(words or NONE, (words or "",)),
                Cell(_visible(task), (task,)),
                render.label("no" if benchmark.paper_differs else "yes"),
            )
        )
    notes = (
        "Recipes choose with evaluate.prompts: task or paper. \\n: a line break of the task. Spaces and line breaks "
        "do not count; ... stands for the question and its options.",
        "Where the paper prints none, the words of the task were in its code and not in its settings when the paper "
        "was written (POPE, MLVU), so the paper may have sent them, too.",
    )
    title = "Table 6 of the paper: prompts"
    return Table("paper/table6_prompts", title, columns, tuple(rows), notes, printed=printed)


def inconsistencies_table(paper: Paper, *, printed: bool) -> Table:
    """Numbers of the paper that its other numbers give, computed again."""
    columns = (
        Column("number of the paper", ("number",), right=False),
        Column("printed", ("printed",)),
        Column("from its own numbers", ("recomputed",)),
        Column("agree", ("agree",), right=False),
    )
    rows = [*_reductions(paper), *_ratios(paper), *_hours(paper), *_averages(paper)]
    notes = tuple(f"{text[0].upper()}{text[1:]}." for text in paper.inconsistencies)
    title = "The paper's numbers computed again from its own"
    return Table("paper/inconsistencies", title, columns, tuple(rows), notes, printed=printed)


def _reductions(paper: Paper) -> list[Row]:
    """The reduction of tokens, and the mean part that the fast runs need."""
    printed = {"VideoLLaMA2": (0.4122, 0.4151), "VideoChat2": (0.4351,), "InternVL3.5": (0.4141,)}
    rows = []
    for model, values in printed.items():
        tokens = [_cost(paper, model, arm, "tokens") for arm in ("baseline", "extended")]
        for value in values:
            rows.append(_row(f"{model}: reduction of tokens", value, 1 - tokens[1] / tokens[0], 0.00005))
    fast = mean(
        _cost(paper, model, "fast", "tokens") / _cost(paper, model, "baseline", "tokens") for model in MODELS.values()
    )
    return [*rows, _row("fast runs: part of the baseline's tokens, mean over the models", 0.38, fast, 0.005)]


def _ratios(paper: Paper) -> list[Row]:
    """What the teacher costs, as a part of the baseline's training."""
    printed = {"VideoLLaMA2": 0.016, "VideoChat2": 0.067, "InternVL3.5": 0.026}
    return [
        _row(
            f"{model}: teacher pass / baseline's training",
            value,
            _cost(paper, model, "extended", "teacher_gpu_hours") / _cost(paper, model, "baseline", "train_gpu_hours"),
            0.0005,
        )
        for model, value in printed.items()
    ]


def _hours(paper: Paper) -> list[Row]:
    """v1's wall hours on four GPUs are the camera-ready's GPU-hours."""
    rows: list[Row] = []
    for label, row in paper.costs("table4_efficiency_v1").items():
        printed = paper.costs("table4_efficiency_acl")[label]["train_gpu_hours"]
        cells = (Cell(f"{printed:.1f}", (printed,)), Cell(f"{4 * row['train_hours']:.1f}", (4 * row["train_hours"],)))
        agree = abs(printed - 4 * row["train_hours"]) < 0.2 + 1e-9
        name = render.label(f"{label}: GPU-hours, four times v1's hours")
        rows.append((name, *cells, render.label("yes" if agree else "no")))
    return rows


def _averages(paper: Paper) -> list[Row]:
    """The camera-ready's average accuracy beside the mean of the printed scores in per cent."""
    rows = []
    for model in MODELS.values():
        scores = [
            paper.reported(model, benchmark.name)
            for columns in TABLES.values()
            for benchmark in columns
            if not in_points(benchmark)
        ]
        known = [score for score in scores if score is not None]
        printed = _cost(paper, model, "baseline", "avg_accuracy") / 100
        rows.append(
            _row(f"{model}: mean of {len(known)} printed scores (MME left out)", printed, mean(known), 0.0005)
        )
    return rows


def _cost(paper: Paper, model: str, arm: str, column: str) -> float:
    return float(paper.costs("table4_efficiency_acl")[model + ARMS[arm]][column])


def _row(name: str, printed: float, recomputed: float, rounding: float) -> Row:
    agree = abs(printed - recomputed) <= rounding + 1e-9
    return (
        render.label(name),
        Cell(percent(printed), (printed,)),
        Cell(percent(recomputed), (recomputed,)),
        render.label("yes" if agree else "no"),
    )


def _visible(text: str) -> str:
    return text.replace("\n", "\\n") or NONE


__all__ = ["inconsistencies_table", "prompts_table"]
