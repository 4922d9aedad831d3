"""The tiny model as a recipe that says nothing else has it, for counting its work against the formulas of `sizes`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from harness.models.flops import FullSize, Published, VisionPart, decoder_shape
from harness.models.tiny.sizes import PROMPT, TARGETS, projector_flops, tower_flops

if TYPE_CHECKING:
    from torch import Tensor


def full_size(frames: int, layers: int | None = None) -> FullSize:
    """The tiny model of a recipe that says nothing else, on the meta device; its vocabulary is that of the tag lists.

    Args:
        layers: of the decoder; None for all.
    """
    from harness.config.model import TinyModel
    from harness.models.tiny.config import TinyTowerConfig, TinyVLMConfig
    from harness.models.tiny.model import TinyVLMForConditionalGeneration
    from harness.models.tiny.processor import TinyProcessor, train_tokenizer
    from harness.models.tiny.stages import TAG_WORDS, decoder_config

    recipe = TinyModel(adapter="tiny")
    tower = TinyTowerConfig()
    processor = TinyProcessor(train_tokenizer(TAG_WORDS), frames=frames, size=tower.image_size, visual_tokens=1)
    text = decoder_config(recipe, processor)
    text.num_hidden_layers = layers or recipe.layers
    config = TinyVLMConfig(vision_config=tower.to_dict(), text_config=text.to_dict(), frames=frames)
    config._attn_implementation = "eager"  # its two products are counted on every device
    with torch.device("meta"):
        model: Any = TinyVLMForConditionalGeneration(config)
        pixels = torch.zeros(frames, 3, tower.image_size, tower.image_size)
        features = torch.zeros(1, frames, tower.channels[-1], tower.grid, tower.grid)
    inner = model.model
    first, second = projector_flops(config)

    def vision() -> Tensor:
        return inner.vision_tower(pixels).last_hidden_state  # type: ignore[no-any-return]

    return FullSize(
        vision=(
            VisionPart("vision", vision, tower_flops(config), trained=False),
            # The features need no gradient: the tower is frozen.
            VisionPart("projector", lambda: inner.projector(features), 2 * first + 3 * second),
        ),
        decoder=inner.language_model,
        head=model.lm_head,
        shape=decoder_shape(text),
        visual_tokens=config.visual_tokens,
    )


PUBLISHED: Final = Published(full_size, frames=(8,), prompt=PROMPT, targets=TARGETS)
