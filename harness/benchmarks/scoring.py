"""From scored items to the number of a benchmark: which items are scored together, and how tasks are combined.

Every published score here is a weighted sum over tasks of the mean of a task's *units*. A unit is what is scored as
one thing: mostly an item, for MME an image with its two questions, for Vinoground a pair. So one resampling serves
all of them: units are independent, the items of a unit are not. Pure functions of plain values, no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Units = dict[str, dict[str, float]]
"""task -> unit -> value."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a benchmark's items become its score.

    Attributes:
        unit: `item`: the item's own result. `mme`: 100 (accuracy + 1 where all are right) over the questions of an
            image, the sum that MME reports as acc + acc+. `all_right`: 1 where every item of the unit is right.
        combine: over tasks: `mean`, every task weighs the same; `sum`, as MME adds its categories; `pooled`, every
            unit weighs the same.
        scale: `fraction`, 0 to 1, shown in per cent; `points`, shown as it is.
    """

    unit: Literal["item", "mme", "all_right"] = "item"
    combine: Literal["mean", "sum", "pooled"] = "mean"
    scale: Literal["fraction", "points"] = "fraction"


def unit_values(scoring: Scoring, items: Iterable[Mapping[str, Any]]) -> Units:
    """The value of every unit. An item holds `task`, `key`, `correct` (0 to 1) and, where several items make a unit,
    `unit`.

    Raises:
        ValueError: an item of a scoring over several items names no unit.
    """
    results_by_unit: dict[str, dict[str, list[float]]] = {}
    for item in items:
        unit = item["key"] if scoring.unit == "item" else item.get("unit")
        if unit is None:
            raise ValueError(f"item {item['task']} {item['key']} names no unit, which {scoring.unit!r} needs")
        results_by_unit.setdefault(item["task"], {}).setdefault(str(unit), []).append(float(item["correct"]))
    return {
        task: {unit: _unit(scoring, results) for unit, results in by_unit.items()}
        for task, by_unit in results_by_unit.items()
    }


def _unit(scoring: Scoring, results: list[float]) -> float:
    if scoring.unit == "all_right":
        return float(all(result == 1 for result in results))
    mean = sum(results) / len(results)
    return mean if scoring.unit == "item" else 100.0 * (mean + float(mean == 1))


def task_weights(scoring: Scoring, sizes: Mapping[str, int]) -> dict[str, float]:
    """The weight of each task's mean in the overall score.

    Args:
        sizes: number of units of each task that counts.
    """
    if scoring.combine == "sum":
        return dict.fromkeys(sizes, 1.0)
    if scoring.combine == "mean":
        return dict.fromkeys(sizes, 1 / len(sizes))
    total = sum(sizes.values())
    return {task: size / total for task, size in sizes.items()}


def overall(scoring: Scoring, units: Units) -> float:
    """The benchmark's score.

    Raises:
        ValueError: there is no task, or one without a unit.
    """
    if not units or not all(units.values()):
        raise ValueError("a score needs at least one task, and a unit in each")
    weights = task_weights(scoring, {task: len(values) for task, values in units.items()})
    return sum(weights[task] * sum(values.values()) / len(values) for task, values in units.items())
