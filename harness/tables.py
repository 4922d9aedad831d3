"""Tables: pure functions of the records and item files below a results folder.

A table is one builder function here; what a number means stands in its column's heading or in the notes below it.
The paper's numbers appear where one of our runs has the same model, always labelled "paper".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness import paper_numbers, render
from harness.errors import DataError
from harness.pairs import (
    Pair,
    Run,
    benchmarks_of,
    difference_of_means,
    differences,
    load_runs,
    mcnemar_by_task,
    mean_of_tasks,
    pair_runs,
    task_interval,
    teacher_cost,
)
from harness.record import write_atomic
from harness.render import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from harness.stats import Interval

Row = tuple[Cell, ...]

_RUN: Final = Column("run", ("run",), right=False)
_ARM: Final = Column("arm", ("arm",), right=False)
_TRACE: Final = (
    "A row is made from results/runs/<run>/record.json of the run that it names, a difference from both runs of "
    "its pair."
)
_INTERVALS: Final = (
    "[low, high]: 95 % over the items, with the trained model fixed; the spread between seeds is not in it. "
    "One ability: Wilson. Mean: bootstrap within each ability. Difference: paired by item, in points."
)


def build_tables(results_dir: Path) -> list[Path]:
    """Write every table to results_dir/tables as Markdown and CSV; the files written.

    Raises:
        DataError: there is no record, or one is damaged.
        StaleError: a record or its items are not what they say they are.
    """
    written = []
    for table in make_tables(results_dir):
        for suffix, text in (("md", render.to_markdown(table)), ("csv", render.to_csv(table))):
            path = results_dir / "tables" / f"{table.name}.{suffix}"
            write_atomic(path, text)
            written.append(path)
    return written


def tables_markdown(results_dir: Path) -> str:
    """All tables as one Markdown text. Errors as in `build_tables`."""
    return "\n".join(render.to_markdown(table) for table in make_tables(results_dir))


def make_tables(results_dir: Path) -> list[Table]:
    """All tables, in the order they are shown. Errors as in `build_tables`."""
    runs = load_runs(results_dir)
    if not runs:
        raise DataError(f"no finished run below {results_dir / 'runs'}", hint="start one: harness run RECIPE.yaml")
    pairs = pair_runs(runs)
    benchmarks = benchmarks_of(runs)
    tables = [pairs_table(pairs, benchmarks), tokens_table(pairs), time_table(pairs)]
    tables += [accuracy_table(pairs, benchmark) for benchmark in benchmarks]
    efficiency = paper_table(pairs, benchmarks)
    return [*tables, *([efficiency] if efficiency else [])]


def pairs_table(pairs: Sequence[Pair], benchmarks: Sequence[str]) -> Table:
    """The main result: what each arm computed, what it took, and how well it answers."""
    columns = [
        _RUN,
        _ARM,
        Column("targets computed", ("targets_computed",)),
        Column("reduction (schedule)", ("targets_reduction", "expected_reduction")),
        Column("train time", ("train_seconds",)),
        Column("teacher time", ("teacher_seconds",)),
        Column("peak memory", ("peak_bytes",)),
    ]
    for name in benchmarks:
        columns.append(Column(f"{name} mean %", tuple(f"{name}_mean{end}" for end in ("", "_low", "_high"))))
        columns.append(Column("difference", tuple(f"{name}_difference{end}" for end in ("", "_low", "_high"))))

    def row(pair: Pair, run: Run) -> list[Cell]:
        totals = run.totals
        reduction = render.percent(totals["targets_reduction"])
        cells = [
            render.count(totals["counts"]["scored"]),
            _gated_only(run, columns[3], render.beside(reduction, render.percent(totals["expected_reduction"]))),
            render.duration(totals["seconds"]["train"]),
            _teacher(run, "seconds", columns[5]),
            render.memory(totals["peak_bytes"]),
        ]
        for index, name in enumerate(benchmarks):
            cells.append(_mean(run, name, columns[7 + 2 * index]))
            cells.append(_difference(pair, run, name, columns[8 + 2 * index]))
        return cells

    notes = [_TRACE, _INTERVALS, _MEMORY_NOTE, *_comparison_notes(pairs)]
    return Table("pairs", "Baseline and ReGATE", tuple(columns), _rows(pairs, row), tuple(notes))


def tokens_table(pairs: Sequence[Pair]) -> Table:
    """What was computed, by kind, beside the closed form of the schedule."""
    columns = (
        _RUN,
        _ARM,
        Column("steps", ("steps",)),
        Column("targets seen", ("targets_seen",)),
        Column("targets computed", ("targets_computed",)),
        Column("reduction", ("targets_reduction",)),
        Column("schedule", ("expected_reduction",)),
        Column("closed form", ("closed_form",)),
        Column("positions seen", ("positions_seen",)),
        Column("positions computed", ("positions_computed",)),
        Column("reduction", ("positions_reduction",)),
    )

    def row(_pair: Pair, run: Run) -> list[Cell]:
        totals, counts = run.totals, run.totals["counts"]
        positions = 1 - counts["active"] / counts["valid"] if counts["valid"] else None
        return [
            render.count(totals["steps"]),
            render.count(counts["target"]),
            render.count(counts["scored"]),
            _gated_only(run, columns[5], render.percent(totals["targets_reduction"])),
            _gated_only(run, columns[6], render.percent(totals["expected_reduction"])),
            _gated_only(run, columns[7], render.percent(run.record["plan"].get("closed_form"))),
            render.count(counts["valid"]),
            render.count(counts["active"]),
            _gated_only(run, columns[10], render.percent(positions)),
        ]

    notes = (
        "Schedule: 1 - mean of p(t) over the run's steps (Eq. 4). Closed form: the same for whole cycles, "
        "(1 - W/T)(1 - F/C)(1 - p). The run differs from the schedule by rounding within each sample and by the "
        "steps' own numbers of targets.",
        "Positions: every position of the decoder but padding (visual, special, prompt, target).",
        _TRACE,
    )
    return Table("tokens", "Tokens computed", columns, _rows(pairs, row), notes)


def time_table(pairs: Sequence[Pair]) -> Table:
    """What it took: clocks, and the step times beside the ideal of the FLOP formula."""
    columns = (
        _RUN,
        _ARM,
        Column("train", ("train_seconds",)),
        Column("data", ("data_seconds",)),
        Column("writing", ("io_seconds",)),
        Column("dense step", ("dense_step_seconds", "dense_steps")),
        Column("sparse step", ("sparse_step_seconds", "sparse_steps")),
        Column("sparse/dense", ("sparse_over_dense",)),
        Column("FLOP ideal", ("flop_ideal",)),
        Column("teacher time", ("teacher_seconds",)),
        Column("train device-h", ("train_device_hours",)),
        Column("evaluation", ("eval_seconds",)),
    )

    def row(_pair: Pair, run: Run) -> list[Cell]:
        totals = run.totals
        seconds, step = totals["seconds"], totals["step_seconds"]
        dense, sparse = step["dense_median"], step["sparse_median"]
        hours = totals["device_hours"]["train"]
        return [
            render.duration(seconds["train"]),
            render.duration(seconds["data"]),
            render.duration(seconds["io"]),
            _step(dense, step["n_dense"]),
            _gated_only(run, columns[6], _step(sparse, step["n_sparse"])),
            _gated_only(run, columns[7], render.ratio(sparse / dense if sparse and dense else None)),
            _gated_only(run, columns[8], render.ratio(totals["sparse_flops_ratio"])),
            _teacher(run, "seconds", columns[9]),
            Cell(f"{hours:.3g}", (hours,)),
            render.duration(seconds["eval"]),
        ]

    notes = (
        "Wall time. data: the training waits for a batch; writing: checkpoints and loading. Evaluation never counts "
        "as training.",
        "Steps: medians of the training clock (number of steps). FLOP ideal: analytic FLOPs of the sparse steps over "
        "those of the same batches with nothing elided.",
        _TRACE,
    )
    return Table("time", "Time", columns, _rows(pairs, row), notes)


def accuracy_table(pairs: Sequence[Pair], benchmark: str) -> Table:
    """Accuracy of each ability and their mean after the last step, and the paired difference below each pair."""
    pairs = [pair for pair in pairs if any(run.last(benchmark) for run in pair.runs)]
    tasks: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        for run in pair.runs:
            tasks |= {task["task"]: task for task in (run.last(benchmark) or {"tasks": ()})["tasks"]}
    mean = Column("mean", ("mean", "mean_low", "mean_high"))
    columns = (_RUN, _ARM, Column("step", ("step",)), mean, *(_task_column(task) for task in tasks.values()))
    rows: list[Row] = []
    shown: set[str] = set()
    for pair in pairs:
        for run in pair.runs:
            if run.id not in shown:
                rows.append(_accuracy_row(run, benchmark, tuple(tasks), columns))
            shown.add(run.id)
        if pair.baseline and pair.gated:
            rows.append(_difference_row(pair, benchmark, tuple(tasks)))
    rows += [
        (render.label(name), render.label("paper"), columns[2].missing(), cell, *(c.empty() for c in columns[4:]))
        for name, cell in paper_numbers.benchmark_rows(_models(pairs), benchmark)
    ]
    left_out = [task["ability"] for task in tasks.values() if not task["in_mean"]]
    notes = [_TRACE, _INTERVALS, *([f"Not in the mean: {', '.join(left_out)}."] if left_out else [])]
    notes += [note for pair in pairs if (note := _mcnemar_note(pair, benchmark))]
    title = f"Accuracy on {benchmark}, per cent"
    return Table(f"accuracy_{benchmark}", title, columns, tuple(rows), tuple(notes))


def paper_table(pairs: Sequence[Pair], benchmarks: Sequence[str]) -> Table | None:
    """The paper's efficiency rows beside our runs of the same model; None where no run has a model of the paper."""
    models = _models(pairs)
    rows = paper_numbers.efficiency_rows(models)
    if not rows:
        return None
    columns = (
        _RUN,
        _ARM,
        Column("targets computed", ("targets_computed",)),
        Column("reduction", ("targets_reduction",)),
        Column("train GPU-h", ("train_device_hours",)),
        Column("teacher GPU-h", ("teacher_device_hours",)),
        Column("memory GB a GPU", ("memory_gb",)),
        Column("mean accuracy %", ("accuracy",)),
    )

    def row(_pair: Pair, run: Run) -> list[Cell]:
        totals = run.totals
        peak = totals["peak_bytes"]
        hours = totals["device_hours"]["train"]
        means = [mean_of_tasks(entry, run.items(entry)) for name in benchmarks if (entry := run.last(name))]
        mean = means[0] if len(means) == 1 else None
        return [
            render.count(totals["counts"]["scored"]),
            _gated_only(run, columns[3], render.percent(totals["targets_reduction"])),
            Cell(f"{hours:.3g}", (hours,)),
            _teacher(run, "device_hours", columns[5]),
            Cell(f"{peak / 1e9:.1f}", (peak / 1e9,)) if peak else columns[6].missing(),
            Cell(f"{100 * mean.value:.1f}", (mean.value,)) if mean else columns[7].missing(),
        ]

    ours = [pair for pair in pairs if _models([pair]) & paper_numbers.MODELS.keys()]
    notes = (
        "paper: numbers as printed (v1 Table 4 and the camera-ready's efficiency table). Its unit is called tokens "
        "without saying which are counted; its memory is an average, ours a peak; its accuracy is the mean of its "
        "own benchmarks.",
        _TRACE,
    )
    return Table("paper_efficiency", "Beside the paper", columns, (*_rows(ours, row), *rows), notes)


