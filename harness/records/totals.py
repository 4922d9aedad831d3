"""Sums over a ledger: what a run computed and what it took. Pure functions of its events.

A killed and resumed run did some steps twice. The totals are those of the run that counts; what was done again is
kept beside them as `repeated`, so that both together are all the time the ledger saw.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.common.files import problems_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

Event = dict[str, Any]

COUNTS: Final = ("positions", "valid", "visual", "special", "prompt", "target", "active", "scored")
PHASES: Final = ("data", "reference", "train", "eval", "io", "prepare")
_STEP: Final[dict[str, Any]] = {
    "counts": dict.fromkeys(COUNTS, int),
    "seconds": {"train": int | float},
    "epoch": int,
    "loss": int | float,
    "keep_ratio": int | float,
    "devices": int,
    "flops": int | float,
    "flops_dense": int | float,
}
"""What a step must say to be summed."""


@dataclass(frozen=True, slots=True)
class Split:
    """A ledger's timed events: those that count, and those that a later attempt did again."""

    steps: tuple[Event, ...]
    stages: tuple[Event, ...]
    repeated: tuple[Event, ...]
    attempts: int


def split(events: Iterable[Event]) -> Split:
    """Apply the ledger's rule: a `start` at step s supersedes every step from s on, every checkpoint after s and
    the loading of the attempts before it."""
    steps: list[Event] = []
    stages: list[Event] = []
    repeated: list[Event] = []
    attempts = 0
    for event in events:
        if event["event"] == "start":
            attempts += 1
            first = event["step"]
            repeated += [step for step in steps if step["step"] >= first]
            steps = [step for step in steps if step["step"] < first]
            repeated += [stage for stage in stages if _superseded(stage, first)]
            stages = [stage for stage in stages if not _superseded(stage, first)]
        elif event["event"] == "step":
            steps.append(event)
        elif event["event"] == "stage":
            stages.append(event)
    return Split(tuple(steps), tuple(stages), tuple(repeated), attempts)


def check_steps(steps: Sequence[Event], *, expected: int, path: Path) -> None:
    """Every step once, in order, with counts that add up.

    Raises:
        DataError: the training is not finished, or the ledger is damaged.
    """
    numbers = [step["step"] for step in steps]
    if any(b != a + 1 for a, b in pairwise(numbers)) or (numbers and numbers[0] != 0):
        raise DataError(f"{path}: steps are missing or out of order", hint="the ledger was edited or damaged")
    if len(steps) != expected:
        raise DataError(
            f"{path}: holds {len(steps)} of {expected} steps", hint="finish the training first: harness train"
        )
    for step in steps:
        problems = problems_of(step, _STEP, "")
        if problems:
            message = f"{path}: step {step['step']} is not whole: {'; '.join(problems)}"
            raise DataError(message, hint="the ledger was edited or damaged")
        counts = step["counts"]
        kinds = counts["visual"] + counts["special"] + counts["prompt"] + counts["target"]
        ordered = counts["scored"] <= counts["target"] <= counts["valid"] <= counts["positions"]
        if kinds != counts["valid"] or not ordered or counts["active"] > counts["valid"]:
            raise DataError(f"{path}: the counts of step {step['step']} do not add up: {counts}")


def totals(ledger: Split, *, global_batch: int, expected_reduction: float | None) -> dict[str, Any]:
    """The `totals` of a record. Seconds are wall time, flops are analytic, bytes are those of the largest step.

    `scheduled_reduction` weighs the schedule by each step's own number of targets, as the run does, where
    `expected_reduction` (the closed form of the plan) weighs every step alike: between it and
    `targets_reduction` stands rounding alone.
    """
    steps = ledger.steps
    counts = {name: sum(step["counts"][name] for step in steps) for name in COUNTS}
    seconds = _seconds((*steps, *ledger.stages))
    repeated = _seconds(ledger.repeated)
    peaks = [step["peak_bytes"] for step in steps if step.get("peak_bytes")]
    return {
        "steps": len(steps),
        "samples": len(steps) * global_batch,
        "failed_samples": sum(len(step.get("failed", ())) for step in steps),
        "truncated": {
            part: sum(step.get("truncated", {}).get(part, 0) for step in steps) for part in ("samples", "targets")
        },
        "unshuffled_samples": sum(step.get("unshuffled", 0) for step in steps),
        "tower_kept_samples": sum(step.get("tower_kept", 0) for step in steps),
        "skipped_steps": sum(bool(step.get("skipped")) for step in steps),
        "epochs_begun": 1 + max((step["epoch"] for step in steps), default=-1),
        "counts": counts,
        "targets_reduction": _reduction(counts["scored"], counts["target"]),
        "expected_reduction": expected_reduction,
        "scheduled_reduction": _reduction(
            sum(step["counts"]["target"] * step["keep_ratio"] for step in steps), counts["target"]
        ),
        "seconds": seconds,
        "repeated": {"steps": sum(e["event"] == "step" for e in ledger.repeated), "seconds": repeated},
        "wall_seconds": sum(seconds.values()) + sum(repeated.values()),
        "devices": max((step["devices"] for step in steps), default=1),
        "device_hours": _device_hours((*steps, *ledger.stages)),
        "flops": sum(step["flops"] for step in steps),
        "flops_dense": sum(step["flops_dense"] for step in steps),
        "peak_bytes": max(peaks, default=None),
        "step_seconds": step_seconds(steps),
        "cpu_seconds": _cpu_seconds(steps, "seconds"),
        "waited_seconds": _cpu_seconds(steps, "waited"),
        "sparse_flops_ratio": sparse_flops_ratio(steps),
        "attempts": ledger.attempts,
    }


