"""Sizes and floating-point operations of VideoChat2, from a recipe alone. No torch, no transformers.

A multiply-add counts two. None of the vision side's work is saved by token elision: every patch of every frame passes
through the vision transformer, and becomes the same number of visual tokens, whatever the decoder leaves out. Norms
and element-wise work are left out.

Legend: P patches of a clip, Q visual tokens, W instruction tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

INSTRUCTION: Final = 32
"""W where nobody counted it."""
CHECKPOINTED: Final = 18
"""Blocks of the vision transformer that the official stage 3 computes again."""
MISTRAL_7B: Final[dict[str, Any]] = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_window": None,
}
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
