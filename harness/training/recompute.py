"""Which layers of the decoder are computed a second time in the backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.common.errors import RecipeError
from regate.wrapping import decoder_of

if TYPE_CHECKING:
    from torch import nn


def recompute_first(student: nn.Module, count: int | None) -> int:
    """Limit gradient checkpointing, which is on, to the decoder's first layers; what is before the decoder stays as
    it is. The last layers keep what they computed: they give it up first.

    Args:
        count: of layers; None for all.

    Returns:
        How many layers are recomputed.

    Raises:
        RecipeError: the decoder's layers cannot be recomputed one without the other.
    """
    decoder: Any = decoder_of(student)
    layers = list(decoder.layers)
    if count is None or count >= len(layers):
        return len(layers)
    if not all(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        raise RecipeError(
            f"train.recompute: {count}: {type(decoder).__name__} recomputes all of its {len(layers)} layers or none",
            hint="leave train.recompute out",
        )
    for layer in layers[count:]:
        layer.gradient_checkpointing = False
    return count
