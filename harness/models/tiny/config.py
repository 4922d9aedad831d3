"""The configuration of the tiny model: tower, frames and the decoder's own.

Legend: P visual tokens of a clip.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from harness.models.tiny.sizes import CELLS_A_TOKEN, CHANNELS, FRAMES_A_TOKEN, KERNELS, visual_tokens


class TinyTowerConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of the vision tower. Each entry of `channels` and `kernels` is one convolution of stride 2."""

    model_type = "regate_tiny_tower"

    channels: list[int] | tuple[int, ...] = CHANNELS
    kernels: list[int] | tuple[int, ...] = KERNELS
    image_size: int = 64

    @property
    def grid(self) -> int:
        """Cells along one side of the feature map."""
        return self.image_size // int(2 ** len(self.channels))


class TinyVLMConfig(PreTrainedConfig):  # type: ignore[misc]
    """Tower, number of frames and the decoder's own config."""

    model_type = "regate_tiny_vlm"
    sub_configs_defaults = {  # noqa: RUF012 - a ClassVar of transformers
        "vision_config": SubConfigSpec(config_class=TinyTowerConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    frames: int = 8
    placeholder_token_id: int = 1
    tie_word_embeddings: bool = True

    @property
    def visual_tokens(self) -> int:
        """P, of one clip."""
        return visual_tokens(self.frames, self.vision_config.grid)  # type: ignore[union-attr]


def check_sizes(config: TinyVLMConfig) -> None:
    """Frames and cells must divide into visual tokens.

    Raises:
        ValueError: with the numbers that do.
    """
    grid = config.vision_config.grid  # type: ignore[union-attr]
    stride = 2 ** len(config.vision_config.channels) * CELLS_A_TOKEN  # type: ignore[union-attr]
    if grid < CELLS_A_TOKEN or config.vision_config.image_size % stride:  # type: ignore[union-attr]
        size = config.vision_config.image_size  # type: ignore[union-attr]
        raise ValueError(f"image size {size} is not a multiple of {stride}")
    if config.frames < FRAMES_A_TOKEN or config.frames % FRAMES_A_TOKEN:
        raise ValueError(f"frames must be a multiple of {FRAMES_A_TOKEN}, got {config.frames}")
