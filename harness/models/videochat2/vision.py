"""UMT-L/16, VideoChat2's vision transformer: every patch of every frame attends to all others.

Legend: N clips, T frames, H and W pixels, G patches along a side, P = T x G x G patches of a clip, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.models.videochat2.config import UMTConfig

TUBELET = 1
"""Frames of a patch."""
TRAINED_SIZE = 224
"""Pixels along a side, in the training of the released weights."""
TABLE_SIDE = 14
"""Patches along a side, likewise."""


class UMTAttention(nn.Module):
    """Self-attention over all patches of a clip; queries and values have a bias, keys have none."""

    is_causal = False

    def __init__(self, config: UMTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_NPC: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = F.linear(hidden_NPC, self.qkv.weight, bias)
        query, key, value = qkv.view(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _eager)
        out, _ = attend(self, query, key, value, None, dropout=0.0, scaling=query.shape[-1] ** -0.5)
        done: Tensor = self.proj(out.flatten(2))
        return done


class UMTMlp(nn.Module):
    """Two layers with the exact GELU."""

    def __init__(self, config: UMTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_NPC: Tensor) -> Tensor:
        done: Tensor = self.fc2(F.gelu(self.fc1(hidden_NPC)))
        return done


class UMTBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """Norm, attention, norm, perceptron; two residual branches."""

    def __init__(self, config: UMTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = UMTAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = UMTMlp(config)

    def forward(self, hidden_NPC: Tensor) -> Tensor:
        hidden_NPC = hidden_NPC + self.attn(self.norm1(hidden_NPC))
        done: Tensor = hidden_NPC + self.mlp(self.norm2(hidden_NPC))
        return done


class PatchEmbed(nn.Module):
    """A frame's patches, one linear map each."""

    def __init__(self, config: UMTConfig) -> None:
        super().__init__()
        size = (TUBELET, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixels_NTCHW: Tensor) -> Tensor:
        done: Tensor = self.proj(pixels_NTCHW.transpose(1, 2)).flatten(2).transpose(1, 2)
        return done


class UMTModel(PreTrainedModel):  # type: ignore[misc]
    """Patches, fixed positions and blocks; there is no norm behind them."""

    config_class = UMTConfig
    base_model_prefix = "vision"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: UMTConfig) -> None:
        super().__init__(config)
        if config.image_size % config.patch_size:
            raise ValueError(
                f"image size {config.image_size} is not a multiple of the patch size {config.patch_size}"
            )
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList([UMTBlock(config) for _ in range(config.num_hidden_layers)])
        self._positions: dict[tuple[int, torch.device], Tensor] = {}
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Normalised clips [N, T, 3, H, W] to patch features [N, P, C], frame by frame, row by row."""
        hidden_NPC: Tensor = self.patch_embed(pixel_values)
        hidden_NPC = hidden_NPC + self.positions(pixel_values.shape[1], hidden_NPC.device).to(hidden_NPC.dtype)
        again = self.config.checkpoint_blocks if self.training and torch.is_grad_enabled() else 0
        for place, block in enumerate(self.blocks):
            if place < again and not block.gradient_checkpointing:
                hidden_NPC = checkpoint(block, hidden_NPC, use_reentrant=False)
            else:
                hidden_NPC = block(hidden_NPC)
        return hidden_NPC

    def positions(self, frames: int, device: torch.device) -> Tensor:
        """The fixed position vectors of a clip, [1, P, C]; computed once for each number of frames."""
        key = (frames, device)
        if key not in self._positions:
            config: UMTConfig = self.config
            self._positions[key] = position_table(config, frames).to(device)
        return self._positions[key]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, UMTAttention):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)


def position_table(config: UMTConfig, frames: int) -> Tensor:
    """Position vectors float32 [1, P, C]. A clip's are those of `table_frames` frames, stretched over time; an image
    has a table of its own, of one frame. For pictures of another size than 224 pixels the table is that of 14 x 14
    patches, stretched over the picture first."""
    side = config.grid if config.image_size == TRAINED_SIZE else TABLE_SIDE
    depth = 1 if frames == 1 else config.table_frames
    table = _sines(depth * side**2, config.hidden_size).view(depth, side, side, -1)
    if side != config.grid:
        size = (config.grid, config.grid)
        wide = F.interpolate(table.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
        table = wide.permute(0, 2, 3, 1)
    table = table.reshape(depth, config.grid**2, -1)
    if depth != frames:
        long = F.interpolate(table.permute(1, 2, 0), size=frames, mode="linear", align_corners=False)
        table = long.permute(2, 0, 1)
    return table.flatten(0, 1)[None].contiguous()


def _sines(count: int, channels: int) -> Tensor:
    """Sines in the even channels and cosines in the odd ones, of wavelengths 2 pi to 20000 pi; counted on through
    time, rows and columns. float32 [count, channels], computed in double precision."""
    exponent = 2 * (np.arange(channels) // 2) / channels
    angle = np.arange(count)[:, None] / np.power(10000.0, exponent)[None]
    angle[:, 0::2] = np.sin(angle[:, 0::2])
    angle[:, 1::2] = np.cos(angle[:, 1::2])
    return torch.from_numpy(angle.astype(np.float32))


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Two products and a softmax, for whoever asks for `attn_implementation="eager"`."""
    weights = (query * scaling @ key.transpose(-1, -2)).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), None
