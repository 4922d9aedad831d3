"""VideoChat2's training augmentation: a random part of the picture, resized to a square, and a random flip.

All frames of a clip get the same part and the same flip. The parts are drawn by the rule of torchvision's
RandomResizedCrop, and resized as its version 0.14 resizes tensors: bicubic, without antialiasing, which later
versions switch on. What is mirrored keeps its text: the official recipe flips questions about left and right too.

Legend: T frames, H and W pixels, Z pixels of the square's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from torch.nn.functional import interpolate

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SCALE: Final = (0.5, 1.0)
"""Smallest and largest part of the picture's area."""
RATIO: Final = (3 / 4, 4 / 3)
"""Smallest and largest width over height."""
FLIP: Final = 0.5
_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a picture in pixels."""

    top: int
    left: int
    height: int
    width: int


def augmented(clip_T3HW: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """The clip as training shows it: uint8 [T, 3, Z, Z].

    Args:
        clip_T3HW: uint8.
        size: Z.
        rng: its numbers decide on the part and the flip.
    """
    height, width = clip_T3HW.shape[-2:]
    resized = resized_crop(clip_T3HW, random_crop(height, width, rng), size)
    return resized.flip(-1) if rng.random() < FLIP else resized


def random_crop(height: int, width: int, rng: np.random.Generator) -> Crop:
    """Area and logarithm of the ratio are uniform. Where ten parts do not fit, it is the largest middle part of an
    allowed ratio."""
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*SCALE)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def resized_crop(clip_T3HW: Tensor, crop: Crop, size: int) -> Tensor:
    """uint8 [T, 3, Z, Z]."""
    part = clip_T3HW[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    square = interpolate(part.float(), size=(size, size), mode="bicubic", align_corners=False, antialias=False)
    return square.clamp(0, 255).round().to(clip_T3HW.dtype)
