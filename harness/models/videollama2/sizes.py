"""Sizes and floating-point operations of VideoLLaMA2, from a recipe alone. No torch, no transformers.

A multiply-add counts two. Norms and element-wise work are left out of the operations, as in the usual counts.

Legend: P patches of a frame, Q visual tokens of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from harness.config.model import TinyVideoLLaMA2Model, VideoLLaMA2Model
from harness.models.footprint import Footprint, Part, footprint, read_sizes, transformer_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.recipe import Recipe

ConnectorType = Literal["stc_connector_v35", "stc_connector", "stp_connector", "linear", "mlp2x_gelu"]
CONNECTORS: Final[tuple[str, ...]] = get_args(ConnectorType)
DEPTH: Final = 4
"""Blocks of a RegNet stage."""
STRIDE: Final = 2
"""Of the sampler, in time, rows and columns."""
SQUEEZE: Final = 0.25
"""Width of squeeze and excitation, as a part of the block's input channels."""
TOWERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
}
"""The two official towers by the last part of their name, so that no config has to be fetched for them."""
QWEN2_7B: Final[dict[str, Any]] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
PROMPT: Final = 40
"""Tokens of template, instruction and question of an ordinary sample; a round number."""
TARGETS: Final = 280
"""The paper's 83.82 M tokens over 300,000 pairs."""
TOY_SIZE: Final = 64
"""Pixels along a side of the toy tower's input."""


def visual_tokens(kind: str, frames: int, grid: int) -> int:
    """Q, of a clip of `frames` frames with grid x grid patches; an image counts as `frames` equal frames. Errors as
    `visual_grid`."""
    time, rows, columns = visual_grid(kind, frames, grid)
    return time * rows * columns


def visual_grid(kind: str, frames: int, grid: int) -> tuple[int, int, int]:
    """Times, rows and columns of the tokens, in the order in which they stand.

    Raises:
        ValueError: an unknown connector, or a clip too short or a grid too small for it.
    """
    if kind in ("linear", "mlp2x_gelu"):
        return 1, grid, grid
    if kind not in CONNECTORS:
        raise ValueError(f"connector {kind!r} is not one of {', '.join(CONNECTORS)}")
    pad = sampler_padding(kind)
    time, side = ((size + 2 * pad - STRIDE) // STRIDE + 1 for size in (frames, grid))
    if time < 1 or side < 1:
        raise ValueError(f"{kind} makes no token of {frames} frames of {grid} x {grid} patches")
    return time, side, side


def sampler_padding(kind: str) -> int:
    return 1 if kind == "stc_connector" else 0


class Config(Protocol):
    """What the formulas read of `VideoLLaMA2Config`, or of `PlainConfig`."""

    @property
    def vision_config(self) -> Any: ...
    @property
    def text_config(self) -> Any: ...
    @property
    def mm_projector_type(self) -> str: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def grid(self) -> int: ...
    @property
    def tower_layers(self) -> int: ...


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


def vision_flops(config: Config) -> VisionFlops:
    """Of one clip of config.num_frames frames."""
    tower = config.num_frames * _tower(config)
    channels = config.vision_config.hidden_size
    hidden = config.text_config.hidden_size
    if config.mm_projector_type in ("linear", "mlp2x_gelu"):
        first = 2.0 * config.grid**2 * channels * hidden
        second = 2.0 * config.grid**2 * hidden**2 if config.mm_projector_type == "mlp2x_gelu" else 0.0
        return VisionFlops(tower, first + second, first + 2 * second, 0.0)
    return _convolutional(config, tower, channels, hidden)


def _tower(config: Config) -> float:
    """One frame."""
    vision: Any = config.vision_config
    width, patches = vision.hidden_size, config.grid**2
    tokens = patches + (vision.model_type == "clip_vision_model")
    embedding = 2.0 * patches * 3 * vision.patch_size**2 * width
    linear = 2.0 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size)
    attention = 4.0 * tokens**2 * width
    return float(embedding + config.tower_layers * (linear + attention))


def _convolutional(config: Config, tower: float, channels: int, hidden: int) -> VisionFlops:
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


