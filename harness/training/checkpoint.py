"""Checkpoints that resume exactly: model, optimizer and random states as the wrapped model keeps them, and beside
them what it does not know (step, gate, ledger). A directory counts only once its COMPLETE file is there.

accelerate does not save the order of a map-style dataset, so the order is a function of the step
(`harness.data.sampler`) and needs no state; and it ignores a missing file of random states without a word, so the
files are counted here.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.common.errors import StaleError
from harness.common.files import replace_folder, sync_tree

if TYPE_CHECKING:
    from pathlib import Path

    from harness.training.parallel import ParallelModel

SCHEMA: Final = 1
_COMPLETE: Final = "COMPLETE"


def save(model: ParallelModel, folder: Path, *, step: int, gate_state: dict[str, Any], identity: str) -> Path:
    """Write `resume-<step>` below `folder`; older ones go once it is complete. Every process comes here.

    Args:
        step: the first step that a resumed run will do.
        identity: of the run; a checkpoint of another one is refused on `load`.
    """
    accelerator = model.accelerator
    final = folder / f"resume-{step:06d}"
    work = folder / f"resume-{step:06d}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    accelerator.wait_for_everyone()
    model.save(work)
    torch.save(gate_state, work / f"gate-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        world = accelerator.num_processes
        state = {"schema": SCHEMA, "step": step, "identity": identity, "world": world, "sharding": model.sharding}
        (work / "state.json").write_text(json.dumps(state))
        (work / _COMPLETE).touch()
        sync_tree(work)
        replace_folder(work, final)
        for old in folder.glob("resume-*"):
            if old != final:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`."""
    complete = [path for path in folder.glob("resume-??????") if (path / _COMPLETE).exists()]
    return max(complete, default=None)


def load(model: ParallelModel, path: Path, *, identity: str) -> tuple[int, list[dict[str, Any]]]:
    """Restore what `save` wrote into the prepared objects.

    Returns:
        The step to go on with, and the gate states of every process that wrote the checkpoint.

    Raises:
        StaleError: it belongs to another run, or files of it are missing.
    """
    state = json.loads((path / "state.json").read_text())
    if state["identity"] != identity or state["schema"] != SCHEMA:
        raise StaleError(f"{path} was written by another recipe or version", hint=f"move {path} away to start anew")
    world, sharding = model.accelerator.num_processes, model.sharding
    saved_world, saved_sharding = state["world"], state.get("sharding", "none")
    if (saved_world, saved_sharding) != (world, sharding):
        raise StaleError(
            f"{path} was written by {saved_world} processes (sharding {saved_sharding}), this run has {world} "
            f"(sharding {sharding})",
            hint="resume with the same devices.processes and devices.sharding",
        )
    names = [f"random_states_{rank}.pkl" for rank in range(world)] + [f"gate-{rank}.pt" for rank in range(world)]
    absent = [name for name in names if not (path / name).exists()]
    if absent:
        raise StaleError(f"{path} lacks {', '.join(absent)}", hint=f"move {path} away to start anew")
    model.load(path)
    gates = [torch.load(path / f"gate-{rank}.pt", weights_only=True) for rank in range(world)]
    return int(state["step"]), gates
