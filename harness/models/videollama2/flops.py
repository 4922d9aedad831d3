"""Floating-point operations of VideoLLaMA2's vision side, from its shapes (a multiply-add counts two).

Norms and element-wise work are left out, as in the usual counts.

Legend: P patches of a frame, Q visual tokens of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.models.flops import FullSize, Published, VisionPart, decoder_shape
from harness.models.videollama2.connector import DEPTH, SQUEEZE, STRIDE, visual_tokens

if TYPE_CHECKING:
    from harness.models.videollama2.config import VideoLLaMA2Config

QWEN2_7B: Final[dict[str, Any]] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


@dataclass(frozen=True, slots=True)
class VisionFlops:
    """Of one clip.

    Attributes:
        tower: forward pass of the layers that are computed; there is no backward pass.
        connector: forward pass.
        connector_backward: input and weight gradients; the first layers need no input gradient.
        recomputed: what activation checkpointing computes a second time.
    """

    tower: float
    connector: float
    connector_backward: float
    recomputed: float

    def backward_ratio(self, *, checkpointing: bool) -> float:
        """Backward work as a multiple of the forward work of tower and connector."""
        extra = self.recomputed if checkpointing else 0.0
        return (self.connector_backward + extra) / (self.tower + self.connector)


def vision_flops(config: VideoLLaMA2Config) -> VisionFlops:
    """Of one clip of config.num_frames frames."""
    tower = config.num_frames * _tower(config)
    channels = config.vision_config.hidden_size  # type: ignore[union-attr]
    hidden = config.text_config.hidden_size  # type: ignore[union-attr]
    if config.mm_projector_type in ("linear", "mlp2x_gelu"):
        first = 2.0 * config.grid**2 * channels * hidden
        second = 2.0 * config.grid**2 * hidden**2 if config.mm_projector_type == "mlp2x_gelu" else 0.0
        return VisionFlops(tower, first + second, first + 2 * second, 0.0)
    return _convolutional(config, tower, channels, hidden)


def _tower(config: VideoLLaMA2Config) -> float:
    """One frame."""
    vision: Any = config.vision_config
    width, patches = vision.hidden_size, config.grid**2
    tokens = patches + (vision.model_type == "clip_vision_model")
    embedding = 2.0 * patches * 3 * vision.patch_size**2 * width
    linear = 2.0 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size)
    attention = 4.0 * tokens**2 * width
    return float(embedding + config.tower_layers * (linear + attention))


def _convolutional(config: VideoLLaMA2Config, tower: float, channels: int, hidden: int) -> VisionFlops:
    frames, kind = config.num_frames, config.mm_projector_type
    tokens = visual_tokens(kind, frames, config.grid)
    side = (config.grid + (2 if kind == "stc_connector" else 0)) // STRIDE
    later = tokens // side**2  # frames behind the sampler
    before, free = _stage(channels, hidden, config.grid**2, frames)
    behind, _ = _stage(hidden, hidden, side**2, later)
    sampler = 0.0 if kind == "stp_connector" else 2.0 * tokens * hidden**2 * STRIDE**3
    readout = 4.0 * tokens * hidden**2
    total = before + behind + sampler + readout
    return VisionFlops(tower, total, 2 * total - free, before + behind)


def _stage(before: int, after: int, cells: int, frames: int) -> tuple[float, float]:
    """Forward FLOPs of a stage, and those of its layers that read the stage's input."""
    total = entry = 0.0
    for place in range(DEPTH):
        channels = before if place == 0 else after
        squeezed = round(SQUEEZE * channels)
        reads = 2.0 * cells * channels * after * (2 if channels != after else 1)
        entry = reads if place == 0 else entry
        total += reads + 2.0 * cells * (9 * after + after**2) + 4.0 * after * squeezed
    return frames * total, frames * entry


def full_size(frames: int, layers: int | None = None) -> FullSize:
    """VideoLLaMA2.1-7B on the meta device; its attention as two products, which are counted on every device.

    Args:
        layers: of the decoder; None for all.
    """
    from harness.models.videollama2.config import TOWERS, VideoLLaMA2Config
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


PUBLISHED: Final = Published(full_size, frames=(8, 16), prompt=40, targets=280)
"""Targets: the paper's 83.82 M tokens over 300,000 pairs."""
