"""What transformers' processors do to the values of a picture behind resizing it: rescaling and normalisation."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.image_processing_backends import TorchvisionBackend

from harness.data.loading.pixels import ColourTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

AS_BYTES: Final[Mapping[str, Any]] = MappingProxyType({"do_rescale": False, "do_normalize": False})
"""What keeps a processor's pictures as they are once they are resized: uint8."""


def in_bytes(pixels: Tensor) -> Tensor:
    """As uint8 where every value is one: some processors put their bytes into an array of float32."""
    as_bytes = pixels.to(torch.uint8)
    return as_bytes if torch.equal(as_bytes.to(pixels.dtype), pixels) else pixels


def own_table(part: Any) -> ColourTable:
    """By the function that a processor of pictures or videos itself calls, with its own settings."""
    return ColourTable.by(
        lambda ramp: part.rescale_and_normalize(
            ramp, part.do_rescale, part.rescale_factor, part.do_normalize, part.image_mean, part.image_std
        )
    )


def has_table(part: Any) -> bool:
    """Whether a processor computes by torch and normalises, so that `own_table` can ask it."""
    return isinstance(part, TorchvisionBackend) and bool(part.do_rescale and part.do_normalize)
