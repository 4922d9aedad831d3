"""Sizes and floating-point operations of the tiny model, from a recipe alone. No torch, no transformers.

A multiply-add counts two. Norms and activations are left out of the operations, as in the usual counts.

Legend: P visual tokens of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol

from harness.config.model import TinyModel
from harness.models.footprint import Footprint, Part, footprint, read_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.recipe import Recipe

PROJECTOR_WIDTH: Final = 2
"""Inner width of the projector, as a multiple of the decoder's hidden size."""
CHANNELS: Final = (16, 32, 64, 64)
KERNELS: Final = (5, 3, 3, 3)
"""Of the tower's convolutions, each of stride 2."""
INTERMEDIATE: Final = 2
"""Width of the decoder's perceptron, as a multiple of its hidden size."""
VOCABULARY: Final = 285
"""Entries of the tokenizer that `tiny_smoke_regate` trains; the others' differ by a few words."""
MARKERS: Final = 7
"""Of the template, which are added to the vocabulary of a decoder that is given."""
SMOLLM2_135M: Final[Mapping[str, Any]] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""Of HuggingFaceTB/SmolLM2-135M-Instruct, by its config.json."""
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
    def frames_a_token(self) -> int: ...
    @property
    def cells_a_token(self) -> int: ...
    @property
    def visual_tokens(self) -> int: ...


def visual_tokens(frames: int, grid: int, frames_a_token: int, cells_a_token: int) -> int:
    """P: a token is `cells_a_token` x `cells_a_token` cells of `frames_a_token` neighbouring frames."""
    return (frames // frames_a_token) * (grid // cells_a_token) ** 2


def features_a_token(config: Config) -> int:
    """Tower features that the projector merges into one token."""
    vision: Any = config.vision_config
    return int(vision.channels[-1] * config.cells_a_token**2 * config.frames_a_token)


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
    width = features_a_token(config)
    hidden = config.text_config.hidden_size
    inner = PROJECTOR_WIDTH * hidden
    return 2.0 * config.visual_tokens * width * inner, 2.0 * config.visual_tokens * inner * hidden


def vision_flops(config: Config) -> float:
    """Forward pass of tower and projector for one clip."""
    return tower_flops(config) + sum(projector_flops(config))


# --- a recipe's model ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlainConfig:
    """`Config` without transformers."""

    text: Mapping[str, Any]
    frames: int
    size: int
    frames_a_token: int
    cells_a_token: int

    @property
    def vision_config(self) -> Any:
        return SimpleNamespace(image_size=self.size, channels=CHANNELS, kernels=KERNELS)

    @property
    def text_config(self) -> Any:
        return SimpleNamespace(**self.text)

    @property
    def visual_tokens(self) -> int:
        grid = self.size // 2 ** len(CHANNELS)
        return visual_tokens(self.frames, grid, self.frames_a_token, self.cells_a_token)


def footprint_of(recipe: Recipe) -> Footprint:
    """Of a recipe's model: the tower is frozen, projector and decoder are trained."""
    model = recipe.model
    assert isinstance(model, TinyModel)
    text, sources = _text(recipe, model)
    hidden = int(text["hidden_size"])
    size = getattr(recipe.data, "size", 64)
    config = PlainConfig(text, recipe.data.frames, size, model.frames_a_token, model.cells_a_token)
    first, second = projector_flops(config)
    width = features_a_token(config)
    inner = PROJECTOR_WIDTH * hidden
    tower = Part("vision tower", _tower_parameters(), trained=False, forward=tower_flops(config))
    projector = Part(
        "projector",
        width * inner + inner + (inner + 1 + config.visual_tokens) * hidden,  # and a position for each token
        trained=True,
        forward=first + second,
        backward=first + 2 * second,
        kept=config.visual_tokens * (width + 2 * inner),
    )
    return footprint(
        text,
        (tower, projector),
        visual_tokens=config.visual_tokens,
        side=config.size,
        prompt=PROMPT,
        targets=TARGETS,
        sources=sources,
        tower_output=config.frames * CHANNELS[-1] * (config.size // 2 ** len(CHANNELS)) ** 2,
    )


def _text(recipe: Recipe, model: TinyModel) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The decoder's sizes, and where they are from."""
    if model.decoder is not None:
        fields, source = read_sizes(Path(recipe.paths.weights) / model.decoder, SMOLLM2_135M, "SmolLM2-135M-Instruct")
        return {**fields, "vocab_size": int(fields["vocab_size"]) + MARKERS}, (source,)
    text = {
        "model_type": "qwen2",
        "hidden_size": model.hidden,
        "intermediate_size": INTERMEDIATE * model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    return text, (f"sizes of the recipe, and a vocabulary of {VOCABULARY} entries",)


def _tower_parameters() -> int:
    """Convolutions with biases, and a norm behind each."""
    total, before = 0, 3
    for channels, kernel in zip(CHANNELS, KERNELS, strict=True):
        total += kernel**2 * before * channels + 3 * channels
        before = channels
    return total
