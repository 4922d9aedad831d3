"""Checkpoints that resume exactly: what training changes (`harness.training.placement.trained_state`), and beside it
what the model does not know (step, gate, loss scale). A directory counts only once its COMPLETE file is there, which
holds the sha256 of every other file and is sealed itself: a byte that changed on the disk is seen before anything is
trained on it.

The newest two are kept, so that a damaged one costs the steps since the one before. The older of them goes before a
third is written: the disk never holds more than two.

Any number of processes reads it, sharded or not. The order of the samples is a function of the step
(`harness.data.sampler`) and dropout's masks one of the step and the micro-batch (`harness.training.loop`), so no
process has a state of its own but the gate's, and those of all stand in one file.
"""

from __future__ import annotations

import io
import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate.utils import gather_object

from harness.common.errors import DataError, StaleError
from harness.common.files import read_json, replace_folder, seal, sync_tree
from harness.common.hashing import file_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator

    from harness.training.placement.parallel import ParallelModel

SCHEMA: Final = 3
_TRAINED: Final = "trained"
_GATE: Final = "gate.pt"
_COMPLETE: Final = "COMPLETE"
_DAMAGED: Final = ".damaged"


def save(model: ParallelModel, folder: Path, *, step: int, gate_state: dict[str, Any], identity: str) -> Path:
    """Write `resume-<step>` below `folder`, and keep the one before it. Every process comes here.

    Args:
        step: the first step that a resumed run will do.
        identity: of the run; a checkpoint of another one is refused on `load`.
    """
    accelerator = model.accelerator
    final = folder / f"resume-{step:06d}"
    work = folder / f"resume-{step:06d}.tmp"
    if accelerator.is_main_process:
        kept = max((path for path in _complete(folder) if path != final), key=_step_of, default=None)
        for old in folder.glob("resume-*"):
            if old != kept:
                shutil.rmtree(old)
        work.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        _fill(model, work, step=step, gate_state=gate_state, identity=identity)
    except BaseException:
        if accelerator.is_main_process:
            shutil.rmtree(work, ignore_errors=True)  # a full disk gets its bytes back
        raise
    if accelerator.is_main_process:
        sync_tree(work)
        replace_folder(work, final)
    accelerator.wait_for_everyone()
    return final


def _fill(model: ParallelModel, work: Path, *, step: int, gate_state: dict[str, Any], identity: str) -> None:
    accelerator = model.accelerator
    model.save(work / _TRAINED)
    gate_states = gather_object([gate_state])
    if accelerator.is_main_process:
        content = io.BytesIO()
        torch.save(gate_states, content)  # into memory: torch's own writer hides what is wrong with a disk
        (work / _GATE).write_bytes(content.getbuffer())
        world, scaler = accelerator.num_processes, accelerator.scaler
        state = {"schema": SCHEMA, "step": step, "identity": identity, "world": world, "sharding": model.sharding}
        state["scaler"] = None if scaler is None else scaler.state_dict()
        (work / "state.json").write_text(json.dumps(seal(state)))
    accelerator.wait_for_everyone()
    digests = _digests(accelerator, work)
    if accelerator.is_main_process:
        (work / _COMPLETE).write_text(json.dumps(seal({"schema": SCHEMA, "sha256": digests})))


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`."""
    return max(_complete(folder), key=_step_of, default=None)


def remove_all(folder: Path) -> None:
    """Remove what a finished run could resume from, whole, half-written or damaged."""
    for path in folder.glob("resume-*"):
        shutil.rmtree(path)


def load_newest(
    model: ParallelModel, folder: Path, *, identity: str, say: Callable[[str], None]
) -> tuple[int, list[dict[str, Any]]] | None:
    """`load` the newest checkpoint that is as it was written; None where there has been none. Every process comes
    here.

    A damaged one is put aside, with a word to the user, and the one before it is taken.

    Raises:
        DataError: all of them are damaged.
        StaleError: see `load`.
    """
    accelerator, messages = model.accelerator, []
    while (path := latest(folder)) is not None:
        damages = damage(accelerator, path)
        if not damages:
            return _load(model, path, identity)
        messages.append(f"{path}: damaged ({'; '.join(damages)})")
        last = len(_complete(folder)) == 1
        accelerator.wait_for_everyone()  # all have looked
        if last:
            raise DataError(
                "\n".join(messages), hint=f"no other checkpoint is left: move {folder.parent} away to start anew"
            )
        say(f"WARNING: {messages[-1]}; put aside, and the checkpoint before it is taken")
        if accelerator.is_main_process:
            path.replace(path.with_name(path.name + _DAMAGED))
        accelerator.wait_for_everyone()
    return None


def load(model: ParallelModel, path: Path, *, identity: str) -> tuple[int, list[dict[str, Any]]]:
    """Restore what `save` wrote into the prepared objects. Every process comes here.

    Returns:
        The step to go on with, and the gate states of every process that wrote the checkpoint.

    Raises:
        DataError: a file of it is not what was written.
        StaleError: it belongs to another run.
    """
    damages = damage(model.accelerator, path)
    if damages:
        raise DataError(f"{path}: damaged ({'; '.join(damages)})", hint="move it away, and the one before is taken")
    return _load(model, path, identity)


def damage(accelerator: Accelerator, path: Path) -> list[str]:
    """What of a checkpoint is not as it was written, in words; the same on every process, and all come here."""
    try:
        complete = read_json(path / _COMPLETE, "the digests of a checkpoint", schema=SCHEMA)
        wanted = complete["sha256"]
        readable = isinstance(wanted, dict) and len(wanted) > 0
    except (DataError, KeyError):
        wanted, readable = {}, False
    if not readable:
        return [f"{_COMPLETE} is not a list of digests of schema {SCHEMA}: cut off, changed, or of another version"]
    digests = _digests(accelerator, path)
    missing = [f"{name} is missing" for name in sorted(wanted.keys() - digests.keys())]
    return missing + [
        f"{name} has changed" for name in sorted(wanted) if name in digests and digests[name] != wanted[name]
    ]


def _load(model: ParallelModel, path: Path, identity: str) -> tuple[int, list[dict[str, Any]]]:
    state = read_json(path / "state.json", "the state of a checkpoint")
    if state["identity"] != identity or state["schema"] != SCHEMA:
        raise StaleError(f"{path} was written by another recipe or version", hint=f"move {path} away to start anew")
    model.load(path / _TRAINED)
    if model.accelerator.scaler is not None and state["scaler"] is not None:
        model.accelerator.scaler.load_state_dict(state["scaler"])
    gate_states: list[dict[str, Any]] = torch.load(path / _GATE, weights_only=True)
    return int(state["step"]), gate_states


def _complete(folder: Path) -> list[Path]:
    named = (path for path in folder.glob("resume-*") if path.name.removeprefix("resume-").isdecimal())
    return [path for path in named if (path / _COMPLETE).exists()]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("resume-"))


def _digests(accelerator: Accelerator, folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder` but COMPLETE, each read by one process; the same on every process."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _COMPLETE)
    own = files[accelerator.process_index :: accelerator.num_processes]
    digests = [(path.relative_to(folder).as_posix(), file_digest(path)) for path in own]
    gathered: list[tuple[str, str]] = gather_object(digests)
    return dict(gathered)