_MEMORY_NOTE: Final = "Peak memory of training: allocated on a GPU, or resident in the process on a CPU."


def _rows(pairs: Iterable[Pair], cells: Callable[[Pair, Run], list[Cell]]) -> tuple[Row, ...]:
    """One row a run, arms of a pair together, a baseline that is in several pairs once."""
    rows: list[Row] = []
    shown: set[str] = set()
    for pair in pairs:
        for run in pair.runs:
            if run.id not in shown:
                rows.append((render.label(run.id), render.label(run.arm), *cells(pair, run)))
            shown.add(run.id)
    return tuple(rows)


def _accuracy_row(run: Run, benchmark: str, tasks: Sequence[str], columns: Sequence[Column]) -> Row:
    evaluation = run.last(benchmark)
    head = (render.label(run.id), render.label(run.arm))
    if evaluation is None:
        return (*head, *(column.missing() for column in columns[2:]))
    items = run.items(evaluation)
    known = {task["task"]: task for task in evaluation["tasks"]}
    found = [render.accuracy(task_interval(known[name], items) if name in known else None) for name in tasks]
    step = Cell(str(evaluation["step"]), (evaluation["step"],))
    return (*head, step, render.accuracy(mean_of_tasks(evaluation, items)), *found)


def _difference_row(pair: Pair, benchmark: str, tasks: Sequence[str]) -> Row:
    assert pair.baseline is not None
    assert pair.gated is not None
    name = Cell("difference", (f"{pair.gated.id} - {pair.baseline.id}",))
    intervals: list[Interval | None] = [difference_of_means(pair, benchmark)]
    intervals += [difference_of_means(pair, benchmark, task=task) for task in tasks]
    return (name, render.label(""), Cell("", ("",)), *(render.accuracy(entry, signed=True) for entry in intervals))


