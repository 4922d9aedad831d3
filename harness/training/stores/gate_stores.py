"""The gate of a run and the stores that it reads: reference losses and running losses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

import regate
from harness.common.errors import StaleError
from harness.common.files import atomic_folder, read_json, write_json
from harness.common.hashing import digest
from harness.data.loading.batches import picture_batches, text_batches
from harness.data.loading.text_rows import TextRows, path_of
from harness.models import device
from harness.models.other_vlm import name_of_vlm
from harness.training.checkpoint import latest
from harness.training.launching import processes
from harness.training.placement.sharding import spread_for_scoring
from harness.training.stores.other_teacher import facts_of_vlm, losses_of_vlm
from regate import process
from regate.files import open_array
from regate.teacher import write_losses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from harness.data.processor import Processor
    from harness.data.sample import Batch
    from harness.training.run import Prepared

_COST: Final = "cost.json"
"""In the folder of a reference store once it is complete: what the pass took."""
_NODES: Final = "nodes"
"""In the folder of a reference store while several nodes fill it: a copy for each but the first."""
_ROWS: Final = 4096
"""Samples that are taken from a copy at a time."""


@dataclass(frozen=True, slots=True)
class ReferencePlace:
    """Where the reference losses of a run are, complete or not.

    Attributes:
        made_from: all that the losses depend on. The folder is named by its hash, so several runs share one.
    """

    path: Path
    made_from: dict[str, Any]

    @property
    def complete(self) -> bool:
        return (self.path / _COST).exists()

    def complete_with(self, *, seconds: float, devices: int, teacher: str | None) -> None:
        """Mark the losses as complete, with what the pass took: for the runs that find them here.

        Args:
            teacher: digest of all bytes of its files; None where its loading has compared them.
        """
        cost = {"schema": 1, "seconds": seconds, "devices": devices, "teacher": teacher}
        write_json(self.path / _COST, cost, durable=True, sealed=True)

    def check_teacher(self, teacher: str | None) -> None:
        """Hold complete losses to the teacher's bytes, of which `made_from` names a part; those of an earlier version
        do not say them.

        Raises:
            StaleError: they were computed with other weights.
        """
        stored = _read_cost(self.path).get("teacher")
        if teacher is not None and stored is not None and stored != teacher:
            raise StaleError(
                f"{self.path}: was computed by a teacher whose files differ from those here (sha256)",
                hint=f"bring its weights back, or move {self.path} away to compute the losses anew",
            )


def reference_place(run: Prepared) -> ReferencePlace | None:
    """Where the reference losses of Eq. 1 are; None where the gate reads none."""
    gate = run.recipe.gate
    if gate is None or not gate.needs_reference:
        return None
    made_from: dict[str, Any] = {
        "data": run.data.fingerprint,
        "processor": run.adapter.processor().fingerprint,
        "teacher": run.adapter.teacher_fingerprint,
        "candidates": gate.candidates,
        "placeholders": gate.reference.placeholders,
        # What the teacher's forward pass will really compute in.
        "dtype": gate.reference.dtype if device.computes_bfloat16() else "float32",
    }
    if gate.reference.pictures:
        # Names and known hashes of the media are in the data's fingerprint; here, what is seen of them, and by whom.
        made_from["pictures"] = {
            "frames": run.data.frames,
            "rule": run.data.sampling.rule,
            "augment": run.data.sampling.augment,
            **_seeing_facts(run),
        }
    return ReferencePlace(Path(run.recipe.paths.stores) / f"reference-{digest(made_from)[:16]}", made_from)


def _seeing_facts(run: Prepared) -> dict[str, str]:
    """Of the model that sees the pictures."""
    if name_of_vlm(run.recipe) is None:
        return {"weights": run.adapter.weights_fingerprint}
    return facts_of_vlm(run)


def open_reference(run: Prepared) -> regate.ReferenceStore | None:
    """The complete store; None where the gate reads none.

    Raises:
        StaleError: it is not complete.
    """
    place = reference_place(run)
    if place is None:
        return None
    if not place.complete:
        raise StaleError(f"{place.path}: no reference losses yet", hint="run `harness reference` first")
    return regate.ReferenceStore.open(place.path, expect_fingerprint=place.made_from)


def create_reference(run: Prepared) -> regate.ReferenceWriter:
    """The store that the reference losses are written to, made unless it is there; for a gate that reads them."""
    place = reference_place(run)
    assert place is not None
    return _create_at(run, place.path)


def _create_at(run: Prepared, path: Path) -> regate.ReferenceWriter:
    place, index = reference_place(run), run.index
    assert place is not None
    return regate.ReferenceWriter.create(
        path,
        sample_ids=index.sample_ids.tolist(),
        num_targets=index.num_targets.tolist(),
        checksums=index.checksums.tolist(),
        fingerprint=place.made_from,
    )


def compute_reference_losses(run: Prepared) -> None:
    """Compute what of the reference losses is missing: this process's part of them, where several do it together.

    Batches are dealt out whole, so the values do not depend on the number of processes.
    """
    writer = create_reference(run)
    _write_reference_losses(run, writer)
    process.barrier()
    writer.finish()


def compute_node_losses(run: Prepared, node: int, nodes: int) -> None:
    """The same on one of several nodes, whose processes fill a store of their own: see `spread_reference`."""
    place = reference_place(run)
    assert place is not None
    path = place.path if node == 0 else _node_path(place.path, node)
    _write_reference_losses(run, _create_at(run, path), nodes)
    process.barrier()


def spread_reference(run: Prepared, nodes: int) -> None:
    """Make a copy of the unfinished store for each node but the first.

    A store is mapped into memory, and a node writes whole pages of it: two nodes that fill one file on a network
    file system would write over each other's losses.
    """
    place = reference_place(run)
    assert place is not None
    gather_reference(run)
    create_reference(run)
    for node in range(1, nodes):
        copy = _node_path(place.path, node)
        with atomic_folder(copy) as folder:
            for path in place.path.iterdir():
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)


def gather_reference(run: Prepared) -> None:
    """Take the losses of the nodes' copies into the store, also those that an earlier attempt left; the copies are
    removed."""
    place = reference_place(run)
    assert place is not None
    copies = sorted((place.path / _NODES).glob("[0-9]*"))
    if copies:
        writer = create_reference(run)
        for copy in copies:
            _take(writer, _create_at(run, copy))
    shutil.rmtree(place.path / _NODES, ignore_errors=True)


def scored_samples(run: Prepared) -> int:
    """How many samples have their reference losses, those in the nodes' copies included."""
    place = reference_place(run)
    assert place is not None
    folders = [place.path, *(place.path / _NODES).glob("[0-9]*")]
    shape = (len(run.index.sample_ids),)
    paths = [folder / "done.npy" for folder in folders]
    marks = [open_array(path, shape, "uint8") for path in paths if path.exists()]
    return int(np.any(np.stack(marks) == 1, axis=0).sum()) if marks else 0


