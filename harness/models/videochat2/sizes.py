"""Sizes and floating-point operations of VideoChat2, from a recipe alone. No torch, no transformers.

A multiply-add counts two. None of the vision side's work is saved by token elision: every patch of every frame passes
through the vision transformer, and becomes the same number of visual tokens, whatever the decoder leaves out. Norms
and element-wise work are left out.

Legend: P patches of a clip, Q visual tokens, W instruction tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol

from harness.config.model import TinyVideoChat2Model, VideoChat2Model
from harness.models.footprint import Footprint, Part, footprint, read_sizes, transformer_block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.recipe import Recipe

INSTRUCTION: Final = 32
"""W where nobody counted it."""
CHECKPOINTED: Final = 18
"""Blocks of the vision transformer that the official stage 3 computes again."""
MISTRAL_7B: Final[dict[str, Any]] = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_window": None,
}
UMT_L: Final[dict[str, int]] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "image_size": 224,
    "patch_size": 16,
}
"""The vision transformer as VideoChat2 builds it."""
QFORMER: Final[dict[str, int]] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "cross_attention_frequency": 2,
    "max_position_embeddings": 512,
    "vocab_size": 30523,
    "encoder_hidden_size": 1024,
}
"""BERT-base, with one word more, [DEC]."""
QUERIES: Final = 96
"""32 of stage 1 and 64 of stage 2."""
TOY_SIZE: Final = 64
"""Pixels along a side of the toy vision transformer's input."""
TOY_WORDS: Final = 64
"""Positions of the toy QFormer's text."""
PROMPT: Final = 60
"""Tokens of template, instruction and question of an ordinary sample; a round number."""
TARGETS: Final = 450
"""A row holds 512 tokens of text at most."""


class Config(Protocol):
    """What the formulas read of `VideoChat2Config`, or of `PlainConfig`."""

    @property
    def vision_config(self) -> Any: ...
    @property
    def qformer_config(self) -> Any: ...
    @property
    def text_config(self) -> Any: ...
    @property
    def visual_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class VisionFlops:
    """Forward FLOPs of one clip.

    Attributes:
        patches: the first layer, which needs no gradient of its input.
        blocks: of the vision transformer.
        qformer: QFormer.
        projector: into the decoder's width.
        recomputed: of the blocks that are computed a second time in the backward pass.
    """

    patches: float
    blocks: float
    qformer: float
    projector: float
    recomputed: float

    @property
    def forward(self) -> float:
        return self.patches + self.blocks + self.qformer + self.projector

    @property
    def backward(self) -> float:
        """Gradients of inputs and weights, without what is computed again."""
        return 2.0 * self.forward - self.patches

    @property
    def backward_ratio(self) -> float:
        """Backward work, with what is computed again, as a multiple of the forward work."""
        return (self.backward + self.recomputed) / self.forward


def vision_flops(
    config: Config, frames: int, *, instruction: int = INSTRUCTION, checkpointing: bool = False
) -> VisionFlops:
    """Of one clip.

    Args:
        instruction: W, tokens that the QFormer reads.
        checkpointing: whether every layer is computed again; without it, `checkpoint_blocks` of the vision
            transformer are.
    """
    vision: Any = config.vision_config
    width, patches = vision.hidden_size, frames * vision.grid**2
    first = 2.0 * patches * 3 * vision.patch_size**2 * width
    block = 2.0 * patches * (4 * width**2 + 2 * width * vision.intermediate_size) + 4.0 * patches**2 * width
    blocks = vision.num_hidden_layers * block
    qformer = _qformer(config, patches, instruction)
    projector = 2.0 * config.visual_tokens * config.qformer_config.hidden_size * config.text_config.hidden_size
    last = 2.0 * patches * width * vision.intermediate_size  # recomputation stops before a block's last product
    chosen = vision.num_hidden_layers if checkpointing else min(vision.checkpoint_blocks, vision.num_hidden_layers)
    again = chosen * (block - last) + (qformer if checkpointing else 0.0)
    return VisionFlops(first, blocks, qformer, projector, again)


def _qformer(config: Config, patches: int, words: int) -> float:
    read: Any = config.qformer_config
    width, queries = read.hidden_size, config.visual_tokens
    tokens = queries + words
    own = 8.0 * tokens * width**2 + 4.0 * tokens**2 * width
    perceptrons = 4.0 * tokens * width * read.intermediate_size
    cross = (
        4.0 * queries * width**2 + 4.0 * patches * read.encoder_hidden_size * width + 4.0 * queries * patches * width
    )
    crossing = len(range(0, read.num_hidden_layers, read.cross_attention_frequency))
    return float(read.num_hidden_layers * (own + perceptrons) + crossing * cross)


