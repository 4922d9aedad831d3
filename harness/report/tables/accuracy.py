"""Accuracy: each ability, the mean, and the paired difference below each pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.analysis.runs import (
    ANSWER_COUNTS,
    Evaluation,
    Pair,
    Run,
    answer_count,
    detectable,
    difference_of_means,
    mcnemar_by_task,
    mean_of_tasks,
    scoring_of,
    shown_scale,
    task_interval,
)
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.common import ARM, INTERVALS, RUN, TRACE, Row, models_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.paper.numbers import Paper
    from harness.analysis.statistics import Interval


def accuracy_table(paper: Paper, pairs: Sequence[Pair], benchmark: str, others: Sequence[Run] = ()) -> Table:
    """Score of each ability and of all after the last step, and the paired difference below each pair.

    Args:
        others: weights that were evaluated without training; shown below the pairs.
    """
    others = [run for run in others if run.last(benchmark)]
    pairs = [pair for pair in pairs if any(run.last(benchmark) for run in pair.runs)]
    tasks: dict[str, dict[str, Any]] = {}
    evaluations = [entry for run in _runs(pairs, others) if (entry := run.last(benchmark))]
    for entry in evaluations:
        tasks |= {task["task"]: task for task in entry["tasks"]}
    points = bool(evaluations) and scoring_of(evaluations[0]).scale == "points"
    mean = Column("mean", ("mean", "mean_low", "mean_high"))
    columns = (RUN, ARM, Column("step", ("step",)), mean, *(_task_column(task) for task in tasks.values()))
    rows: list[Row] = []
    shown: set[str] = set()
    for pair in pairs:
        for run in pair.runs:
            if run.id not in shown:
                rows.append(_accuracy_row(run, benchmark, tuple(tasks), columns))
            shown.add(run.id)
        if pair.baseline and pair.gated:
            rows.append(_difference_row(pair, benchmark, tuple(tasks)))
    rows += [_accuracy_row(run, benchmark, tuple(tasks), columns) for run in others]
    rows += [
        (
            *(render.label(name), render.label("paper"), columns[2].missing()),
            *(render.accuracy(None, scale=scale, value=value), *(c.empty() for c in columns[4:])),
        )
        for name, value, scale in paper.rows_of(models_of(_runs(pairs, others)), benchmark)
    ]
    left_out = [task["ability"] for task in tasks.values() if not task["in_mean"]]
    notes = [TRACE, INTERVALS, *([f"Not in the mean: {', '.join(left_out)}."] if left_out else [])]
    notes += [note for pair in pairs if (note := _mcnemar_note(pair, benchmark))]
    title = f"Score on {benchmark}, points" if points else f"Accuracy on {benchmark}, per cent"
    return Table(f"accuracy_{benchmark}", title, columns, tuple(rows), tuple(notes))


def _runs(pairs: Sequence[Pair], others: Sequence[Run]) -> list[Run]:
    return [*(run for pair in pairs for run in pair.runs), *others]


def _accuracy_row(run: Run, benchmark: str, tasks: Sequence[str], columns: Sequence[Column]) -> Row:
    evaluation = run.last(benchmark)
    head = (render.label(run.id, run.id), render.label(run.arm))
    if evaluation is None:
        return (*head, *(column.missing() for column in columns[2:]))
    items = run.items(evaluation)
    known = {task["task"]: task for task in evaluation["tasks"]}
    scale = shown_scale(evaluation)
    cells = [
        render.accuracy(task_interval(known[name], items), scale=scale, value=known[name]["value"])
        if name in known
        else render.accuracy(None)
        for name in tasks
    ]
    step = Cell(str(evaluation["step"]), (evaluation["step"],))
    return (*head, step, mean_cell(run, evaluation), *cells)


def mean_cell(run: Run, evaluation: Evaluation) -> Cell:
    """The score with its interval; alone where its items are not kept."""
    interval = mean_of_tasks(evaluation, run.items(evaluation))
    return render.accuracy(interval, scale=shown_scale(evaluation), value=evaluation["mean"]["value"])


def _difference_row(pair: Pair, benchmark: str, tasks: Sequence[str]) -> Row:
    assert pair.baseline is not None
    assert pair.gated is not None
    both = (pair.gated.id, pair.baseline.id)
    name = Cell("difference", (" - ".join(both),), runs=both)
    intervals: list[Interval | None] = [difference_of_means(pair, benchmark)]
    intervals += [difference_of_means(pair, benchmark, task=task) for task in tasks]
    last = pair.gated.last(benchmark) or pair.baseline.last(benchmark)
    scale = shown_scale(last) if last else 100.0
    cells = [render.accuracy(entry, scale=scale, signed=True) for entry in intervals]
    return (name, render.label(""), Cell("", ("",)), *cells)


def _mcnemar_note(pair: Pair, benchmark: str) -> str | None:
    """For each ability, how many items only one arm got right, and the test of it; and the answers of both arms that
    are no evidence."""
    results = mcnemar_by_task(pair, benchmark)
    if not results:
        return None
    parts = [f"{name} {test.only_first}:{test.only_second} (p {test.p:.2g})" for name, test in results.items()]
    smallest, last = detectable(pair, benchmark), pair.runs[0].last(benchmark)
    shown = f"{shown_scale(last) * smallest:.1f}" if last and smallest is not None else render.MISSING
    return (
        f"{pair.name}: items that only the baseline : only this run got right, exact McNemar: {', '.join(parts)}. A "
        f"true difference of the mean of {shown} would be found with 80 % power."
        f"{answer_note(pair.baseline, pair.gated, benchmark)}"
    )


def answer_note(first: Run | None, second: Run | None, benchmark: str) -> str:
    """How many answers of each of two runs qualify their scores (`ANSWER_COUNTS`); empty where none does."""
    evaluations = [run.last(benchmark) if run else None for run in (first, second)]
    counts = {kind: [answer_count(evaluation, kind) for evaluation in evaluations] for kind in ANSWER_COUNTS}
    parts = [
        f"{ANSWER_COUNTS[kind]} {' : '.join('not recorded' if n is None else str(n) for n in both)}"
        for kind, both in counts.items()
        if any(both)
    ]
    return f" Answers of the two: {', '.join(parts)}." if parts else ""


def _task_column(task: dict[str, Any]) -> Column:
    ability = task["ability"]
    return Column(f"{ability} ({task['n']})", (ability, f"{ability}_low", f"{ability}_high"))
