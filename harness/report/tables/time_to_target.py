"""Time to target: what each gated run needs to reach its baseline's final accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from harness.analysis.runs import (
    Results,
    asked_alike,
    asked_otherwise,
    scored_units,
    scoring_of,
    shown_scale,
    teacher_cost,
)
from harness.analysis.summary import on_cpu, step_speedup
from harness.analysis.time_to_target import Crossing, time_to_target
from harness.report import table as render
from harness.report.table import Cell, Column, Table
from harness.report.tables.common import ARM, RUN, TRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.analysis.runs import Evaluation, Pair, Run
    from harness.report.tables.common import Row

KINDS: Final = {
    "targets": ("scored", "targets computed to it"),
    "seconds": ("train_seconds", "train time to it"),
    "device_hours": ("train_device_hours", "train device-h to it"),
}
"""Kind -> key of an evaluation's `progress`, and the column's heading."""

NOTES: Final = (
    "Target: the baseline's accuracy after its last step. To it: on the straight line between the evaluated "
    "checkpoints; [low, high]: 95 % over the items, the same ones drawn for both arms and all checkpoints. at most: "
    "the first checkpoint had it already. reached: part of those draws in which the run reaches it at all.",
    "Train time: wall seconds of runs on GPUs; of runs on CPUs their CPU seconds, and nothing where those are not "
    "recorded. Device-hours and the teacher's pass, which the wall alone knows, are compared on GPUs.",
    "Time-to-target speed-up: the baseline's whole training time over the run's time to the target (same accuracy), "
    "without and with the teacher's pass. Step speed-up: dense over sparse step (same work of an optimizer step), "
    "medians of one run. They answer different questions.",
)


def target_table(pairs: Sequence[Pair], benchmarks: Sequence[str]) -> Table | None:
    """One row for each pair and benchmark; None where no pair has both arms' answers."""
    columns = (
        RUN,
        ARM,
        Column("benchmark", ("benchmark",), right=False),
        Column("target", ("target",)),
        *(Column(title, (kind, f"{kind}_low", f"{kind}_high")) for kind, (_, title) in KINDS.items()),
        Column("part of the baseline's targets", ("targets_ratio",)),
        Column("time-to-target speed-up", ("reach_speedup",)),
        Column("with teacher", ("reach_speedup_with_teacher",)),
        Column("step speed-up", ("step_speedup",)),
        Column("reached", ("reached_share",)),
    )
    rows = []
    for pair in pairs:
        for benchmark in benchmarks:
            if pair.baseline and pair.gated and (row := _row(pair.baseline, pair.gated, benchmark)):
                rows.append(row)
    return Table("target", "Time to target", columns, tuple(rows), (*NOTES, TRACE)) if rows else None


def reaches(baseline: Run, run: Run, benchmark: str) -> dict[str, Crossing] | None:
    """Kind -> what `run` needs to reach the baseline's final score, of the kinds in which the two can be compared;
    None where items or evaluations of the same questions are missing."""
    last = baseline.last(benchmark)
    if asked_otherwise(baseline, run, benchmark):
        return None
    curve = [entry for entry in run.evaluations(benchmark) if last and asked_alike(last, entry)]
    if last is None or not curve:
        return None
    target = baseline.items(last)
    known: list[Results] = [scored_units(last, units) for entry in curve if (units := run.items(entry)) is not None]
    if target is None or len(known) < len(curve):
        return None
    keys = {kind: key for kind in KINDS if (key := compared(kind, baseline, run, benchmark))}
    spent = {kind: [float(entry["progress"][key]) for entry in curve] for kind, key in keys.items()}
    return time_to_target(scoring_of(last), spent, known, scored_units(last, target))


def compared(kind: str, baseline: Run, run: Run, benchmark: str) -> str | None:
    """The key of `progress` in which two runs are compared; None where they cannot be. Wall seconds of a CPU tell
    what else its machine did."""
    runs = (baseline, run)
    if kind == "targets" or not any(on_cpu(run) for run in runs):
        return KINDS[kind][0]
    cpu = "train_cpu_seconds"
    evaluations = [*run.evaluations(benchmark), *baseline.evaluations(benchmark)[-1:]]
    known = all(entry["progress"].get(cpu) is not None for entry in evaluations)
    return cpu if kind == "seconds" and known and all(on_cpu(run) for run in runs) else None


def _row(baseline: Run, run: Run, benchmark: str) -> Row | None:
    crossings = reaches(baseline, run, benchmark)
    last = baseline.last(benchmark)
    if crossings is None or last is None:
        return None
    whole = last["progress"]
    teacher = None if on_cpu(run) or on_cpu(baseline) else teacher_cost(run)["seconds"] or 0.0
    key = compared("seconds", baseline, run, benchmark)
    at = crossings["seconds"].at if key else None
    with_teacher = render.ratio(None)
    if key and teacher is not None:
        with_teacher = ratio_cell(whole[key], None if at is None else at + teacher)
    return (
        render.label(run.id, run.id, baseline.id),
        render.label(run.arm),
        render.label(benchmark),
        _target(last),
        *(reach_cell(crossings.get(kind), SHOWN[kind]) for kind in KINDS),
        ratio_cell(crossings["targets"].at, whole["scored"]),
        ratio_cell(whole[key], at) if key else render.ratio(None),
        with_teacher,
        render.ratio(step_speedup(run)),
        render.percent(crossings["targets"].share),
    )


def reach_cell(reach: Crossing | None, show: Callable[[float], Cell]) -> Cell:
    """Value and interval; "at most" where the first checkpoint had it already, missing where nothing is compared."""
    if reach is None:
        return Cell(render.MISSING, (None, None, None))
    cell = render.amount(reach.at, reach.low, reach.high, show)
    return Cell(f"at most {cell.text}", cell.values) if reach.at_first and reach.at is not None else cell


def ratio_cell(value: float | None, divisor: float | None) -> Cell:
    """A ratio; "not reached" where one of the two lies beyond what was measured."""
    if value is None or divisor is None:
        return Cell(render.NOT_REACHED, (math.inf,))
    return render.ratio(value / divisor if divisor else None)


def _target(evaluation: Evaluation) -> Cell:
    value = evaluation["mean"]["value"]
    return Cell(f"{shown_scale(evaluation) * value:.1f}", (value,))


def _hours(value: float) -> Cell:
    return Cell(f"{value:.3g}", (value,))


SHOWN: Final[dict[str, Callable[[float], Cell]]] = {
    "targets": render.large,
    "seconds": render.duration,
    "device_hours": _hours,
}
"""Kind -> how its number is written."""
