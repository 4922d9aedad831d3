"""Sizes and floating-point operations of the tiny model, from a recipe alone. No torch, no transformers.

A multiply-add counts two. Norms and activations are left out of the operations, as in the usual counts.

Legend: P visual tokens of a clip.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

FRAMES_A_TOKEN: Final = 2
CELLS_A_TOKEN: Final = 2
"""A visual token is CELLS_A_TOKEN x CELLS_A_TOKEN cells of FRAMES_A_TOKEN neighbouring frames."""
PROJECTOR_WIDTH: Final = 2
"""Inner width of the projector, as a multiple of the decoder's hidden size."""
CHANNELS: Final = (16, 32, 64, 64)
KERNELS: Final = (5, 3, 3, 3)
"""Of the tower's convolutions, each of stride 2."""
INTERMEDIATE: Final = 2
"""Width of the decoder's perceptron, as a multiple of its hidden size."""
PROMPT: Final = 20
TARGETS: Final = 60
"""Round numbers, not measured ones: conversations about the shapes differ."""


class Config(Protocol):
    """What the formulas read of `TinyVLMConfig`, or of `PlainConfig`."""

    @property
    def vision_config(self) -> Any: ...
    @property
    def text_config(self) -> Any: ...
    @property
    def frames(self) -> int: ...
    @property
    def visual_tokens(self) -> int: ...


def visual_tokens(frames: int, grid: int) -> int:
    """P: merged frame pairs times merged 2 x 2 cells."""
    return (frames // FRAMES_A_TOKEN) * (grid // CELLS_A_TOKEN) ** 2


def tower_flops(config: Config) -> float:
    """Forward pass of the tower for one clip; it is frozen."""
    vision: Any = config.vision_config
    side, before, frame = vision.image_size, 3, 0
    for channels, kernel in zip(vision.channels, vision.kernels, strict=True):
        side //= 2
        frame += 2 * kernel**2 * before * channels * side**2
        before = channels
    return float(config.frames * frame)


def projector_flops(config: Config) -> tuple[float, float]:
    """Forward pass of the projector's two layers for one clip."""
    vision: Any = config.vision_config
    width = vision.channels[-1] * CELLS_A_TOKEN**2 * FRAMES_A_TOKEN
    hidden = config.text_config.hidden_size
    inner = PROJECTOR_WIDTH * hidden
    return 2.0 * config.visual_tokens * width * inner, 2.0 * config.visual_tokens * inner * hidden


def vision_flops(config: Config) -> float:
    """Forward pass of tower and projector for one clip."""
    return tower_flops(config) + sum(projector_flops(config))
