"""What stands for several runs of one arm: one definition of each number for tables, reports and the command line.

With one run each of them is that run's own number.
"""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING

from harness.analysis.runs import teacher_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.runs import Run


def train_seconds(runs: Sequence[Run]) -> float:
    """Median wall seconds of the training clock: forward, backward and optimizer step, without waiting for data,
    writing and evaluation. The median, since a machine that was busy for a while changes one run and not the arm."""
    return float(median(run.totals["seconds"]["train"] for run in runs))


def train_device_hours(runs: Sequence[Run]) -> float:
    """Median hours of the training clock times the devices that were held."""
    return float(median(run.totals["device_hours"]["train"] for run in runs))


def teacher_seconds(runs: Sequence[Run]) -> float | None:
    """Mean seconds of the teacher's pass that the runs read, whoever paid for it; None where none read one."""
    seconds = [value for run in runs if (value := teacher_cost(run)["seconds"]) is not None]
    return fmean(seconds) if seconds else None


def step_speedup(run: Run) -> float | None:
    """Median dense over median sparse step of a run; None where it has only one kind."""
    steps = run.totals["step_seconds"]
    dense, sparse = steps["dense_median"], steps["sparse_median"]
    return dense / sparse if dense and sparse else None


def step_speedups(runs: Sequence[Run]) -> float | None:
    """Median of the runs' step speed-ups."""
    speedups = [value for run in runs if (value := step_speedup(run)) is not None]
    return float(median(speedups)) if speedups else None


def targets_computed(runs: Sequence[Run]) -> int:
    """Mean number of targets whose loss was computed (scored)."""
    return round(fmean(run.totals["counts"]["scored"] for run in runs))


def positions_computed(runs: Sequence[Run]) -> int:
    """Mean number of positions that the decoder computed (active)."""
    return round(fmean(run.totals["counts"]["active"] for run in runs))


def targets_reduction(runs: Sequence[Run]) -> float | None:
    """Mean part of the targets seen whose loss was not computed."""
    parts = [value for run in runs if (value := run.totals["targets_reduction"]) is not None]
    return fmean(parts) if parts else None


def positions_reduction(runs: Sequence[Run]) -> float | None:
    """Mean part of the positions but padding that the decoder did not compute."""
    parts = [1 - c["active"] / c["valid"] for run in runs if (c := run.totals["counts"])["valid"]]
    return fmean(parts) if parts else None


__all__ = [
    "positions_computed",
    "positions_reduction",
    "step_speedup",
    "step_speedups",
    "targets_computed",
    "targets_reduction",
    "teacher_seconds",
    "train_device_hours",
    "train_seconds",
]