# --- a recipe's model ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlainConfig:
    """`Config` without transformers: the fields of the two config.json and what the recipe says."""

    text: Mapping[str, Any]
    tower: Mapping[str, Any]
    mm_projector_type: str
    num_frames: int

    @property
    def vision_config(self) -> Any:
        return SimpleNamespace(**self.tower)

    @property
    def text_config(self) -> Any:
        return SimpleNamespace(**self.text)

    @property
    def grid(self) -> int:
        return int(self.tower["image_size"] // self.tower["patch_size"])

    @property
    def tower_layers(self) -> int:
        """The output of the last layer but one is read."""
        return int(self.tower["num_hidden_layers"]) - 1


def footprint_of(recipe: Recipe) -> Footprint:
    """Of a recipe's model: the tower is frozen, connector and decoder are trained."""
    config, sources = _plain_config(recipe)
    checkpointing = recipe.train.gradient_checkpointing
    work = vision_flops(config)
    hidden, channels = int(config.text["hidden_size"]), int(config.tower["hidden_size"])
    kept, at_once = _kept(config, channels, hidden, checkpointing=checkpointing)
    tower = Part("vision tower", _tower_parameters(config), trained=False, forward=work.tower)
    connector = Part(
        "connector",
        _connector_parameters(config.mm_projector_type, channels, hidden),
        trained=True,
        forward=work.connector,
        backward=work.connector_backward,
        again=work.recomputed if checkpointing else 0.0,
        kept=kept,
        at_once=at_once,
    )
    tokens = visual_tokens(config.mm_projector_type, config.num_frames, config.grid)
    return footprint(
        config.text,
        (tower, connector),
        visual_tokens=tokens,
        side=int(config.tower["image_size"]),
        prompt=PROMPT,
        targets=TARGETS,
        sources=sources,
    )


def _plain_config(recipe: Recipe) -> tuple[PlainConfig, tuple[str, ...]]:
    model, frames = recipe.model, recipe.data.frames
    if isinstance(model, TinyVideoLLaMA2Model):
        text = {
            "model_type": "qwen2",
            "hidden_size": model.hidden,
            "intermediate_size": 2 * model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": max(1, model.heads // 2),
            "vocab_size": model.vocabulary,
        }
        tower = {
            "model_type": "siglip_vision_model",
            "hidden_size": model.tower_hidden,
            "intermediate_size": 2 * model.tower_hidden,
            "num_hidden_layers": model.tower_layers,
            "image_size": TOY_SIZE,
            "patch_size": model.patch,
        }
        return PlainConfig(text, tower, model.projector_type, frames), ("sizes of the recipe",)
    assert isinstance(model, VideoLLaMA2Model)
    root, name = Path(recipe.paths.weights), Path(model.vision_tower).name
    read_text, text_source = read_sizes(root / model.language_model, QWEN2_7B, "Qwen2-7B")
    known = name if name in TOWERS else "siglip-so400m-patch14-384"
    read_tower, tower_source = read_sizes(root / model.vision_tower, TOWERS[known], known)
    return PlainConfig(read_text, read_tower, model.projector_type, frames), (text_source, tower_source)


def _tower_parameters(config: PlainConfig) -> int:
    """Of what is held: all layers, also the last one, which is not computed, and SigLIP's pooling head."""
    tower = config.tower
    width, inner, patches = int(tower["hidden_size"]), int(tower["intermediate_size"]), config.grid**2
    block = transformer_block(width, inner)
    siglip = tower["model_type"] == "siglip_vision_model"
    entry = 3 * int(tower["patch_size"]) ** 2 * width + (width if siglip else 3 * width)  # bias, or class and norm
    positions = (patches if siglip else patches + 1) * width
    pooling = block - 2 * width + width if siglip else 0  # one norm less, and the query
    return entry + positions + int(tower["num_hidden_layers"]) * block + 2 * width + pooling


def _connector_parameters(kind: str, channels: int, hidden: int) -> int:
    if kind == "linear":
        return channels * hidden + hidden
    if kind == "mlp2x_gelu":
        return channels * hidden + hidden + hidden**2 + hidden
    sampler = 0 if kind == "stp_connector" else STRIDE**3 * hidden**2 + hidden
    stages = _stage_parameters(channels, hidden) + _stage_parameters(hidden, hidden)
    return stages + sampler + 2 * (hidden**2 + hidden)


def _stage_parameters(before: int, after: int) -> int:
    total = 0
    for place in range(DEPTH):
        channels = before if place == 0 else after
        squeezed = round(SQUEEZE * channels)
        convolutions = channels * after + 9 * after + after**2 + 6 * after
        excitation = 2 * after * squeezed + squeezed + after
        total += convolutions + excitation + (channels * after + 2 * after if channels != after else 0)
    return total


_BLOCK_KEEPS: Final = 10
"""Maps that a block of a stage keeps for its backward pass: three convolutions' inputs, their norms' and activations'
inputs, the scaled map."""


def _kept(config: PlainConfig, channels: int, hidden: int, *, checkpointing: bool) -> tuple[int, int]:
    """Values kept for the backward pass of one clip, and those of the stage that is computed a second time."""
    frames, patches, kind = config.num_frames, config.grid**2, config.mm_projector_type
    tokens = visual_tokens(kind, frames, config.grid)
    if kind in ("linear", "mlp2x_gelu"):
        return patches * (channels + 2 * hidden), 0
    entry = frames * patches * (channels + hidden)  # what stage 1 reads, and the sampler
    behind = 5 * tokens * hidden
    stage_1, stage_2 = (_BLOCK_KEEPS * DEPTH * cells * hidden for cells in (frames * patches, tokens))
    return (entry + behind, stage_1) if checkpointing else (entry + behind + stage_1 + stage_2, 0)
