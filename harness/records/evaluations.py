"""The evaluations of a record: read from a run's folder, and every number held to the items behind it."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from typing import TYPE_CHECKING, Any, Final

from harness.benchmarks.scoring import Scoring, overall, unit_values
from harness.common.errors import DataError, StaleError
from harness.common.files import check_kind, problems_of, read_json
from harness.common.hashing import digest

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA: Final = 2
"""Of an evaluation; 2 says how its items become a score."""

_REMEDY: Final = "make it again: harness eval, and harness run for the record; kept answers are not asked again"
EVALUATION_SHAPE: Final[dict[str, Any]] = {
    "benchmark": str,
    "step": int,
    "tasks": list,
    "mean": dict,
    "counts": {"expected": int, "scored": int, "empty": int, "unparsable": int, "guessed": int, "errors": int},
    "scoring": {"unit": str, "combine": str, "scale": str},
    "items": str,
}


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Every evaluation below a run, by benchmark and step, checked against its items.

    Raises:
        DataError: a file is damaged, or a number is not what its items give.
        StaleError: an evaluation of another schema version.
    """
    evaluations = []
    for path in sorted((run_dir / "eval").glob("step-*/*.json")):
        evaluation = read_json(path, "an evaluation", hint=_REMEDY)
        if evaluation.get("schema") != SCHEMA:
            raise StaleError(
                f"{path}: evaluation schema {evaluation.get('schema')}, this version reads {SCHEMA}",
                hint="evaluate again: harness eval",
            )
        problems = list(problems_of(evaluation, EVALUATION_SHAPE, ""))
        if problems:
            raise DataError(f"{path}: damaged evaluation: {'; '.join(problems)}", hint=_REMEDY)
        items_path = path.parent / evaluation["items"]
        items = read_item_lines(items_path, evaluation.get("items_sha256"))
        if not all(isinstance(task, dict) for task in evaluation["tasks"]):
            raise DataError(f"{path}: damaged evaluation: a task is not an object")
        if len(items) != evaluation["counts"]["scored"]:
            raise DataError(f"{items_path}: {len(items)} items, the evaluation counts {evaluation['counts']}")
        _check_scores(evaluation, items, path)
        evaluation["items_digest"] = items_digest(items)
        evaluations.append(evaluation)
    return sorted(evaluations, key=lambda evaluation: (evaluation["benchmark"], evaluation["step"]))


def _check_scores(evaluation: dict[str, Any], items: list[dict[str, Any]], path: Path) -> None:
    """Every number is what the items give by the evaluation's own rule (`harness.benchmarks.scoring`). The number of
    units that are right is put beside each score that counts them.

    Raises:
        DataError: naming the task.
    """
    scoring = Scoring(**evaluation["scoring"])
    try:
        units = unit_values(scoring, items)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: its items cannot be scored: {error}") from error
    for task in evaluation["tasks"]:
        lacking = problems_of(task, {"task": str, "n": int, "value": int | float, "in_mean": bool}, "")
        if lacking:
            raise DataError(f"{path}: damaged evaluation: of a task, {'; '.join(lacking)}")
        values = list(units.get(task["task"], {}).values())
        if len(values) != task["n"] or not math.isclose(sum(values) / len(values), task["value"], abs_tol=1e-9):
            raise DataError(f"{path}: {task['task']} does not agree with its {len(values)} items")
        if set(values) <= {0.0, 1.0}:
            task["correct"] = int(sum(values))
    mean_units = {task["task"]: units[task["task"]] for task in evaluation["tasks"] if task["in_mean"]}
    value = evaluation["mean"]["value"]
    if mean_units and (value is None or not math.isclose(overall(scoring, mean_units), value, abs_tol=1e-9)):
        raise DataError(f"{path}: its mean does not agree with its tasks")


def items_digest(items: list[dict[str, Any]]) -> str:
    """Fingerprint of an evaluation's outcome: task, key and result of each item, in any order."""
    return digest(sorted([item["task"], str(item["key"]), item["correct"]] for item in items))


def items_file(path: Path) -> Path | None:
    """Where the items that an evaluation names lie: there, or compressed beside it; None where neither is."""
    return next((place for place in (path, path.with_name(f"{path.name}.gz")) if place.exists()), None)


def read_item_bytes(path: Path) -> bytes:
    """The lines of an items file, plain or compressed.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged.
        DataError: it is no file.
    """
    place = items_file(path) or path
    check_kind(place)
    content = place.read_bytes()
    if place.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{place}: damaged ({error})") from None


def read_item_lines(path: Path, sha256: str | None = None) -> list[dict[str, Any]]:
    """The items of an evaluation, whether its file is compressed or not.

    Args:
        sha256: of the lines; None where the evaluation is of an earlier version, which did not note it.

    Raises:
        DataError: the file is absent or damaged.
    """
    try:
        content = read_item_bytes(path)
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("they are not as they were written (checksum)")
        items = [json.loads(line) for line in content.decode("utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as items of an evaluation: {error}", hint=_REMEDY) from error
    for number, item in enumerate(items, start=1):
        problems = problems_of(item, {"task": str, "key": str | int, "correct": object}, "")
        if problems:
            raise DataError(f"{path}:{number}: cannot be read as items of an evaluation: {'; '.join(problems)}")
    return items
