"""Floating-point operations of one training sample of every model family: torch's counter against our formulas.

    python benchmarks/model_flops.py
    python benchmarks/model_flops.py videochat2 --prompt 40 --targets 500

Everything runs on the meta device: published sizes, no memory, no weights. The counter's decoder is larger than the
formula's because it counts the masked half of the attention too. A language model that is frozen and has adapters
gets no gradients of its weights. What activation checkpointing computes again, as in the official training, is the
last column, and in no other.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models import MODELS
from harness.models.decoder_flops import forward_flops
from harness.models.flops import convolution_backward

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.models.flops import FullSize, Published

FAMILIES = {name: family for name, family in MODELS.items() if not name.startswith("tiny_")}
"""Each family once: a toy model is of the same family."""


@dataclass(frozen=True)
class Work:
    """FLOPs of one sample, one part: counted by torch and by formula; `again` is computed a second time."""

    part: str
    forward: float
    backward: float
    formula: float
    again: float = 0.0

    @property
    def counted(self) -> float:
        return self.forward + self.backward


def count(forward: Callable[[], Tensor], *, backward: bool = True) -> tuple[float, float]:
    """Forward and backward FLOPs as torch counts them."""
    known = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False) as forward_counter:
        result = forward()
    if not backward:
        return float(forward_counter.get_total_flops()), 0.0
    with FlopCounterMode(display=False, custom_mapping=known) as backward_counter:
        result.sum().backward()
    return float(forward_counter.get_total_flops()), float(backward_counter.get_total_flops())


def vision_works(model: FullSize) -> list[Work]:
    """The parts in front of the decoder, which cost the same whatever is elided."""
    return [
        Work(part.name, *count(part.run, backward=part.trained), part.formula, part.again) for part in model.vision
    ]


def text_works(model: FullSize, prompt: int, scored: int) -> list[Work]:
    """Decoder and head, with so many of the targets kept."""
    shape, length = model.shape, model.visual_tokens + prompt + scored
    with torch.device("meta"):
        embeds = torch.zeros(1, length, shape.hidden, requires_grad=True)
        rows = torch.zeros(scored, shape.hidden, requires_grad=True)
        mask = torch.zeros(1, 1, length, length)
    own = forward_flops(shape, [length], scored)
    products = 2.0 + shape.trainable_linear
    again = own.linear + own.attention + own.adapters if model.checkpointed else 0.0
    return [
        Work(
            "decoder",
            *count(lambda: model.decoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state),
            products * own.linear + 3.5 * own.attention + 3 * own.adapters,
            again,
        ),
        Work(
            "head",
            *count(lambda: model.head(rows)),
            products * own.head + 3 * 2.0 * scored * model.head_adapter_parameters,
        ),
    ]


def print_table(name: str, published: Published, asked: argparse.Namespace) -> None:
    """All of one family: a block of lines for each number of frames and keep ratio."""
    prompt, targets = asked.prompt or published.prompt, asked.targets or published.targets
    blocks: list[tuple[int, float, list[Work]]] = []
    note = ""
    for frames in asked.frames or published.frames:
        model = published.build(frames, asked.layers)
        vision, note = vision_works(model), model.note
        blocks += [
            (frames, keep, [*vision, *text_works(model, prompt, int(targets * keep))]) for keep in (1.0, asked.keep)
        ]
    unit, scale = unit_of(whole(blocks[0][2]))
    print(f"{name}: {unit} of one sample: {prompt} prompt tokens, {targets} targets{note}")
    print("frames  keep  part        forward  backward   counted   formula   share    again")
    for frames, keep, parts in blocks:
        total = whole(parts).counted
        for work in [*parts, whole(parts)]:
            figures = (work.forward, work.backward, work.counted, work.formula)
            cells = "  ".join(f"{figure / scale:8.3f}" for figure in figures)
            share, again = f"{work.counted / total:6.1%}", f"{work.again / scale:7.2f}"
            print(f"{frames:6d}  {keep:4.2f}  {work.part:10s} {cells}  {share}  {again}")


def unit_of(work: Work) -> tuple[str, float]:
    """Its name and size."""
    return ("TFLOP", 1e12) if work.counted >= 1e11 else ("GFLOP", 1e9)


def whole(parts: list[Work]) -> Work:
    sums = [sum(getattr(work, name) for work in parts) for name in ("forward", "backward", "formula", "again")]
    return Work("all", *sums)


def main() -> None:
    names = sorted(FAMILIES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--frames", type=int, nargs="+", help="of a clip; as published by default")
    parser.add_argument("--prompt", type=int, help="template, instruction and question, tokens")
    parser.add_argument("--targets", type=int)
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--layers", type=int, help="of the decoder; fewer for a quick look")
    asked = parser.parse_args()
    unknown = sorted(set(asked.families) - FAMILIES.keys())
    if unknown:
        parser.error(f"unknown family {unknown[0]}; known: {', '.join(names)}")
    for name in asked.families or names:
        print_table(name, FAMILIES[name].full_size(), asked)


if __name__ == "__main__":
    main()
