"""The configuration of the tiny model: tower, frames and the decoder's own.

Legend: P visual tokens of a clip.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from harness.models.tiny.sizes import CHANNELS, KERNELS, visual_tokens


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
    frames_a_token: int = 2
    cells_a_token: int = 2
    placeholder_token_id: int = 1
    tie_word_embeddings: bool = True

    @property
    def visual_tokens(self) -> int:
        """P, of one clip."""
        grid = self.vision_config.grid  # type: ignore[union-attr]
        return visual_tokens(self.frames, grid, self.frames_a_token, self.cells_a_token)


def check_sizes(config: TinyVLMConfig) -> None:
    """Frames and cells must divide into visual tokens.

    Raises:
        ValueError: with the numbers that do.
    """
    grid = config.vision_config.grid  # type: ignore[union-attr]
    stride = 2 ** len(config.vision_config.channels) * config.cells_a_token  # type: ignore[union-attr]
    if grid < config.cells_a_token or config.vision_config.image_size % stride:  # type: ignore[union-attr]
        size = config.vision_config.image_size  # type: ignore[union-attr]
        raise ValueError(f"image size {size} is not a multiple of {stride}")
    if config.frames < config.frames_a_token or config.frames % config.frames_a_token:
        raise ValueError(f"frames must be a multiple of {config.frames_a_token}, got {config.frames}")