def _mcnemar_note(pair: Pair, benchmark: str) -> str | None:
    """For each ability, how many items only one arm got right, and the exact test of it."""
    results = mcnemar_by_task(pair, benchmark)
    if not results:
        return None
    parts = [f"{name} {test.only_first}:{test.only_second} (p {test.p:.2g})" for name, test in results.items()]
    return f"{pair.name}: items that only the baseline : only this run got right, exact McNemar: {', '.join(parts)}."


def _task_column(task: dict[str, Any]) -> Column:
    ability = task["ability"]
    return Column(f"{ability} ({task['n']})", (ability, f"{ability}_low", f"{ability}_high"))


def _mean(run: Run, benchmark: str, column: Column) -> Cell:
    evaluation = run.last(benchmark)
    if evaluation is None:
        return column.missing() if _asked(run, benchmark) else column.empty()
    return render.accuracy(mean_of_tasks(evaluation, run.items(evaluation)))


def _difference(pair: Pair, run: Run, benchmark: str, column: Column) -> Cell:
    """Of a gated run to its baseline; empty for a baseline and where neither arm was asked."""
    if run.gate is None or not _asked(run, benchmark):
        return column.empty()
    return render.accuracy(difference_of_means(pair, benchmark), signed=True)


def _asked(run: Run, benchmark: str) -> bool:
    return benchmark in run.record["recipe"]["evaluate"]["benchmarks"]


