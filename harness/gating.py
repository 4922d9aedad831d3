"""The gate of a run and the stores that it reads: reference losses and running losses.

A store's place is the hash of all that it depends on, so several runs share one.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate import PartialState

import regate
from harness import device
from harness.checkpoint import latest
from harness.data.collate import text_batches
from harness.recipe import digest
from harness.rundir import pin, stage, write_json

if TYPE_CHECKING:
    from harness.prepared import Prepared
    from harness.recipe import GateConfig

_COST: Final = "cost.json"
"""Beside a reference store: what the pass took, for the runs that find it there."""


def reference(run: Prepared) -> regate.ReferenceStore | None:
    """The reference losses of Eq. 1 for every target of the data set; None where the gate reads none.

    The store's place is the hash of all that the losses depend on, so several runs share one.
    """
    gate = run.recipe.gate
    if gate is None or not gate.needs_reference:
        return None
    made_from = {
        "data": run.data.fingerprint,
        "processor": run.adapter.processor().fingerprint,
        "teacher": run.adapter.teacher_fingerprint,
        "candidates": gate.candidates,
        "placeholders": gate.reference.placeholders,
        "dtype": _teacher_dtype(gate),
    }
    path = Path(run.recipe.paths.stores) / f"reference-{digest(made_from)[:16]}"
    pin(run.run_dir, "reference", digest(made_from))
    if not (path / _COST).exists():
        began = time.perf_counter()
        with stage(run.run_dir, "reference", "reference"):
            _score(run, gate, path, made_from)
        write_json(path / _COST, {"schema": 1, "seconds": time.perf_counter() - began, "devices": 1})
    return regate.ReferenceStore.open(path, expect_fingerprint=made_from)


def _teacher_dtype(gate: GateConfig) -> str:
    """What the teacher's forward pass will really compute in, which is what the store is named by."""
    return gate.reference.dtype if device.computes_bfloat16() else "float32"


def _score(run: Prepared, gate: GateConfig, path: Path, made_from: dict[str, Any]) -> None:
    index = run.index
    writer = regate.ReferenceWriter.create(
        path,
        sample_ids=index.sample_ids.tolist(),
        num_targets=index.num_targets.tolist(),
        checksums=index.checksums.tolist(),
        fingerprint=made_from,
    )
    if made_from["dtype"] != gate.reference.dtype:
        run.progress.say(f"the teacher computes in {made_from['dtype']}: this device has no fast bfloat16")
    processor = run.adapter.processor()
    teacher = run.adapter.teacher().to("cuda" if torch.cuda.is_available() else "cpu")
    done = writer.done_ids()
    # All batches, also those that a killed pass has done: which rows share a batch decides the last bits.
    batches = text_batches(run.data, processor, tokens_per_batch=gate.reference.tokens_per_batch)
    scored = len(done)
    with run.progress.task(f"reference losses {run.recipe.name}", len(index.sample_ids), start=scored) as advance:

        def count(samples: int) -> None:
            nonlocal scored
            scored += samples
            advance(scored)

        regate.score_reference(
            teacher,
            batches,
            writer,
            placeholder_id=processor.placeholder_id,
            placeholders=gate.reference.placeholders,
            dtype=made_from["dtype"],
            candidates=gate.candidates,
            progress=count,
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
            state = PartialState()
            if state.is_main_process:
                # What a run observed before its first checkpoint is observed again.
                shutil.rmtree(folder, ignore_errors=True)
            state.wait_for_everyone()
            index = run.index
            difficulty = regate.DifficultyStore.for_gate(
                folder,
                gate,
                reference=store,
                sample_ids=index.sample_ids.tolist(),
                num_targets=index.num_targets.tolist(),
            )
    return regate.Gate(gate, store, difficulty, seed=run.recipe.seed)


def reference_facts(run: Prepared) -> dict[str, Any] | None:
    """What the record says of the reference losses, and what they cost, whichever run paid for them."""
    store = reference(run)
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
