"""Frames as VideoChat2 reads them: squares of one size, or the tiles of the HD variant with the whole picture.

Legend: T frames, F frames of all clips, H and W pixels of a file, Z pixels of the model's side, N clips of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from harness.data.loading.pixels import ColourTable

if TYPE_CHECKING:
    from torch import Tensor

Colours = Literal["imagenet", "clip"]
COLOURS: Final = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of each colour: the official training uses ImageNet's, its notebooks evaluate stage 3
with CLIP's."""
TILES: Final = 6
"""Most tiles of an HD clip, the whole picture not counted."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """How frames become the model's input.

    Attributes:
        size: Z.
        hd: whether a clip is cut into tiles.
    """

    size: int = 224
    colours: Colours = "imagenet"
    hd: bool = False

    def clips(self, frames_T3HW: Tensor) -> Tensor:
        """uint8 frames of any size to the clips that stand for them: uint8 [1, T, 3, Z, Z], the middle square; or
        with `hd` float 0..255 [N, T, 3, Z, Z], tiles row by row and the whole picture last."""
        if not self.hd:
            return self._middle(frames_T3HW)[None]
        high, wide = tile_grid(frames_T3HW.shape[-2], frames_T3HW.shape[-1], self.size)
        size = self.size
        large = interpolate(frames_T3HW.float(), (high * size, wide * size), mode="bicubic", align_corners=False)
        whole = interpolate(large, (size, size), mode="bicubic", align_corners=False)
        tiles = large.view(-1, 3, high, size, wide, size).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
        return torch.cat([tiles, whole[None]])

    def count(self, height: int, width: int) -> int:
        """N, clips that frames of this size become."""
        if not self.hd:
            return 1
        high, wide = tile_grid(height, width, self.size)
        return high * wide + 1

    def normalise(self, frames_F3ZZ: Tensor) -> Tensor:
        """0..255 to float32 of the training's mean and deviation. Tiles are no bytes: a frame is resized in float32
        and cut and resized again without rounding, as in the official code."""
        mean, deviation = (torch.tensor(part)[:, None, None] for part in COLOURS[self.colours])
        return (frames_F3ZZ.float() / 255 - mean) / deviation

    def as_read(self) -> ColourTable | None:
        """What the values of bytes are to the model; None where the clips are no bytes."""
        return None if self.hd else ColourTable.by(self.normalise)

    def _middle(self, frames_T3HW: Tensor) -> Tensor:
        """The short side to Z by PIL's bicubic filter, and the middle square: uint8 [T, 3, Z, Z]."""
        height, width = frames_T3HW.shape[-2:]
        if height == width == self.size:
            return frames_T3HW
        short = min(height, width)
        high, wide = (self.size if side == short else int(self.size * side / short) for side in (height, width))
        top, left = round((high - self.size) / 2), round((wide - self.size) / 2)
        box = (left, top, left + self.size, top + self.size)
        squares = []
        for frame in frames_T3HW.permute(0, 2, 3, 1).contiguous().numpy():
            resized = Image.fromarray(frame).resize((wide, high), resample=Image.Resampling.BICUBIC)
            squares.append(np.asarray(resized.crop(box)))
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()


def tile_grid(height: int, width: int, size: int) -> tuple[int, int]:
    """Rows and columns of tiles, at most `TILES` in all, whose shape is nearest to the frame's. Of equal shapes the
    larger is taken where the frame has more than half its pixels (InternVL 1.5)."""
    grids = [(wide, high) for wide in range(1, TILES + 1) for high in range(1, TILES + 1) if wide * high <= TILES]
    best, nearest = (1, 1), float("inf")
    for wide, high in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        distance = abs(width / height - wide / high)
        worth = distance == nearest and width * height > 0.5 * size * size * wide * high
        if distance < nearest or worth:
            best, nearest = (wide, high), distance
    return best[1], best[0]
