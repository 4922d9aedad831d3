"""From what lmms-eval says of each item of a published benchmark to items and scores of ours, and back to lmms-eval's
own number. Plain values, no torch and no lmms-eval: the parent judges with it what the child wrote.

An item's result is the task's own, taken from the output of its `process_results`; the score is ours
(`harness.benchmarks.scoring`), so that one resampling serves every benchmark. `check_aggregate` holds the two
together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from harness.benchmarks.scoring import overall, task_weights, unit_values
from harness.common.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.benchmarks import PaperBenchmark

VERDICT: Final = "verdict"
"""Key of what our task functions add to the output of a task's `process_results`."""


def items_of(benchmark: PaperBenchmark, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The items of a benchmark, in the order of its parts and of the data set.

    Args:
        samples: lmms-eval's `samples`, by task.

    Raises:
        HarnessError: a task was not run, or an item is there twice or belongs to no part; it is named.
    """
    by_task: dict[str, dict[str, dict[str, Any]]] = {benchmark.part_task(part): {} for part in benchmark.parts}
    for name in benchmark.lmms_tasks:
        if name not in samples:
            raise HarnessError(f"{benchmark.name}: lmms-eval did not run {name}")
        for sample in sorted(samples[name], key=lambda sample: int(sample["doc_id"])):
            item = _item(sample)
            items = by_task.get(item["task"])
            if items is None or item["key"] in items:
                problem = "there twice" if items else f"of {item['task']}, which is no part of {benchmark.name}"
                raise HarnessError(f"{name}: item {item['key']} is {problem}")
            items[item["key"]] = item
    return [item for items in by_task.values() for item in items.values()]


def _item(sample: Mapping[str, Any]) -> dict[str, Any]:
    text = str(sample["filtered_resps"][0])
    verdict = sample[VERDICT]
    return {"task": verdict["task"], "key": str(sample["doc_id"]), **verdict, "text": text, "empty": not text.strip()}


def summarise_published(benchmark: PaperBenchmark, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`tasks`, `mean` and `counts` of a result, from the items alone.

    Errors are the sample deviation over the root of the number of units; the mean takes its parts as independent.
    """
    units = unit_values(benchmark.scoring, items)
    tasks = []
    for part in benchmark.parts:
        values = list(units.get(benchmark.part_task(part), {}).values())
        if not values:
            continue
        value = sum(values) / len(values)
        spread = sum((result - value) ** 2 for result in values)
        tasks.append(
            {
                "task": benchmark.part_task(part),
                "ability": part or benchmark.name,
                "metric": benchmark.metric,
                "value": value,
                "stderr": math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else None,
                "n": len(values),
                "in_mean": True,
            }
        )
    flags = ["empty", "unparsable", "guessed"]
    # Results of before this was counted, and benchmarks without options, do not have it.
    flags += ["beyond_option"] if items and all("beyond_option" in item for item in items) else []
    counts = {"scored": len(items), **{flag: sum(bool(item[flag]) for item in items) for flag in flags}}
    return {"tasks": tasks, "mean": _mean(benchmark, tasks), "counts": counts}


def _mean(benchmark: PaperBenchmark, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    weights = task_weights(benchmark.scoring, {task["task"]: task["n"] for task in tasks})
    errors = [None if task["stderr"] is None else weights[task["task"]] * task["stderr"] for task in tasks]
    known = [error for error in errors if error is not None]
    whole = bool(tasks) and len(known) == len(errors)
    return {
        "value": sum(weights[task["task"]] * task["value"] for task in tasks) if tasks else None,
        "stderr": math.sqrt(sum(error**2 for error in known)) if whole else None,
        "n": sum(task["n"] for task in tasks),
    }


def check_aggregate(
    benchmark: PaperBenchmark, items: Sequence[Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]]
) -> None:
    """Our score against lmms-eval's own number.

    The entry says which items lmms-eval's number covers (`aggregate`): a task may leave empty answers out of its
    denominator, or score nothing less than the complete benchmark, so that there is nothing to compare then.

    Args:
        results: lmms-eval's `results`, by task.

    Raises:
        HarnessError: they differ; both are given.
    """
    if benchmark.aggregate == "complete" and len(items) < benchmark.items:
        return
    for task, covered in _compared(benchmark, items):
        theirs = results.get(task, {}).get(f"{benchmark.metric},none")
        if benchmark.place is not None and isinstance(theirs, list | tuple):
            theirs = theirs[benchmark.place]
        score = overall(benchmark.scoring, unit_values(benchmark.scoring, covered)) if covered else 0.0
        ours = benchmark.factor * score
        near = 0.0 if benchmark.rounded is None else 10.0**-benchmark.rounded
        if not isinstance(theirs, int | float) or not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9 + near):
            raise HarnessError(f"{task}: lmms-eval says {benchmark.metric} {theirs}, its items say {ours}")


def _compared(
    benchmark: PaperBenchmark, items: Sequence[Mapping[str, Any]]
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The items behind each number of lmms-eval's."""
    covered = [item for item in items if benchmark.aggregate != "answered" or not item["empty"]]
    if not benchmark.group:
        return [(benchmark.task, covered)]
    tasks = zip(benchmark.lmms_tasks, benchmark.parts, strict=True)
    return [
        (task, [item for item in covered if item["task"] == benchmark.part_task(part)]) for task, part in tasks
    ]
