"""Pixels on their way to a model: a byte a value until they are on the device that computes.

A clip in float32 is four times as many bytes, through shared memory, the machine's memory and to the GPU, and says
nothing more: what a model reads of a picture is one of 256 values of each colour.

Legend: C colours, V the 256 values, N pictures or rows of patches, K values of one colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.common.transfer import to_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ColourTable:
    """What a model reads for each value of each colour: rescaling and normalisation as one look-up, which gives the
    same bits on every device and in any order.

    Attributes:
        values: float32 CV, as bytes: they go with every batch.
    """

    values: bytes

    @classmethod
    def by(cls, normalise: Callable[[Tensor], Tensor]) -> ColourTable:
        """The table of a function that treats every value of a colour alike.

        Args:
            normalise: uint8 [1, 3, H, W] to float32 of the same shape.
        """
        ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256).contiguous()
        table_CV = normalise(ramp).reshape(3, 256)
        assert table_CV.dtype == torch.float32, table_CV.dtype
        return cls(table_CV.contiguous().numpy().tobytes())

    def look_up(self, pixels: Tensor) -> Tensor:
        """float32 of uint8 pixels, on their device.

        Args:
            pixels: pictures [..., 3, H, W], or rows of patches [N, 3 K], one colour behind the other.
        """
        values = pixels.shape[1] // 3 if pixels.dim() == 2 else pixels.shape[-2:].numel()
        pixels_NCK = pixels.reshape(-1, 3, values)
        table_CV = self._on(pixels.device)
        read_NCK = torch.empty(pixels_NCK.shape, dtype=torch.float32, device=pixels.device)
        for colour in range(3):
            index = pixels_NCK[:, colour].reshape(-1).int()
            read_NCK[:, colour] = table_CV[colour].index_select(0, index).view(-1, values)
        return read_NCK.view(pixels.shape)

    def _on(self, device: torch.device) -> Tensor:
        """float32 CV on a device, of which nothing is waited for."""
        return to_device(torch.frombuffer(bytearray(self.values), dtype=torch.float32), device).view(3, 256)
