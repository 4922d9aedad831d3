"""Processes for the tests: they train and score, and some of them are killed.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import regate
from regate.teacher import write_losses
from tests.regate import tiny

CONFIG = regate.GateConfig(warmup_steps=0, cycle_steps=2, dense_steps=1, ema_decay=0.5)
SAMPLES, GLOBAL_BATCH, STEPS_AN_EPOCH, STEPS = 12, 4, 3, 9
CHECKPOINT_EVERY = 2


def join(rank, world, meeting):
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)


def data_of(sample):
    """One row of a sample, with a number of targets of its own (none for sample 5)."""
    one = tiny.rows(batch=1, length=14 + sample % 5, prompt=5, pad="none", seed=sample)
    if sample == 5:
        empty = torch.full_like(one.layout.labels_BS, -100)
        one.layout = regate.layout_from_labels(empty, one.mask_BS, input_ids_BS=one.input_ids_BS)
    one.sample_ids_B = torch.tensor([sample])
    return one


def gate_at(folder, world):
    store = regate.ReferenceStore.open(folder / "reference")
    where = folder / "difficulty"
    if (where / "manifest.json").exists() and (folder / "checkpoint.json").exists():
        difficulty = regate.DifficultyStore.open(where)
    else:
        difficulty = regate.DifficultyStore.for_gate(where, CONFIG, reference=store)
    return regate.Gate(CONFIG, store, difficulty)


def make_reference(folder):
    return tiny.reference_store(folder / "reference", [data_of(sample) for sample in range(SAMPLES)])


def batch_of(step):
    epoch, place = divmod(step, STEPS_AN_EPOCH)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()
    return order[place * GLOBAL_BATCH : (place + 1) * GLOBAL_BATCH]


def train(rank, world, folder, kill):
    """A loop of one's own: a sum of losses, gradients summed over processes, one division at the end.

    Args:
        kill: (rank, step) that dies without notice after its forward passes, or None.
    """
    folder = Path(folder)
    join(rank, world, folder / f"meeting-{world}-{kill}")
    model, gate = tiny.lm("Qwen2"), gate_at(folder, world)
    elide, scored = regate.attach(model), regate.ScoredLM(model)
    start = 0
    if (folder / "checkpoint.json").exists():
        saved = json.loads((folder / "checkpoint.json").read_text())
        start = saved["step"]
        model.load_state_dict(torch.load(folder / f"model-{start}.pt"))
        gate.load_state_dict(saved["gate"])
    log = (folder / f"selected-{rank}.jsonl").open("a")
    for step in range(start, STEPS):
        rows = [data_of(sample) for sample in batch_of(step)[rank::world]]
        decisions = [gate.decide(one.layout, one.sample_ids_B, step=step) for one in rows]
        total = regate.count_scored(decisions)
        for one, decision in zip(rows, decisions, strict=True):
            with elide(decision):
                logits_NV = scored(predictor_BS=decision.predictor_BS, **one.inputs)
            loss_N = regate.token_loss(logits_NV, decision.targets_N)
            (loss_N.sum() / total).backward()
            gate.observe(decision, loss_N)
            chosen = decision.targets_BS[0].nonzero().squeeze(1).tolist()
            log.write(json.dumps([step, int(one.sample_ids_B[0]), chosen]) + "\n")
            log.flush()
        if kill == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)
        descend(model, world)
        if step % STEPS_AN_EPOCH == STEPS_AN_EPOCH - 1:
            gate.end_epoch()
        if (step + 1) % CHECKPOINT_EVERY == 0:
            state = gate.state_dict()
            if rank == 0:
                torch.save(model.state_dict(), folder / f"model-{step + 1}.pt")
                aside = folder / "checkpoint.tmp"
                aside.write_text(json.dumps({"step": step + 1, "gate": state}))
                aside.replace(folder / "checkpoint.json")
            if world > 1:
                dist.barrier()
    if rank == 0:
        torch.save(model.state_dict(), folder / "final.pt")
    if world > 1:
        dist.destroy_process_group()


def descend(model, world):
    for value in model.parameters():
        if value.grad is None:
            value.grad = torch.zeros_like(value)
        if world > 1:
            dist.all_reduce(value.grad)
        value.data.sub_(value.grad, alpha=0.05)
        value.grad = None


def gradient(rank, world, folder):
    """One step under DistributedDataParallel, accumulation 2: process 0 saves the gradients."""
    folder = Path(folder)
    join(rank, world, folder / f"meeting-gradient-{world}")
    model = tiny.lm("Qwen2")
    elide, wrapped = regate.attach(model), regate.ScoredLM(model)
    if world > 1:
        wrapped = DistributedDataParallel(wrapped)
    gate = regate.Gate(replace(CONFIG, selection="reference"), regate.ReferenceStore.open(folder / "reference"))
    # With two processes the second gets sample 5 alone in both micro-batches: no target at all.
    micro_batches = {1: [[0, 1, 2], [3, 4, 6, 7], [5], [5]], 2: [[[0, 1, 2], [3, 4, 6, 7]], [[5], [5]]][rank]}[world]
    windows = [[data_of(sample) for sample in micro] for micro in micro_batches]
    decisions = [[gate.decide(one.layout, one.sample_ids_B, step=1) for one in window] for window in windows]
    total = regate.count_scored([decision for window in decisions for decision in window])
    lost = 0.0
    for place, (window, decided) in enumerate(zip(windows, decisions, strict=True)):
        last_of_window = place == len(windows) - 1
        for index, (one, decision) in enumerate(zip(window, decided, strict=True)):
            last = last_of_window and index == len(window) - 1
            if world > 1:
                wrapped.require_backward_grad_sync = last
            with elide(decision):
                logits_NV = wrapped(predictor_BS=decision.predictor_BS, **one.inputs)
            loss = regate.token_loss(logits_NV, decision.targets_N).sum() / total
            (loss * world).backward()
            lost += loss.item()
    lost = torch.tensor(lost)
    if world > 1:
        dist.all_reduce(lost)
    if rank == 0:
        grads = {name: value.grad for name, value in model.named_parameters()}
        torch.save({"loss": lost, "grads": grads, "total": total}, folder / f"gradient-{world}.pt")
    if world > 1:
        dist.destroy_process_group()


def sharded(rank, world, folder):
    """One step with every layer and the whole model sharded by torch's fully_shard."""
    from torch.distributed.fsdp import fully_shard

    folder = Path(folder)
    join(rank, world, folder / f"meeting-sharded-{world}")
    if world == 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-sharded-1", rank=0, world_size=1)
    model = tiny.lm("Qwen2")
    wrapped = regate.ScoredLM(model)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(wrapped)
    elide = regate.attach(wrapped)
    gate = regate.Gate(replace(CONFIG, selection="reference"), regate.ReferenceStore.open(folder / "reference"))
    decisions, losses = [], []
    for sample in ([0, 1], [2, 3])[rank::world]:
        for one in map(data_of, sample):
            decision = gate.decide(one.layout, one.sample_ids_B, step=1)
            decisions.append(decision)
            with elide(decision):
                logits_NV = wrapped(predictor_BS=decision.predictor_BS, **one.inputs)
            losses.append(regate.token_loss(logits_NV, decision.targets_N).sum())
    total = regate.count_scored(decisions)
    (sum(losses) * world / total).backward()
    grads = {name: value.grad.full_tensor() for name, value in model.named_parameters()}
    if rank == 0:
        torch.save(grads, folder / f"sharded-{world}.pt")
    dist.destroy_process_group()


def score(rank, world, folder, dies_after):
    """Score this process's share of the samples, one at a time; seal the store if nothing is missing.

    Args:
        dies_after: number of samples after which it dies without notice, or None.
    """
    torch.set_num_threads(1)
    folder = Path(folder)
    rows = [data_of(sample) for sample in range(SAMPLES)]
    keys = [regate.store_keys(one.layout) for one in rows]
    writer = regate.ReferenceWriter.create(
        folder / "reference",
        sample_ids=list(range(SAMPLES)),
        num_targets=[number[0] for number, _ in keys],
        checksums=[checksum[0] for _, checksum in keys],
        fingerprint={"teacher": "tiny"},
    )
    mine = [rows[sample] for sample in range(SAMPLES) if sample % world == rank]
    model = tiny.lm("Qwen2")
    scored = 0

    def progress(samples):
        nonlocal scored
        scored += samples
        if scored == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)

    write_losses(model, mine, writer, placeholder_id=2, progress=progress)
