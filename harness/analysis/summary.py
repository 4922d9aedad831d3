"""What stands for several runs of one arm: one definition of each number for tables, reports and the command line.

With one run each of them is that run's own number.
"""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING, Final

from harness.analysis.runs import teacher_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.runs import Run

SHARED: Final = 0.1
"""Part of its CPU seconds that a run may have waited for a core and still have had the machine to itself."""


def train_seconds(runs: Sequence[Run]) -> float:
    """Median wall seconds of the training clock: forward, backward and optimizer step, without waiting for data,
    writing and evaluation. The median, since a machine that was busy for a while changes one run and not the arm."""
    return float(median(run.totals["seconds"]["train"] for run in runs))


def on_cpu(run: Run) -> bool:
    """Whether the run trained without a GPU."""
    return not run.record["provenance"]["hardware"].get("gpus")


def train_cpu_seconds(runs: Sequence[Run]) -> float | None:
    """Median CPU seconds of the training clock; None where a run's are not recorded."""
    seconds = [run.totals.get("cpu_seconds") for run in runs]
    known = [value for value in seconds if value is not None]
    return float(median(known)) if known and len(known) == len(seconds) else None


def shared_machine(run: Run) -> bool | None:
    """Whether a run on a CPU had to wait for one: its threads were runnable without a core for more than a tenth of
    the time that they computed. False on a GPU; None where the record does not say."""
    if not on_cpu(run):
        return False
    cpu, waited = run.totals.get("cpu_seconds"), run.totals.get("waited_seconds")
    return None if cpu is None or waited is None else bool(waited > SHARED * cpu)


def time_is_comparable(runs: Sequence[Run]) -> bool:
    """Whether the times of these runs may be set side by side: on GPUs by the wall, on CPUs in CPU seconds where
    they are recorded and no run shared its machine."""
    return all(shared_machine(run) is False for run in runs) and len({on_cpu(run) for run in runs}) == 1


def train_device_hours(runs: Sequence[Run]) -> float:
    """Median hours of the training clock times the devices that were held."""
    return float(median(run.totals["device_hours"]["train"] for run in runs))


def teacher_seconds(runs: Sequence[Run]) -> float | None:
    """Mean seconds of the teacher's pass that the runs read, whoever paid for it; None where none read one."""
    seconds = [value for run in runs if (value := teacher_cost(run)["seconds"]) is not None]
    return fmean(seconds) if seconds else None


def step_speedup(run: Run) -> float | None:
    """Median dense over median sparse step of a run, in CPU seconds where a CPU trained and they are recorded; None
    where it has only one kind."""
    steps = run.totals["step_seconds"]
    kind = "cpu_" if steps.get("cpu_dense_median") is not None else ""
    dense, sparse = steps[f"{kind}dense_median"], steps[f"{kind}sparse_median"]
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


def flops_reduction(runs: Sequence[Run]) -> float | None:
    """Mean part of the FLOPs of the same steps with nothing elided that was not computed, by the analytic account."""
    parts = [1 - t["flops"] / t["flops_dense"] for run in runs if (t := run.totals)["flops_dense"]]
    return fmean(parts) if parts else None


__all__ = [
    "SHARED",
    "flops_reduction",
    "on_cpu",
    "positions_computed",
    "positions_reduction",
    "shared_machine",
    "step_speedup",
    "step_speedups",
    "targets_computed",
    "targets_reduction",
    "teacher_seconds",
    "time_is_comparable",
    "train_cpu_seconds",
    "train_device_hours",
    "train_seconds",
]
