"""The gate of a run and the stores that it reads: reference losses and running losses.

A store's place is the hash of all that it depends on, so several runs share one.
"""

from __future__ import annotations

import json
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

import regate
from harness.common.errors import StaleError
from harness.common.files import write_json
from harness.common.hashing import digest
from harness.data.loading.batches import text_batches
from harness.models import device
from harness.records.run_folder import pin, stage
from harness.training import launch, processes
from harness.training.checkpoint import latest
from regate import process

if TYPE_CHECKING:
    from harness.config.recipe import GateConfig
    from harness.training.prepared import Prepared

_COST: Final = "cost.json"
"""Beside a reference store: what the pass took, for the runs that find it there."""


def reference(run: Prepared) -> regate.ReferenceStore | None:
    """The reference losses of Eq. 1 for every target of the data set; None where the gate reads none.

    The store's place is the hash of all that the losses depend on, so several runs share one.
    """
    gate = run.recipe.gate
    if gate is None or not gate.needs_reference:
        return None
    path, made_from = _place(run, gate)
    pin(run.run_dir, "reference", digest(made_from))
    if not (path / _COST).exists():
        began = time.perf_counter()
        devices = processes.count(run.recipe)
        with stage(run.run_dir, "reference", "reference", devices=devices):
            if devices == 1:
                score(run)
            else:
                _writer(run, gate)  # made by one process, found by the others
                launch.run_workers(run.recipe, run.run_dir, "reference", devices)
        write_json(path / _COST, {"schema": 1, "seconds": time.perf_counter() - began, "devices": devices})
    return open_reference(run)


def open_reference(run: Prepared) -> regate.ReferenceStore | None:
    """The finished store; None where the gate reads none.

    Raises:
        StaleError: it is not there.
    """
    gate = run.recipe.gate
    if gate is None or not gate.needs_reference:
        return None
    path, made_from = _place(run, gate)
    if not (path / _COST).exists():
        raise StaleError(f"{path}: no reference losses yet", hint="run `harness reference` first")
    return regate.ReferenceStore.open(path, expect_fingerprint=made_from)


def score(run: Prepared) -> None:
    """Compute what of the reference losses is missing: this process's part of them, where several do it together.

    Batches are dealt out whole, so the values do not depend on the number of processes.
    """
    gate = run.recipe.gate
    assert gate is not None
    writer, made_from = _writer(run, gate)
    if made_from["dtype"] != gate.reference.dtype:
        run.progress.say(f"the teacher computes in {made_from['dtype']}: this device has no fast bfloat16")
    processor = run.adapter.processor()
    teacher = run.adapter.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
    # All batches, also those that a killed pass has done: which rows share a batch decides the last bits.
    batches = text_batches(run.data, processor, tokens_per_batch=gate.reference.tokens_per_batch)
    scored = len(writer.done_ids())
    with run.progress.task(f"reference losses {run.recipe.name}", len(writer.index), start=scored) as advance:
        regate.score_reference(
            teacher,
            islice(batches, process.rank(), None, process.world()),
            writer,
            placeholder_id=processor.placeholder_id,
            placeholders=gate.reference.placeholders,
            dtype=made_from["dtype"],
            candidates=gate.candidates,
            progress=lambda _: advance(int(writer.done_M.sum())),
        )


def make_gate(run: Prepared, store: regate.ReferenceStore | None) -> regate.Gate | regate.DenseGate:
    """The recipe's gate, its running losses in the run's folder; called on every process."""
    gate = run.recipe.gate
    if gate is None:
        return regate.DenseGate()
    difficulty = None
    if gate.needs_difficulty:
        folder = run.run_dir / "difficulty"
        if latest(run.run_dir / "checkpoints") is not None:
            difficulty = regate.DifficultyStore.open(folder)
        else:
            if process.rank() == 0:
                # What a run observed before its first checkpoint is observed again.
                shutil.rmtree(folder, ignore_errors=True)
            process.barrier()
            index = run.index
            difficulty = regate.DifficultyStore.for_gate(
                folder,
                gate,
                reference=store,
                sample_ids=index.sample_ids.tolist(),
                num_targets=index.num_targets.tolist(),
            )
        process.barrier()  # nobody writes to it before everybody has opened it
    return regate.Gate(gate, store, difficulty, seed=run.recipe.seed)


def _place(run: Prepared, gate: GateConfig) -> tuple[Path, dict[str, Any]]:
    """Where the reference losses are, and what they are made from."""
    made_from = {
        "data": run.data.fingerprint,
        "processor": run.adapter.processor().fingerprint,
        "teacher": run.adapter.teacher_fingerprint,
        "candidates": gate.candidates,
        "placeholders": gate.reference.placeholders,
        # What the teacher's forward pass will really compute in.
        "dtype": gate.reference.dtype if device.computes_bfloat16() else "float32",
    }
    return Path(run.recipe.paths.stores) / f"reference-{digest(made_from)[:16]}", made_from


def _writer(run: Prepared, gate: GateConfig) -> tuple[regate.ReferenceWriter, dict[str, Any]]:
    path, made_from = _place(run, gate)
    index = run.index
    writer = regate.ReferenceWriter.create(
        path,
        sample_ids=index.sample_ids.tolist(),
        num_targets=index.num_targets.tolist(),
        checksums=index.checksums.tolist(),
        fingerprint=made_from,
    )
    return writer, made_from


def reference_facts(run: Prepared) -> dict[str, Any] | None:
    """What the record says of the reference losses, and what they cost, whichever run paid for them."""
    store = open_reference(run)
    if store is None:
        return None
    cost = json.loads((store.path / _COST).read_text())
    made_from = store.manifest["fingerprint"]
    return {
        "fingerprint": digest(made_from),
        "made_from": made_from,
        "targets": store.num_targets_total,
        "seconds": cost["seconds"],
        "devices": cost["devices"],
    }