def step_seconds(steps: Sequence[Event]) -> dict[str, Any]:
    """Median training seconds of dense and of sparse steps (waiting for data and writing left out), by the wall and,
    where a CPU trained, in CPU seconds."""
    dense = [step for step in steps if not _is_sparse(step)]
    sparse = [step for step in steps if _is_sparse(step)]
    cpu = all("cpu" in step for step in steps)
    return {
        "dense_median": median(step["seconds"]["train"] for step in dense) if dense else None,
        "sparse_median": median(step["seconds"]["train"] for step in sparse) if sparse else None,
        "cpu_dense_median": median(step["cpu"]["seconds"] for step in dense) if dense and cpu else None,
        "cpu_sparse_median": median(step["cpu"]["seconds"] for step in sparse) if sparse and cpu else None,
        "n_dense": len(dense),
        "n_sparse": len(sparse),
    }


def _is_sparse(step: Event) -> bool:
    """Of targets, or, as the step says then, of visual positions alone."""
    return bool(step.get("sparse", step["keep_ratio"] < 1.0))


def _cpu_seconds(steps: Sequence[Event], key: str) -> float | None:
    """The sum of one of the CPU times of all steps; None where a step has none."""
    values = [step.get("cpu", {}).get(key) for step in steps]
    known = [value for value in values if value is not None]
    return sum(known) if steps and len(known) == len(values) else None


def sparse_flops_ratio(steps: Sequence[Event]) -> float | None:
    """FLOPs of the sparse steps over those of the same batches with nothing elided: the ideal that the ratio of
    step times is read against. None without sparse steps."""
    sparse = [step for step in steps if _is_sparse(step)]
    dense_flops = sum(step["flops_dense"] for step in sparse)
    return sum(step["flops"] for step in sparse) / dense_flops if dense_flops else None


def progress_at(steps: Sequence[Event], done: int, *, global_batch: int) -> dict[str, Any]:
    """What had been computed after the first `done` steps; the x axes of accuracy curves."""
    before = [step for step in steps if step["step"] < done]
    return {
        "samples": len(before) * global_batch,
        **{name: sum(step["counts"][name] for step in before) for name in ("target", "scored", "valid", "active")},
        "flops": sum(step["flops"] for step in before),
        "train_seconds": sum(step["seconds"].get("train", 0.0) for step in before),
        "train_cpu_seconds": _cpu_seconds(before, "seconds"),
        "train_device_hours": sum(step["seconds"].get("train", 0.0) * step["devices"] for step in before) / 3600,
    }


def _superseded(stage: Event, first: int) -> bool:
    return bool(stage["stage"] == "load" or (stage["stage"] == "checkpoint" and stage.get("step", 0) > first))


def _seconds(events: Iterable[Event]) -> dict[str, float]:
    """Seconds by phase; the known phases are always there, a phase of a later version is added."""
    sums: dict[str, float] = defaultdict(float, dict.fromkeys(PHASES, 0.0))
    for event in events:
        for phase, value in event.get("seconds", {}).items():
            sums[phase] += value
    return dict(sums)


def _device_hours(events: Iterable[Event]) -> dict[str, float]:
    """Hours by phase times the devices that were held; a stage that names none held one."""
    hours: dict[str, float] = defaultdict(float, dict.fromkeys(PHASES, 0.0))
    for event in events:
        for phase, value in event.get("seconds", {}).items():
            hours[phase] += value * event.get("devices", 1) / 3600
    return {**hours, "total": sum(hours.values())}


def _reduction(part: float, whole: int) -> float | None:
    return 1 - part / whole if whole else None


__all__ = [
    "COUNTS",
    "PHASES",
    "Split",
    "check_steps",
    "progress_at",
    "sparse_flops_ratio",
    "split",
    "step_seconds",
    "totals",
]
