"""VideoLLaMA2 at the size of its publication, for counting its work against the formulas of `sizes`."""

from __future__ import annotations

from typing import Any, Final

import torch

from harness.models.flops import FullSize, Published, VisionPart, decoder_shape
from harness.models.videollama2.sizes import PROMPT, QWEN2_7B, TARGETS, TOWERS, vision_flops


def full_size(frames: int, layers: int | None = None) -> FullSize:
    """VideoLLaMA2.1-7B on the meta device; its attention as two products, which are counted on every device.

    Args:
        layers: of the decoder; None for all.
    """
    from harness.models.videollama2.config import VideoLLaMA2Config
    from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration

    text = {**QWEN2_7B, "num_hidden_layers": layers or QWEN2_7B["num_hidden_layers"]}
    tower = dict(TOWERS["siglip-so400m-patch14-384"])
    config = VideoLLaMA2Config(text_config=text, vision_config=tower, num_frames=frames)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model: Any = VideoLLaMA2ForConditionalGeneration(config)
        pixels = torch.zeros(frames, 3, tower["image_size"], tower["image_size"])
        features = torch.zeros(frames, config.grid**2, tower["hidden_size"])
    inner, vision = model.model, vision_flops(config)
    return FullSize(
        vision=(
            VisionPart("vision", lambda: inner.vision_tower(pixels), vision.tower, trained=False),
            VisionPart(
                "connector",
                lambda: inner.mm_projector(features, [frames], frames),
                vision.connector + vision.connector_backward,
                vision.recomputed,
            ),
        ),
        decoder=inner.language_model,
        head=model.lm_head,
        shape=decoder_shape(config.text_config),
        visual_tokens=config.visual_tokens,
        checkpointed=True,
    )


PUBLISHED: Final = Published(full_size, frames=(8, 16), prompt=PROMPT, targets=TARGETS)