def _gated_only(run: Run, column: Column, cell: Cell) -> Cell:
    return column.empty() if run.gate is None else cell


def _teacher(run: Run, what: str, column: Column) -> Cell:
    """The reference pass; empty for a run that has none."""
    if run.record["reference"] is None:
        return column.empty()
    cost = teacher_cost(run)[what]
    if what == "seconds":
        return render.duration(cost)
    return column.missing() if cost is None else Cell(f"{cost:.3g}", (cost,))


def _step(median: float | None, number: int) -> Cell:
    return Cell(f"{render.duration(median).text} ({number})", (median, number))


def _models(pairs: Iterable[Pair]) -> set[str]:
    return {run.record["recipe"]["model"]["adapter"] for pair in pairs for run in pair.runs}


def _comparison_notes(pairs: Iterable[Pair]) -> list[str]:
    """What makes a pair less than a clean comparison, and pairs that are not whole."""
    notes = []
    for pair in pairs:
        found = differences(pair)
        if found:
            notes.append(f"{pair.name}: its two arms also differ in {', '.join(found)}.")
        if pair.baseline is None:
            notes.append(f"{pair.name}: its baseline has no record; differences are missing.")
        if pair.gated is None:
            notes.append(f"{pair.name}: no gated run of this recipe has a record.")
    return notes
