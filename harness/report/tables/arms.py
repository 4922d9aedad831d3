"""Baseline and gated runs side by side: the main result, what was computed, and what it took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.analysis.runs import Pair, Run, difference_of_means, scoring_of, shown_scale
from harness.analysis.summary import step_speedup
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.accuracy import mean_cell
from harness.report.tables.common import (
    ARM,
    INTERVALS,
    RUN,
    TRACE,
    attempts_notes,
    comparison_notes,
    gated_only,
    rows_of,
    teacher,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def pairs_table(pairs: Sequence[Pair], benchmarks: Sequence[str]) -> Table:
    """The main result: what each arm computed, what it took, and how well it answers."""
    columns = [
        RUN,
        ARM,
        Column("targets computed", ("targets_computed",)),
        Column("reduction (schedule)", ("targets_reduction", "expected_reduction")),
        Column("train time", ("train_seconds",)),
        Column("teacher time", ("teacher_seconds",)),
        Column("peak memory", ("peak_bytes",)),
    ]
    for name in benchmarks:
        columns.append(
            Column(f"{name} {_unit(pairs, name)}", tuple(f"{name}_mean{end}" for end in ("", "_low", "_high")))
        )
        columns.append(Column("difference", tuple(f"{name}_difference{end}" for end in ("", "_low", "_high"))))

    def row(pair: Pair, run: Run) -> list[Cell]:
        totals = run.totals
        reduction = render.percent(totals["targets_reduction"])
        cells = [
            render.count(totals["counts"]["scored"]),
            gated_only(run, columns[3], render.beside(reduction, render.percent(totals["expected_reduction"]))),
            render.train_time(totals["seconds"]["train"], totals.get("cpu_seconds")),
            teacher(run, "seconds", columns[5]),
            render.memory(totals["peak_bytes"]),
        ]
        for index, name in enumerate(benchmarks):
            cells.append(_mean(run, name, columns[7 + 2 * index]))
            cells.append(_difference(pair, run, name, columns[8 + 2 * index]))
        return cells

    runs = {run.id: run for pair in pairs for run in pair.runs}.values()
    notes = [TRACE, INTERVALS, _MEMORY_NOTE, *comparison_notes(pairs), *attempts_notes(runs)]
    return Table("pairs", "Baseline and ReGATE", tuple(columns), rows_of(pairs, row), tuple(notes))


def tokens_table(pairs: Sequence[Pair]) -> Table:
    """What was computed, by kind, beside the closed form of the schedule."""
    columns = (
        RUN,
        ARM,
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
            gated_only(run, columns[5], render.percent(totals["targets_reduction"])),
            gated_only(run, columns[6], render.percent(totals["expected_reduction"])),
            gated_only(run, columns[7], render.percent(run.record["plan"].get("closed_form"))),
            render.count(counts["valid"]),
            render.count(counts["active"]),
            gated_only(run, columns[10], render.percent(positions)),
        ]

    notes = (
        "Schedule: 1 - mean of p(t) over the run's steps (Eq. 4). Closed form: the same for whole cycles, "
        "(1 - W/T)(1 - F/C)(1 - p). The run differs from the schedule by rounding within each sample and by the "
        "steps' own numbers of targets.",
        "Positions: every position of the decoder but padding (visual, special, prompt, target).",
        TRACE,
    )
    return Table("tokens", "Tokens computed", columns, rows_of(pairs, row), notes)


def time_table(pairs: Sequence[Pair]) -> Table:
    """What it took: clocks, and the step times beside the ideal of the FLOP formula."""
    columns = (
        RUN,
        ARM,
        Column("train", ("train_seconds",)),
        Column("its CPU seconds", ("train_cpu_seconds",)),
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
        dense, sparse, speedup = step["dense_median"], step["sparse_median"], step_speedup(run)
        hours = totals["device_hours"]["train"]
        return [
            render.duration(seconds["train"]),
            render.duration(totals.get("cpu_seconds")),
            render.duration(seconds["data"]),
            render.duration(seconds["io"]),
            _step(dense, step["n_dense"]),
            gated_only(run, columns[7], _step(sparse, step["n_sparse"])),
            gated_only(run, columns[8], render.ratio(None if speedup is None else 1 / speedup)),
            gated_only(run, columns[9], render.ratio(totals["sparse_flops_ratio"])),
            teacher(run, "seconds", columns[10]),
            Cell(f"{hours:.3g}", (hours,)),
            render.duration(seconds["eval"]),
        ]

    notes = (
        "Wall time but for the CPU seconds, which a training on a CPU has and which alone are compared there. data: "
        "the training waits for a batch; writing: checkpoints and loading. Evaluation never counts as training.",
        "Steps: medians of the training clock (number of steps). sparse/dense: of a CPU in CPU seconds. "
        "FLOP ideal: analytic FLOPs of the sparse steps over "
        "those of the same batches with nothing elided.",
        TRACE,
    )
    return Table("time", "Time", columns, rows_of(pairs, row), notes)


_MEMORY_NOTE: Final = "Peak memory of training: allocated on a GPU, or resident in the process on a CPU."


def _mean(run: Run, benchmark: str, column: Column) -> Cell:
    evaluation = run.last(benchmark)
    if evaluation is None:
        return column.missing() if _asked(run, benchmark) else column.empty()
    return mean_cell(run, evaluation)


def _unit(pairs: Sequence[Pair], benchmark: str) -> str:
    evaluations = [entry for pair in pairs for run in pair.runs if (entry := run.last(benchmark))]
    return "points" if evaluations and scoring_of(evaluations[0]).scale == "points" else "mean %"


def _difference(pair: Pair, run: Run, benchmark: str, column: Column) -> Cell:
    """Of a gated run to its baseline; empty for a baseline and where neither arm was asked."""
    if run.gate is None or not _asked(run, benchmark):
        return column.empty()
    last = run.last(benchmark)
    scale = shown_scale(last) if last else 100.0
    return render.accuracy(difference_of_means(pair, benchmark), scale=scale, signed=True)


def _asked(run: Run, benchmark: str) -> bool:
    return benchmark in run.record["recipe"]["evaluate"]["benchmarks"]


def _step(median: float | None, number: int) -> Cell:
    return Cell(f"{render.duration(median).text} ({number})", (median, number))
