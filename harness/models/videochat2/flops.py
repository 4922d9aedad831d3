"""Floating-point operations of VideoChat2's vision side, from its shapes (a multiply-add counts two).

None of it is saved by token elision: every patch of every frame passes through the vision transformer, and becomes
the same number of visual tokens, whatever the decoder leaves out. Norms and element-wise work are left out.

Legend: P patches of a clip, Q visual tokens, W instruction tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.models.flops import FullSize, Published, VisionPart, decoder_shape

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.videochat2.config import VideoChat2Config

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
    config: VideoChat2Config, frames: int, *, instruction: int = INSTRUCTION, checkpointing: bool = False
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
    projector = 2.0 * config.visual_tokens * config.qformer_config.hidden_size * config.text_config.hidden_size  # type: ignore[union-attr]
    last = 2.0 * patches * width * vision.intermediate_size  # recomputation stops before a block's last product
    chosen = vision.num_hidden_layers if checkpointing else min(vision.checkpoint_blocks, vision.num_hidden_layers)
    again = chosen * (block - last) + (qformer if checkpointing else 0.0)
    return VisionFlops(first, blocks, qformer, projector, again)


def _qformer(config: VideoChat2Config, patches: int, words: int) -> float:
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


def full_size(frames: int, layers: int | None = None) -> FullSize:
    """VideoChat2-7B (Mistral) on the meta device; its attention as two products, which are counted on every device.

    Args:
        layers: of the decoder; None for all.
    """
    from harness.models.videochat2.config import VideoChat2Config
    from harness.models.videochat2.model import VideoChat2ForConditionalGeneration
    from harness.models.videochat2.weights import Lora, add_adapters

    config = VideoChat2Config(text_config={**MISTRAL_7B, "num_hidden_layers": layers or 32})
    config._attn_implementation = "eager"
    sizes: Any = config.vision_config
    sizes.checkpoint_blocks = CHECKPOINTED
    lora, text = Lora(), config.text_config
    with torch.device("meta"):
        model: Any = add_adapters(VideoChat2ForConditionalGeneration(config), lora).eval().get_base_model()
        pixels = torch.zeros(1, frames, 3, sizes.image_size, sizes.image_size)
        seen = torch.zeros(1, frames * sizes.grid**2, sizes.hidden_size, requires_grad=True)
        words = torch.zeros(1, INSTRUCTION, dtype=torch.long)
        read = torch.zeros(1, config.visual_tokens, config.qformer_config.hidden_size, requires_grad=True)  # type: ignore[union-attr]
    inner, vision = model.model, vision_flops(config, frames)
    queries = torch.cat([inner.query_tokens, inner.extra_query_tokens], dim=1)

    def qformer() -> Tensor:
        output = inner.qformer(input_ids=words, query_embeds=queries, encoder_hidden_states=seen)
        return output.last_hidden_state  # type: ignore[no-any-return]

    return FullSize(
        vision=(
            VisionPart(
                "vision",
                lambda: inner.vision(pixels),
                3 * (vision.patches + vision.blocks) - vision.patches,
                vision.recomputed,
            ),
            VisionPart("qformer", qformer, 3 * vision.qformer),
            VisionPart("projector", lambda: inner.projector(read), 3 * vision.projector),
        ),
        decoder=inner.language_model,
        head=model.lm_head,
        shape=decoder_shape(text, trainable_linear=0.0, adapter_parameters=adapter_parameters(text, lora.rank)),
        visual_tokens=config.visual_tokens,
        head_adapter_parameters=lora.rank * (text.hidden_size + text.vocab_size),  # type: ignore[union-attr]
        note=f", LoRA of rank {lora.rank}",
    )


PUBLISHED: Final = Published(full_size, frames=(8, 16), prompt=60, targets=450)
"""A row holds 512 tokens of text at most."""
