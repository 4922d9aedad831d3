"""A training loop of one's own, with accelerate: gradient accumulation, several processes, resuming.

    python examples/accelerate_loop.py --output runs/loop
    accelerate launch --num_processes 2 examples/accelerate_loop.py --output runs/loop

Without accelerate the loop is the same: `total` is the number of scored targets of the whole step, and the step's
gradient is that of the sum of the scored losses over `total`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import toy
from accelerate import Accelerator

import regate
from regate.hf import KEY, make_gate, with_sample_ids
from regate.teacher import TextBackbone

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def windows(loader: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """The micro-batches of each optimizer step."""
    batches = iter(loader)
    while window := tuple(itertools.islice(batches, size)):
        yield window


def train_window(
    accelerator: Accelerator,
    student: Any,
    elide: regate.Elision,
    gate: regate.Gate,
    window: tuple[Any, ...],
    step: int,
) -> regate.TokenCounts:
    """The forward and backward passes of one optimizer step."""
    decisions = [gate.decide(batch[KEY].layout, batch[KEY].sample_ids_B, step=step) for batch in window]
    total = regate.count_scored(decisions, device=accelerator.device)
    scale = accelerator.num_processes * accelerator.gradient_accumulation_steps  # undone by the two means
    for batch, decision in zip(window, decisions, strict=True):
        inputs = {name: batch[name].to(accelerator.device) for name in batch if name not in (KEY, "labels")}
        with accelerator.accumulate(student), elide(decision):
            logits_NV = student(predictor_BS=decision.predictor_BS, **inputs)
            loss_N = regate.token_loss(logits_NV, decision.targets_N.to(accelerator.device))
            accelerator.backward((loss_N * gate.weights(decision, loss_N)).sum() * scale / total)
        gate.observe(decision, loss_N)
    return sum((decision.counts for decision in decisions), regate.TokenCounts())


def save(accelerator: Accelerator, gate: regate.Gate, folder: Path, epoch: int, step: int) -> None:
    """A checkpoint; the small file that says so comes last."""
    accelerator.save_state(str(folder / "state"))
    (folder / f"gate.{accelerator.process_index}.json").write_text(json.dumps(gate.state_dict()))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / "done.json").write_text(json.dumps({"epoch": epoch, "step": step}))


def resume(accelerator: Accelerator, gate: regate.Gate, folder: Path) -> tuple[int, int]:
    """The epoch and the step to go on with."""
    if not (folder / "done.json").exists():
        return 0, 0
    accelerator.load_state(str(folder / "state"))
    gate.load_state_dict(json.loads((folder / f"gate.{accelerator.process_index}.json").read_text()))
    done = json.loads((folder / "done.json").read_text())
    return done["epoch"], done["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    accelerator = Accelerator(gradient_accumulation_steps=2)
    model, dataset = toy.model(), toy.Pictures()
    collator = with_sample_ids(toy.collate, visual_token_ids=[toy.PICTURE])
    gate = make_gate(
        options.output / "gate",
        regate.GateConfig(warmup_steps=4, cycle_steps=8, dense_steps=2),
        teacher=TextBackbone(model),
        dataset=dataset,
        collator=collator,
        placeholder_id=toy.PAD,
        fingerprint={"teacher": "toy", "data": "pictures", "template": 1},
    )
    elide = regate.attach(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    student, optimizer = accelerator.prepare(regate.ScoredLM(model), optimizer)
    counts = regate.TokenCounts()
    first, step = resume(accelerator, gate, options.output)
    for epoch in range(first, options.epochs):
        gate.start_epoch(epoch)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
        order = order[accelerator.process_index :: accelerator.num_processes]
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=order.tolist(), collate_fn=collator)
        for window in windows(loader, accelerator.gradient_accumulation_steps):
            counts += train_window(accelerator, student, elide, gate, window, step)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        save(accelerator, gate, options.output, epoch + 1, step)
    if accelerator.is_main_process:
        model.save_pretrained(options.output / "model")
    print(f"{step} steps, {counts.scored} of {counts.target} targets scored here")


if __name__ == "__main__":
    main()
