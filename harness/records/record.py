"""The record of a run: what was asked, what happened, on what, and what came out, in one JSON file.

It is made from the ledger and the evaluation files alone, so it can be made again at any time. Tables and figures
read records (and the per-item files that they name) and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from harness.common.errors import DataError, HarnessError, StaleError
from harness.common.files import problems_of, read_json, write_json
from harness.common.hashing import digest
from harness.records import provenance
from harness.records.evaluations import EVALUATION_SHAPE, items_digest, items_file, read_evaluations, read_item_lines
from harness.records.ledger import finished_step, read_events
from harness.records.totals import Split, check_steps, progress_at, split, totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe

Record = dict[str, Any]

SCHEMA: Final = 2
RECORD_FILE: Final = "record.json"

EVALUATED: Final = "evaluated"
"""Status of weights that were evaluated as they are: such a record has no plan, and null for totals."""

MEASURED: Final = frozenset(
    {
        "attempts",
        "cpu_dense_median",
        "cpu_seconds",
        "cpu_sparse_median",
        "dense_median",
        "device_hours",
        "finished",
        "items_sha256",
        "peak_bytes",
        "repeated",
        "seal",
        "seconds",
        "sparse_median",
        "train_cpu_seconds",
        "train_device_hours",
        "train_seconds",
        "waited_seconds",
        "wall_seconds",
    }
)
"""Keys, anywhere in a record, whose value is a time, a peak of memory or the number of attempts: what may differ
between a run and the same run killed and resumed. So may the bytes of the items' file, where the last bits of a loss
depend on which items were left to ask; `items_digest` is that of the outcomes, and stays."""

_REMEDY: Final = "make it again: harness run; what is trained and evaluated is kept"
_ABOUT_THE_DISK: Final = ("to_make", "missing_weights", "missing_data")
"""What a plan says about the moment it was made, and not about the run."""

_SHAPE: Final[dict[str, Any]] = {
    "schema": int,
    "id": str,
    "name": str,
    "recipe": {"name": str, "seed": int, "model": dict, "data": dict, "train": dict},
    "plan": dict,
    "provenance": {"packages": dict, "python": str, "hardware": dict, "data": str, "weights": str, "seed": int},
    "totals": {"steps": int, "counts": dict, "seconds": dict, "step_seconds": dict, "device_hours": dict},
    "evaluations": list,
    "status": str,
}


def build_record(
    recipe: Recipe,
    plan: Any,
    run_dir: Path,
    *,
    data_fingerprint: str,
    weights_fingerprint: str,
    reference: Mapping[str, Any] | None = None,
    threads: int | None = None,
    where: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a finished run.

    Args:
        plan: the plan the run followed: a pydantic model, a dataclass or a mapping, with `steps` and
            `expected_reduction`.
        run_dir: results/runs/<run id>, with ledger.jsonl and eval/.
        reference: what is known of the reference losses (fingerprint, targets, seconds that the pass took, also
            where an earlier run paid for it), or None for a run that reads none.
        threads: computing threads of a process, see `provenance.collect`.
        where: the outcome of `provenance.collect`, if it was taken before; taken now otherwise.

    Raises:
        DataError: the training or an evaluation is not finished, or a file is damaged.
    """
    ledger_path = run_dir / "ledger.jsonl"
    events = read_events(ledger_path)
    asked = {key: value for key, value in plain(plan).items() if key not in _ABOUT_THE_DISK}
    steps = int(asked["steps"])
    if finished_step(ledger_path) != steps:
        raise DataError(f"{ledger_path}: the training did not come to its end", hint="finish it first: harness train")
    ledger = split(events)
    check_steps(ledger.steps, expected=steps, path=ledger_path)
    global_batch = recipe.train.global_batch
    machine = where if where is not None else provenance.collect(threads=threads)
    record = {
        "schema": SCHEMA,
        "id": recipe.run_id,
        "name": recipe.name,
        "description": recipe.description,
        "suite": None if recipe.suite is None else recipe.suite.model_dump(),
        "recipe": recipe.identity(),
        "plan": asked,
        "provenance": {
            **_attempts(machine, events),
            "data": data_fingerprint,
            "weights": weights_fingerprint,
            "reference": (reference or {}).get("fingerprint"),
            "seed": recipe.seed,
        },
        "totals": totals(ledger, global_batch=global_batch, expected_reduction=asked.get("expected_reduction")),
        "reference": None if reference is None else plain(reference),
        "evaluations": _evaluations(recipe, run_dir, ledger, steps),
        "finished": events[-1]["time"],
        "status": "complete",
    }
    # The recipe stays as it is: its digest is the run's id, and its files are relative to `paths`, which is left out.
    clean: Record = {**_without_places(record, _places(recipe)), "recipe": record["recipe"], **_said(events)}
    check_record(clean, run_dir / RECORD_FILE)
    return clean


