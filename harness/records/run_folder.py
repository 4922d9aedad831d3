"""A run's folder: what it was started from, how long its stages took, and that one process works in it at a time."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from harness.common.addresses import shown
from harness.common.errors import DataError, EnvironmentProblem, StaleError
from harness.common.files import check_kind, check_kinds_below, folder_bytes, read_json, write_json
from harness.common.numbers import gigabytes
from harness.records.ledger import BESIDE, Clocks, Ledger, check_beside, note_beside, read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe

SCHEMA: Final = 1
RECIPE_FILE: Final = "recipe.json"
OWN_FILES: Final = "own"
"""Folder of a run with copies of what its recipe names of the user's own: a selection rule, question files."""
_SPARE_BYTES: Final = 10**9
"""Refuse to start with less free disk than this: a full disk in the middle costs more than a message before."""


def shown_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain values, its tracking server's address without password and query: as it may be kept."""
    content = recipe.model_dump(mode="json")
    uri = content["track"]["uri"]
    return content if uri is None else {**content, "track": {**content["track"], "uri": shown(uri)}}


def read_recipe(run_dir: Path) -> Recipe:
    """The recipe that a training's folder keeps.

    Raises:
        DataError: it is not there, or damaged.
        StaleError: this version reads it as something else.
    """
    from harness.config.recipe import Recipe

    path = run_dir / RECIPE_FILE
    content = read_json(path, "the recipe of a run", hint="give the run's command again: it writes the file anew")
    try:
        return Recipe.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StaleError(f"{path} cannot be used any more: {first['msg'].removeprefix('Value error, ')}") from None


def run_dir_of(recipe: Recipe | EvaluationRecipe) -> Path:
    """Where the run of a recipe lies: results/runs/<run id>."""
    return Path(recipe.paths.results) / "runs" / recipe.run_id


@contextmanager
def stage(
    run_dir: Path,
    name: str,
    phase: str,
    *,
    devices: int = 1,
    now: Callable[[], float] = time.perf_counter,
    ledger_file: str = "ledger.jsonl",
) -> Iterator[None]:
    """Write what the block took into the run's ledger, even if it failed. Enter it only where there is work.

    Args:
        now: seconds of a monotonic clock.
    """
    clocks = Clocks(now=now)
    try:
        yield
    finally:
        clocks.lap(phase)
        with Ledger(run_dir / ledger_file) as ledger:
            ledger.append("stage", stage=name, seconds=clocks.take(), devices=devices)
        if ledger_file == BESIDE:
            note_beside(run_dir)


def pin(run_dir: Path, name: str, value: str) -> None:
    """Hold a run to what it was started from.

    Raises:
        StaleError: the same run was started with something else.
    """
    path = run_dir / "inputs.json"
    inputs: dict[str, Any] = {"schema": SCHEMA}
    if path.exists():
        remedy = f"what the run was started from is not known any more: move {run_dir} away to start anew"
        inputs = read_json(path, "the inputs of a run", schema=SCHEMA, hint=remedy)
    if inputs.get(name, value) != value:
        raise StaleError(
            f"{run_dir} was started with other {name} (fingerprint {str(inputs[name])[:16]}, now {value[:16]})",
            hint=f"restore the {name}, or move {run_dir} away to start anew",
        )
    write_json(path, {**inputs, name: value}, sealed=True)


def has_started(run_dir: Path) -> bool:
    """Whether a training has begun there."""
    return any(event["event"] == "start" for event in read_events(run_dir / "ledger.jsonl"))


def check_ledger_kept(run_dir: Path) -> None:
    """Look, before anything is computed, whether the ledger of a training that has begun is there, and that of
    evaluations beside it.

    Raises:
        DataError: one is gone, or damaged: the record could not be made of what is trained on.
    """
    check_beside(run_dir)
    path = run_dir / "ledger.jsonl"
    if has_started(run_dir):
        return
    left = [name for name in ("record.json", "checkpoints") if (run_dir / name).exists()]
    if left:
        raise DataError(
            f"{path}: holds no training, and {run_dir} holds its {' and '.join(left)}: the ledger was deleted",
            hint=f"bring the ledger back, or move {run_dir} away to start anew: without it there is no record",
        )


def check_disk(folder: Path, needed: int = 0, what: str = "") -> None:
    """Ask for free disk where `folder` is or will be.

    Args:
        needed: bytes beyond those that any run is to leave free.
        what: they are for, in words.

    Raises:
        EnvironmentProblem: there is less.
    """
    asked = _SPARE_BYTES + needed
    free = shutil.disk_usage(existing_folder(folder)).free
    if free < asked:
        purpose = f": {what}, and {gigabytes(_SPARE_BYTES)} to spare" if what else ""
        raise EnvironmentProblem(
            f"{folder}: {gigabytes(free)} of disk are free, at least {gigabytes(asked)} are needed{purpose}",
            hint="free some, or put paths.* on another disk",
        )


def frames_room(recipe: Recipe | EvaluationRecipe) -> int:
    """Bytes that `devices.frame_cache_gb` leaves for the frames of evaluated videos."""
    limit = int(recipe.devices.frame_cache_gb * 1e9)
    return max(0, limit - folder_bytes(recipe.paths.frames)) if limit else 0


def existing_folder(folder: Path) -> Path:
    """`folder`, or the nearest above it that is there."""
    absolute = folder.absolute()
    return next(place for place in (absolute, *absolute.parents) if place.exists())


@contextmanager
def lock_evaluation(run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the run's evaluation, once another process has left it: a lock of its own, so that kept models
    can be scored while the training goes on."""
    path = run_dir / ".evaluation.lock"
    check_kind(path)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process evaluates {run_dir}: its answers are waited for")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class RunLocked(EnvironmentProblem):
    """Another process works on the run."""


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Hold the run's lock; it goes with the process, however that ends.

    Raises:
        RunLocked: another process works on the same run.
        DataError: something in the folder is neither a file nor a folder.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    check_kind(run_dir / ".lock")
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLocked(
                f"another process is working on {run_dir}", hint="wait for it, or stop it; it can be resumed"
            ) from error
        check_kinds_below(run_dir)
        yield