def adapter_parameters(text: Any, rank: int) -> int:
    """Parameters of the adapters in the decoder's layers, the head's not counted."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    queries, keys = head * text.num_attention_heads, head * text.num_key_value_heads
    attention = 2 * (text.hidden_size + queries) + 2 * (text.hidden_size + keys)
    return int(text.num_hidden_layers * rank * (attention + 3 * (text.hidden_size + text.intermediate_size)))


# --- a recipe's model ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlainConfig:
    """`Config` without transformers."""

    text: Mapping[str, Any]
    vision: Mapping[str, int]
    qformer: Mapping[str, int]
    visual_tokens: int

    @property
    def grid(self) -> int:
        return self.vision["image_size"] // self.vision["patch_size"]

    @property
    def vision_config(self) -> Any:
        return SimpleNamespace(**self.vision, grid=self.grid)

    @property
    def qformer_config(self) -> Any:
        return SimpleNamespace(**self.qformer)

    @property
    def text_config(self) -> Any:
        return SimpleNamespace(**self.text)


def footprint_of(recipe: Recipe) -> Footprint:
    """Of a recipe's model: the vision side is trained whole, the decoder through adapters."""
    model, frames = recipe.model, recipe.data.frames
    assert isinstance(model, VideoChat2Model | TinyVideoChat2Model)
    config, source = _plain_config(recipe, model)
    checkpointing = recipe.train.gradient_checkpointing
    work = vision_flops(config, frames, checkpointing=checkpointing)
    qformer_again = work.qformer if checkpointing else 0.0
    kept, at_once = _vision_keeps(config, frames, checkpointing=checkpointing)
    own, reads = work.patches + work.blocks, _qformer_keeps(config, frames)
    width, hidden = config.qformer["hidden_size"], int(config.text["hidden_size"])
    tower = Part(
        "vision tower",
        _vision_parameters(config),
        trained=True,
        forward=own,
        backward=2 * own - work.patches,
        again=work.recomputed - qformer_again,
        kept=kept,
        at_once=at_once,
    )
    qformer = Part(
        "qformer",
        _qformer_parameters(config),
        trained=True,
        forward=work.qformer,
        backward=2 * work.qformer,
        again=qformer_again,
        kept=0 if checkpointing else reads,
        at_once=reads if checkpointing else 0,
    )
    projector = Part(
        "projector",
        (width + 1) * hidden,
        trained=True,
        forward=work.projector,
        backward=2 * work.projector,
        kept=config.visual_tokens * width,
    )
    rank = model.lora.rank
    return footprint(
        config.text,
        (tower, qformer, projector),
        visual_tokens=config.visual_tokens,
        side=config.vision["image_size"],
        prompt=PROMPT,
        targets=TARGETS,
        sources=(source,),
        adapters=adapter_parameters(config.text_config, rank),
        head_adapters=rank * (hidden + int(config.text["vocab_size"])),
    )


def _plain_config(recipe: Recipe, model: VideoChat2Model | TinyVideoChat2Model) -> tuple[PlainConfig, str]:
    if isinstance(model, VideoChat2Model):
        folder = Path(recipe.paths.weights) / model.language_model
        text, source = read_sizes(folder, MISTRAL_7B, "Mistral-7B")
        vision = {**UMT_L, "checkpoint_blocks": model.vision_checkpointing}
        return PlainConfig(text, vision, QFORMER, QUERIES), f"{source}; UMT-L and QFormer as released"
    text = {
        "model_type": "mistral",
        "hidden_size": model.hidden,
        "intermediate_size": 2 * model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": max(1, model.heads // 2),
        "vocab_size": model.vocabulary,
    }
    vision = {
        "hidden_size": model.vision_hidden,
        "intermediate_size": 2 * model.vision_hidden,
        "num_hidden_layers": model.vision_layers,
        "image_size": TOY_SIZE,
        "patch_size": model.patch,
        "checkpoint_blocks": 0,
    }
    qformer = {
        **QFORMER,
        "hidden_size": model.qformer_hidden,
        "intermediate_size": 2 * model.qformer_hidden,
        "num_hidden_layers": model.qformer_layers,
        "max_position_embeddings": TOY_WORDS,
        "vocab_size": 2 * TOY_WORDS,
        "encoder_hidden_size": model.vision_hidden,
    }
    return PlainConfig(text, vision, qformer, 2 * model.queries), "sizes of the recipe"


def _vision_parameters(config: PlainConfig) -> int:
    """With the norm behind it. Keys have no bias."""
    vision = config.vision
    width = vision["hidden_size"]
    block = transformer_block(width, vision["intermediate_size"]) - width
    entry = 3 * vision["patch_size"] ** 2 * width + width
    return entry + vision["num_hidden_layers"] * block + 2 * width


def _qformer_parameters(config: PlainConfig) -> int:
    """With the queries. Queries and words have a perceptron each."""
    read = config.qformer
    width, inner, seen = read["hidden_size"], read["intermediate_size"], read["encoder_hidden_size"]
    attention = 4 * (width**2 + width) + 2 * width
    crossing = 2 * (width**2 + width) + 2 * (seen * width + width) + 2 * width
    perceptron = 2 * width * inner + inner + width + 2 * width
    layers = read["num_hidden_layers"]
    crossings = len(range(0, layers, read["cross_attention_frequency"]))
    embeddings = (read["vocab_size"] + read["max_position_embeddings"] + config.visual_tokens) * width + 2 * width
    return embeddings + layers * (attention + 2 * perceptron) + crossings * crossing


def _vision_keeps(config: PlainConfig, frames: int, *, checkpointing: bool) -> tuple[int, int]:
    """Values kept of one clip, and those of the block that is computed a second time."""
    vision = config.vision
    patches, width, layers = frames * config.grid**2, vision["hidden_size"], vision["num_hidden_layers"]
    block = 8 * width + 2 * vision["intermediate_size"]
    again = layers if checkpointing else min(vision["checkpoint_blocks"], layers)
    return patches * ((layers - again) * block + again * width), patches * block if again else 0


def _qformer_keeps(config: PlainConfig, frames: int) -> int:
    """Values of one clip."""
    read = config.qformer
    tokens = config.visual_tokens + INSTRUCTION
    own = tokens * (10 * read["hidden_size"] + 2 * read["intermediate_size"])
    crossings = len(range(0, read["num_hidden_layers"], read["cross_attention_frequency"]))
    seen = 2 * frames * config.grid**2 * read["hidden_size"]
    return read["num_hidden_layers"] * own + crossings * seen
