"""What of a run is a metric for a tracking server: names, steps and times of numbers. Pure, and free of mlflow.

The time of a number is that of its ledger line, never the moment of sending: sending the same line twice gives the
same row, which a store keeps once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STEPS_DONE: Final = "steps_done"
"""Number of steps that the store holds, kept as a metric so that it is committed together with them."""
_NOT_ALLOWED: Final = re.compile(r"[^\w. /:-]", re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """One number. `milliseconds` since 1970, UTC."""

    key: str
    value: float
    milliseconds: int
    step: int


def milliseconds(time: str) -> int:
    """Of an ISO 8601 time with its zone."""
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def name(text: str) -> str:
    """A metric's name with what stores do not allow replaced."""
    return _NOT_ALLOWED.sub("_", text)


def step_rows(steps: Sequence[Mapping[str, Any]]) -> Iterator[list[Row]]:
    """The rows of each step, in order: loss and schedule, tokens by kind, clocks, and sums over the steps so far.

    Numbers that are not finite are left out: a store would turn infinity into the largest float. A gradient norm
    that a float16 step did not have is null in the ledger and left out, too.
    """
    hours = accumulate(step["seconds"].get("train", 0.0) * step["devices"] / 3600 for step in steps)
    scored = accumulate(step["counts"]["scored"] for step in steps)
    active = accumulate(step["counts"]["active"] for step in steps)
    flops = accumulate(step["flops"] for step in steps)
    for step, *sums in zip(steps, hours, scored, active, flops, strict=True):
        values = {key: step.get(key) for key in ("loss", "lr", "grad_norm", "keep_ratio", "epoch", "peak_bytes")}
        values |= {f"tokens/{kind}": number for kind, number in step["counts"].items()}
        values |= {f"seconds/{phase}": number for phase, number in step["seconds"].items()}
        names = ("train_device_hours", "targets_computed", "positions_computed", "flops")
        values |= {f"total/{key}": number for key, number in zip(names, sums, strict=True)}
        values[STEPS_DONE] = step["step"] + 1
        yield rows(values, milliseconds(step["time"]), step["step"])


def evaluation_rows(evaluation: Mapping[str, Any], time: str) -> list[Row]:
    """Accuracy of each ability and of the mean, and what had been computed before the evaluation where known."""
    benchmark = evaluation["benchmark"]
    values = {f"{benchmark}/{task['ability']}": task["value"] for task in evaluation["tasks"]}
    values[f"{benchmark}/mean"] = evaluation["mean"]["value"]
    values[f"{benchmark}/questions"] = evaluation["counts"]["scored"]
    return rows(values, milliseconds(time), evaluation["step"])


def total_rows(record: Mapping[str, Any]) -> list[Row]:
    """The totals of a finished run. MLflow lists the metrics of runs by name; its page of a run and its comparison go
    by the order in which they came. `accuracy/` and `computed/` come before all others in both."""
    totals = record["totals"]
    computed = {"targets": totals["counts"]["scored"], "positions": totals["counts"]["active"]}
    values = {  # in order of step: the last one stands
        f"accuracy/{evaluation['benchmark']}": evaluation["mean"]["value"] for evaluation in record["evaluations"]
    }
    values |= {f"computed/{kind}": number for kind, number in computed.items()}
    values |= {
        f"total/{key}": totals[key]
        for key in ("samples", "flops", "flops_dense", "peak_bytes", "targets_reduction", "expected_reduction")
    }
    values |= {f"total/tokens/{kind}": number for kind, number in totals["counts"].items()}
    values |= {f"total/seconds/{phase}": number for phase, number in totals["seconds"].items()}
    values |= {f"total/device_hours/{phase}": number for phase, number in totals["device_hours"].items()}
    values |= {f"total/step_seconds/{key}": number for key, number in totals["step_seconds"].items()}
    return rows(values, milliseconds(record["finished"]), totals["steps"])


def rows(values: Mapping[str, Any], time: int, step: int) -> list[Row]:
    """Rows of the values that are finite numbers."""
    return [
        Row(name(key), float(value), time, step)
        for key, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def parameters(identity: Mapping[str, Any], *, longest: int = 250) -> dict[str, str]:
    """The recipe's identity as flat names and texts: `train.optimizer.lr` -> `0.002`. Texts that are too long for a
    table of runs are left out; the recipe itself goes along as an artifact."""
    flat = {key: "none" if value is None else str(value) for key, value in _leaves(identity, "")}
    return {name(key): value for key, value in flat.items() if len(value) <= longest}


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value))
    else:
        yield prefix, value