def _take(writer: regate.ReferenceWriter, copy: regate.ReferenceWriter) -> None:
    """Write down the samples that a copy has and the store has not."""
    rows = np.flatnonzero((np.asarray(copy.done_M) == 1) & (np.asarray(writer.done_M) != 1))
    offsets = copy.index.offsets_M1
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS].tolist()
        losses = [torch.from_numpy(np.array(copy.losses[offsets[row] : offsets[row + 1]])) for row in some]
        writer.write(copy.index.ids_M[some].tolist(), losses)


def _node_path(path: Path, node: int) -> Path:
    return path / _NODES / str(node)


def _write_reference_losses(run: Prepared, writer: regate.ReferenceWriter, nodes: int = 1) -> None:
    gate, place = run.recipe.gate, reference_place(run)
    assert gate is not None
    assert place is not None
    dtype = place.made_from["dtype"]
    if dtype != gate.reference.dtype:
        run.progress.say(f"the teacher computes in {dtype}: this device has no fast bfloat16")
    processor = run.adapter.processor()
    teacher, shared_by = _teacher(run)
    # All batches, also those that a killed pass has done: which rows share a batch decides the last bits.
    subtract = None
    if gate.reference.pictures:
        another = name_of_vlm(run.recipe) is not None
        batches: Iterator[Batch] = _picture_batches(run, processor, media=not another)
        subtract = losses_of_vlm(run) if another else _losses_with_pictures(run)
    else:
        batches = _text_batches(run, processor, gate.reference.tokens_per_batch)
    scored = len(writer.done_ids())
    last = scored + -(-(len(writer.index) - scored) // nodes)  # a node counts its own store's
    with run.progress.task(f"reference losses {run.recipe.name}", last, start=scored) as advance:
        write_losses(
            teacher,
            batches,
            writer,
            placeholder_id=processor.placeholder_id,
            placeholders=gate.reference.placeholders,
            dtype=dtype,
            candidates=gate.candidates,
            progress=lambda _: advance(min(last, int(writer.done_M.sum()))),
            shared_by=shared_by,
            subtract=subtract,
        )


def _losses_with_pictures(run: Prepared) -> Callable[[Any], Tensor]:
    """The loss of the student's starting weights at every target of a batch, with nothing elided: float32 N."""
    student = run.adapter.student().eval()
    model = regate.ScoredLM(student.to("cuda" if torch.cuda.is_available() else "cpu"))
    everything = regate.DenseGate()

    def losses(batch: Batch) -> Tensor:
        decision = everything.decide(batch.layout, batch.sample_ids_B, step=0)
        logits_NV, targets_N = run.adapter.forward(model, batch, decision)
        return regate.token_loss(logits_NV, targets_N)

    return losses


def _picture_batches(run: Prepared, processor: Processor, *, media: bool) -> Iterator[Batch]:
    """This process's part of the batches, each as large as a micro-batch, with or without their media."""
    part, parts = process.rank(), process.world()
    rows = run.recipe.train.micro_batch
    return islice(picture_batches(run.data, processor, rows=rows, media=media), part, None, parts)


def _teacher(run: Prepared) -> tuple[nn.Module, ProcessGroup | None]:
    """The teacher on this process's device: the whole of it, or its part and the processes that have the others."""
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not run.recipe.devices.shard_teacher or process.world() == 1:
        return run.adapter.teacher().to(where), None
    return spread_for_scoring(run.adapter.teacher, where, processes.nodes())


def _text_batches(run: Prepared, processor: Processor, tokens_per_batch: int) -> Iterator[Batch]:
    """This process's part of the batches: from the rows that counting the targets has kept, where it could."""
    rows = TextRows.open(path_of(Path(run.recipe.paths.stores), run.data, processor), len(run.data.samples))
    part, parts = process.rank(), process.world()
    if rows is not None:
        return rows.batches(processor, tokens_per_batch=tokens_per_batch, part=part, parts=parts)
    return islice(text_batches(run.data, processor, tokens_per_batch=tokens_per_batch), part, None, parts)


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


def reference_facts(run: Prepared) -> dict[str, Any] | None:
    """What the record says of the reference losses, and what they cost, whichever run paid for them."""
    store = open_reference(run)
    if store is None:
        return None
    cost = _read_cost(store.path)
    made_from = store.manifest["fingerprint"]
    return {
        "fingerprint": digest(made_from),
        "made_from": made_from,
        "targets": store.num_targets_total,
        "seconds": cost["seconds"],
        "devices": cost["devices"],
    }


def _read_cost(store: Path) -> dict[str, Any]:
    shape = {"seconds": int | float, "devices": int}
    remedy = "delete it and give the command again: the losses are kept, what they cost is then not known"
    return read_json(store / _COST, "the cost of reference losses", schema=1, shape=shape, hint=remedy)