def _attempts(machine: Mapping[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run was started on, and what of it was another thing for a later attempt."""
    changes = provenance.changes(machine, events)
    return {**machine, "changes": changes} if changes else dict(machine)


def _said(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the newest attempt said at its start: parameters, trained ones and learning rate of each part, where the
    model has parts of its own; layers that are computed a second time, where any are; the attention kernel, where the
    recipe names it. And at its end: crc32 of the running losses, by epoch, where the gate keeps any; a training of an
    earlier version did not say it."""
    newest = {event["event"]: event for event in events}
    said = {"groups": "start", "recomputed_layers": "start", "attention": "start", "running_losses": "end"}
    return {name: newest[event][name] for name, event in said.items() if name in newest.get(event, {})}


def evaluation_record(
    recipe: EvaluationRecipe, run_dir: Path, *, weights_fingerprint: str, where: Mapping[str, Any], finished: str
) -> Record:
    """The record of weights that were evaluated as they are.

    Args:
        where: the outcome of `provenance.collect`.
        finished: time in ISO 8601.

    Raises:
        DataError: an evaluation is not finished, or a file is damaged.
    """
    benchmarks = recipe.evaluate.names
    evaluations = [evaluation for evaluation in read_evaluations(run_dir) if evaluation["benchmark"] in benchmarks]
    evaluated = {evaluation["benchmark"] for evaluation in evaluations}
    absent = [name for name in benchmarks if name not in evaluated]
    if absent:
        raise DataError(f"{run_dir}: {', '.join(absent)} not evaluated", hint="finish it first: harness eval")
    record = {
        "schema": SCHEMA,
        "id": recipe.run_id,
        "name": recipe.name,
        "description": recipe.description,
        "suite": None,
        "recipe": recipe.identity(),
        "plan": None,
        "provenance": {**where, "data": "none", "weights": weights_fingerprint, "reference": None, "seed": 0},
        "totals": None,
        "reference": None,
        "evaluations": [{**evaluation, "progress": None} for evaluation in evaluations],
        "finished": finished,
        "status": EVALUATED,
    }
    clean: Record = {**_without_places(record, _places(recipe)), "recipe": record["recipe"]}
    check_record(clean, run_dir / RECORD_FILE)
    return clean


def write_record(record: Record, run_dir: Path) -> Path:
    """Write record.json in one piece, with a checksum; keys in a fixed order, so that a diff shows what changed."""
    path = run_dir / RECORD_FILE
    in_order = json.loads(json.dumps(record, sort_keys=True, allow_nan=False))
    write_json(path, in_order, durable=True, sealed=True)
    return path


def read_record(path: Path) -> Record:
    """One record, checked.

    Raises:
        DataError: not JSON, not as it was written, or something is missing.
        StaleError: of another schema version, or its recipe is not the one its name says.
    """
    record = read_json(path, "record", hint=_REMEDY)
    if record.get("schema") != SCHEMA:
        raise StaleError(
            f"{path}: record schema {record.get('schema')}, this version reads {SCHEMA}"
            + (" (its evaluations do not say how items become a score)" if record.get("schema") == 1 else ""),
            hint="run the recipe again with this version (what is trained is kept), or read the record with the "
            "version that wrote it",
        )
    check_record(record, path)
    return record


def read_records(results_dir: Path, damaged: Callable[[HarnessError], None] | None = None) -> list[Record]:
    """Every record below results_dir/runs, in order of run id; runs that are not finished have none.

    Args:
        damaged: gets the error of each record that cannot be read, which is left out then; None raises it.

    Raises:
        DataError, StaleError: see `read_record`; or a record lies in another run's folder.
    """
    records = []
    for path in record_files(results_dir):
        try:
            record = read_record(path)
            if record["id"] != path.parent.name:
                raise StaleError(f"{path}: is the record of {record['id']}", hint="move it to that run's folder")
        except HarnessError as error:
            if damaged is None:
                raise
            damaged(error)
        else:
            records.append(record)
    return records


def record_files(results_dir: Path) -> list[Path]:
    """The record of every finished run below a results folder, in order of run id."""
    return sorted((results_dir / "runs").glob(f"*/{RECORD_FILE}"))


def check_record(record: Record, path: Path) -> None:
    """That what readers rely on is there, and that the recipe inside is the one that the id was made from.

    Raises:
        DataError, StaleError: naming the file and the key.
    """
    shape = _SHAPE
    if record.get("status") == EVALUATED:
        shape = {key: kind for key, kind in _SHAPE.items() if key not in ("plan", "totals")}
    problems = list(problems_of(record, shape, ""))
    if not problems:
        for index, evaluation in enumerate(record["evaluations"]):
            problems += problems_of(evaluation, EVALUATION_SHAPE, f"evaluations.{index}.")
    if problems:
        raise DataError(f"{path}: damaged record: {'; '.join(problems)}", hint="make it again: harness run")
    expected = f"{record['name']}-{digest(record['recipe'])[:8]}"
    if record["id"] != expected:
        raise StaleError(f"{path}: holds the recipe of {expected}, not of {record['id']}: it was edited")


def strip_times(record: Record) -> Record:
    """The record without what is measured by a clock or a memory counter and without the number of attempts:
    equal for a run and for the same run killed and resumed on the same machine."""
    stripped: Record = _drop(record, MEASURED)
    return stripped


def read_items(run_dir: Path, evaluation: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The per-item results of one evaluation of a record, or None where the file is not kept.

    Raises:
        DataError: the file is damaged.
        StaleError: the file is not the one that the record was made from.
    """
    path = run_dir / "eval" / f"step-{evaluation['step']:06d}" / evaluation["items"]
    if items_file(path) is None:
        return None
    items = read_item_lines(path, evaluation.get("items_sha256"))
    if items_digest(items) != evaluation.get("items_digest"):
        raise StaleError(f"{path}: not the items that the record was made from", hint="make the record again")
    return items


def plain(value: Any) -> Any:
    """A pydantic model, dataclass, mapping or sequence as plain JSON values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _evaluations(recipe: Recipe, run_dir: Path, ledger: Split, steps: int) -> list[dict[str, Any]]:
    """Every evaluation of the run, with what had been computed up to it."""
    evaluations = read_evaluations(run_dir)
    for evaluation in evaluations:
        evaluation["progress"] = progress_at(ledger.steps, evaluation["step"], global_batch=recipe.train.global_batch)
    for benchmark in recipe.evaluate.names:
        done = {evaluation["step"] for evaluation in evaluations if evaluation["benchmark"] == benchmark}
        for fraction in recipe.evaluate.at:
            if not any(abs(step - fraction * steps) <= 1 for step in done):
                raise DataError(
                    f"{run_dir}: {benchmark} was not evaluated at {fraction:g} of the training",
                    hint="finish it first: harness eval",
                )
    return evaluations


def _drop(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _drop(item, names) for key, item in value.items() if key not in names}
    return [_drop(item, names) for item in value] if isinstance(value, list) else value


def _places(recipe: Recipe | EvaluationRecipe) -> dict[str, str]:
    """Directories of this machine, longest first, and what stands for each in a record."""
    folders = recipe.paths.model_dump()
    folders |= {f"media_roots.{name}": place for name, place in folders.pop("media_roots").items()}
    named = {str(Path(place).resolve()): f"<{key}>" for key, place in folders.items()}
    named |= {str(Path(place)): f"<{key}>" for key, place in folders.items() if place[:1] == "/"}
    named |= {str(Path.cwd()): "<cwd>", str(Path.home()): "<home>"}
    return {place: named[place] for place in sorted(named, key=len, reverse=True) if len(place) > 1}


def _without_places(value: Any, places: Mapping[str, str]) -> Any:
    """The value with every directory of this machine replaced by what it is for: a record is made to be shared."""
    if isinstance(value, str):
        for place, word in places.items():
            value = value.replace(place, word)
        return value
    if isinstance(value, dict):
        return {key: _without_places(item, places) for key, item in value.items()}
    return [_without_places(item, places) for item in value] if isinstance(value, list) else value
