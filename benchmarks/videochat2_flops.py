"""Floating-point operations of one training sample of VideoChat2-7B (Mistral) by part: torch's counter against our
formulas.

    python benchmarks/videochat2_flops.py
    python benchmarks/videochat2_flops.py --prompt 40 --targets 500

Everything runs on the meta device: full size, no memory, no weights. The language model is frozen and has adapters,
so its backward pass computes no gradients of its weights. The counter's decoder is larger than the formula's because
it counts the masked half of the attention too. What is computed again in the backward pass (18 of the vision
transformer's 23 blocks, as in the official stage 3) is the last column, and in no other.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models.pretrained import decoder_shape
from harness.models.videochat2.config import VideoChat2Config
from harness.models.videochat2.flops import INSTRUCTION, adapter_parameters, vision_flops
from harness.models.videochat2.model import VideoChat2ForConditionalGeneration
from harness.models.videochat2.weights import Lora, add_adapters
from harness.models.videollama2.flops import convolution_backward
from harness.training.flops import forward_flops

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_window": None,
}
CHECKPOINTED = 18


@dataclass(frozen=True)
class Work:
    """FLOPs of one sample, one part: counted by torch and by formula; `again` is computed a second time."""

    part: str
    forward: float
    backward: float
    formula: float
    again: float = 0.0


def count(forward: Callable[[], Tensor]) -> tuple[float, float]:
    """Forward and backward FLOPs as torch counts them."""
    known = {torch.ops.aten.convolution_backward: convolution_backward}
    with FlopCounterMode(display=False) as one:
        result = forward()
    with FlopCounterMode(display=False, custom_mapping=known) as two:
        result.sum().backward()
    return float(one.get_total_flops()), float(two.get_total_flops())


def model_of(layers: int) -> Any:
    """The whole model with adapters; its attention as two products, which are counted on every device."""
    config = VideoChat2Config(text_config={**MISTRAL_7B, "num_hidden_layers": layers})
    config._attn_implementation = "eager"
    config.vision_config.checkpoint_blocks = CHECKPOINTED  # type: ignore[union-attr]
    with torch.device("meta"):
        return add_adapters(VideoChat2ForConditionalGeneration(config), Lora()).eval().get_base_model()


def works(model: Any, frames: int, prompt: int, targets: int, keep_ratio: float) -> list[Work]:
    """The five parts of one sample."""
    config, inner = model.config, model.model
    text, scored = config.text_config, int(targets * keep_ratio)
    length = config.visual_tokens + prompt + scored
    width = config.vision_config.hidden_size
    with torch.device("meta"):
        pixels = torch.zeros(1, frames, 3, 224, 224)
        seen = torch.zeros(1, frames * config.vision_config.grid**2, width, requires_grad=True)
        words = torch.zeros(1, INSTRUCTION, dtype=torch.long)
        read = torch.zeros(1, config.visual_tokens, config.qformer_config.hidden_size, requires_grad=True)
        embeds = torch.zeros(1, length, text.hidden_size, requires_grad=True)
        rows = torch.zeros(scored, text.hidden_size, requires_grad=True)
        mask = torch.zeros(1, 1, length, length)
    queries = torch.cat([inner.query_tokens, inner.extra_query_tokens], dim=1)

    def qformer() -> Tensor:
        found = inner.qformer(input_ids=words, query_embeds=queries, encoder_hidden_states=seen)
        return found.last_hidden_state

    def decoder() -> Tensor:
        return inner.language_model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state

    vision = vision_flops(config, frames)
    shape = decoder_shape(text, trainable_linear=0.0, adapter_parameters=adapter_parameters(text, Lora().rank))
    own = forward_flops(shape, [length], scored)
    head = 2.0 * scored * Lora().rank * (text.hidden_size + text.vocab_size)
    tower = vision.patches + vision.blocks
    return [
        Work("vision", *count(lambda: inner.vision(pixels)), 3 * tower - vision.patches, vision.recomputed),
        Work("qformer", *count(qformer), 3 * vision.qformer),
        Work("projector", *count(lambda: inner.projector(read)), 3 * vision.projector),
        Work("decoder", *count(decoder), 2 * own.linear + 3.5 * own.attention + 3 * own.adapters),
        Work("head", *count(lambda: model.lm_head(rows)), 2 * own.head + 3 * head),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--prompt", type=int, default=60, help="template, instruction and question, tokens")
    parser.add_argument("--targets", type=int, default=450, help="a row holds 512 tokens of text at most")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--layers", type=int, default=32, help="of the decoder; fewer for a quick look")
    asked = parser.parse_args()
    model = model_of(asked.layers)
    print(f"TFLOP of one sample: {asked.prompt} prompt tokens, {asked.targets} targets, LoRA of rank {Lora().rank}")
    print("frames  keep  part        forward  backward   counted   formula   share    again")
    for frames in asked.frames:
        for keep in (1.0, asked.keep):
            found = works(model, frames, asked.prompt, asked.targets, keep)
            total = sum(work.forward + work.backward for work in found)
            for work in [*found, whole(found)]:
                done = work.forward + work.backward
                cells = [work.forward, work.backward, done, work.formula]
                counted = "  ".join(f"{cell / 1e12:8.3f}" for cell in cells)
                share, again = f"{done / total:6.1%}", f"{work.again / 1e12:7.2f}"
                print(f"{frames:6d}  {keep:4.2f}  {work.part:10s} {counted}  {share}  {again}")


def whole(parts: list[Work]) -> Work:
    sums = [sum(getattr(work, name) for work in parts) for name in ("forward", "backward", "formula", "again")]
    return Work("all", *sums)


if __name__ == "__main__":
    main()
