"""Floating-point operations of one training sample of VideoLLaMA2.1-7B by part: torch's counter against our formulas.

    python benchmarks/videollama2_flops.py
    python benchmarks/videollama2_flops.py --prompt 40 --targets 1000

Everything runs on the meta device: full size, no memory, no weights. The counter's decoder is larger than the
formula's because it counts the masked half of the attention too. What activation checkpointing computes again (the
decoder's layers and the connector's two stages) is the last column, and in no other.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models.adapter import DecoderShape
from harness.models.videollama2.config import TOWERS, VideoLLaMA2Config
from harness.models.videollama2.flops import convolution_backward, vision_flops
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from harness.training.flops import forward_flops

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

QWEN2_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


@dataclass(frozen=True)
class Work:
    """FLOPs of one sample, one part: counted by torch and by formula; `again` is recomputed by checkpointing."""

    part: str
    forward: float
    backward: float
    formula: float
    again: float


def count(forward: Callable[[], Tensor], *, backward: bool = True) -> tuple[float, float]:
    """Forward and backward FLOPs as torch counts them."""
    known = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False) as one:
        result = forward()
    if not backward:
        return float(one.get_total_flops()), 0.0
    with FlopCounterMode(display=False, custom_mapping=known) as two:
        result.sum().backward()
    return float(one.get_total_flops()), float(two.get_total_flops())


def config_of(frames: int) -> VideoLLaMA2Config:
    config = VideoLLaMA2Config(
        text_config=QWEN2_7B, vision_config=dict(TOWERS["siglip-so400m-patch14-384"]), num_frames=frames
    )
    config._attn_implementation = "eager"  # its two products are counted on every device
    return config


def works(frames: int, prompt: int, targets: int, keep_ratio: float) -> list[Work]:
    """The four parts of one sample."""
    config = config_of(frames)
    text: Any = config.text_config
    with torch.device("meta"):
        model = VideoLLaMA2ForConditionalGeneration(config)
        pixels = torch.zeros(frames, 3, 384, 384)
        features = torch.zeros(frames, config.grid**2, 1152)
        scored = int(targets * keep_ratio)
        length = config.visual_tokens + prompt + scored
        embeds = torch.zeros(1, length, text.hidden_size, requires_grad=True)
        rows = torch.zeros(scored, text.hidden_size, requires_grad=True)
        mask = torch.zeros(1, 1, length, length)
    inner: Any = model.model
    vision = vision_flops(config)
    shape = DecoderShape(
        text.hidden_size, text.num_hidden_layers, 28, 4, 128, text.intermediate_size, text.vocab_size
    )
    own = forward_flops(shape, [length], scored)
    decoder = count(lambda: inner.language_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state)
    return [
        Work("vision", *count(lambda: inner.vision_tower(pixels), backward=False), vision.tower, 0.0),
        Work(
            "connector",
            *count(lambda: inner.mm_projector(features, [frames], frames)),
            vision.connector + vision.connector_backward,
            vision.recomputed,
        ),
        Work("decoder", *decoder, 3 * own.linear + 3.5 * own.attention, own.linear + own.attention),
        Work("head", *count(lambda: model.lm_head(rows)), 3 * own.head, 0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--prompt", type=int, default=40, help="template and question, tokens")
    parser.add_argument("--targets", type=int, default=280, help="the paper's 83.82 M tokens over 300,000 pairs")
    parser.add_argument("--keep", type=float, default=0.5)
    asked = parser.parse_args()
    print(f"TFLOP of one sample: {asked.prompt} prompt tokens, {asked.targets} targets")
    print("frames  keep  part        forward  backward   counted   formula   share    again")
    for frames in asked.frames:
        for keep in (1.0, asked.keep):
            found = works(frames, asked.prompt, asked.targets, keep)
            total = sum(work.forward + work.backward for work in found)
            for work in [*found, whole(found)]:
                done = work.forward + work.backward
                cells = [work.forward, work.backward, done, work.formula]
                counted = "  ".join(f"{cell / 1e12:8.2f}" for cell in cells)
                share, again = f"{done / total:6.1%}", f"{work.again / 1e12:7.2f}"
                print(f"{frames:6d}  {keep:4.2f}  {work.part:10s} {counted}  {share}  {again}")


def whole(parts: list[Work]) -> Work:
    sums = [sum(getattr(work, name) for work in parts) for name in ("forward", "backward", "formula", "again")]
    return Work("all", *sums)


if __name__ == "__main__":
    main()
