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
    scale = accelerator.num_processes * accelerator.gradient_accumulation_steps
    counts = regate.TokenCounts()
    step = 0
    for epoch in range(options.epochs):
        gate.start_epoch(epoch)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
        order = order[accelerator.process_index :: accelerator.num_processes]
        loader = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=order.tolist(), collate_fn=collator)
        for window in windows(loader, accelerator.gradient_accumulation_steps):
            decisions = [gate.decide(batch[KEY].layout, batch[KEY].sample_ids_B, step=step) for batch in window]
            total = regate.count_scored(decisions, device=accelerator.device)
            for batch, decision in zip(window, decisions, strict=True):
                inputs = {name: batch[name].to(accelerator.device) for name in batch if name not in (KEY, "labels")}
                with accelerator.accumulate(student), elide(decision):
                    logits_NV = student(predictor_BS=decision.predictor_BS, **inputs)
                    loss_N = regate.token_loss(logits_NV, decision.targets_N.to(accelerator.device))
                    weight_N = gate.weights(decision, loss_N)
                    accelerator.backward((loss_N * weight_N).sum() * scale / total)
                gate.observe(decision, loss_N)
                counts += decision.counts
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    if accelerator.is_main_process:
        model.save_pretrained(options.output / "model")
        (options.output / "gate-state.json").write_text(json.dumps(gate.state_dict()))
    print(f"{step} steps, {counts.scored} of {counts.target} targets scored, last loss {loss_N.mean().item():.4f}")


if __name__ == "__main__":
    main()
