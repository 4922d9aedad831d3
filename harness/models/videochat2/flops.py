"""VideoChat2 at the size of its publication, for counting its work against the formulas of `sizes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from harness.models.flops import FullSize, Published, VisionPart, decoder_shape
from harness.models.videochat2.sizes import (
    CHECKPOINTED,
    INSTRUCTION,
    MISTRAL_7B,
    PROMPT,
    TARGETS,
    adapter_parameters,
    vision_flops,
)

if TYPE_CHECKING:
    from torch import Tensor


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


PUBLISHED: Final = Published(full_size, frames=(8, 16), prompt=PROMPT, targets=TARGETS)
