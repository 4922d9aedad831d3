"""Pictures as InternVL's own code cuts them: into square tiles and the whole picture, resized by PIL.

Legend: T frames, N tiles, H and W pixels of a picture, Z pixels along a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image

from harness.common.errors import EnvironmentProblem
from harness.data.loading.pixels import ColourTable
from harness.models.hf.colours import AS_BYTES, own_table

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of each colour."""
_WHITE: Final = 224
"""Pixels along the picture that stands for none."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How pictures and frames become the model's input, and what stands for them in the text.

    Attributes:
        size: Z.
        tokens: visual tokens of a tile.
        most: tiles of a picture, the whole picture not counted; several pictures share them.
        least: likewise.
        start, context, end: the tokens around and for visual positions.
        through: transformers' processor, which then resizes with torch: a grey level apart here and there, seldom
            two. None takes PIL.
    """

    size: int
    tokens: int
    most: int
    least: int = 1
    start: str = "<img>"
    context: str = "<IMG_CONTEXT>"
    end: str = "</img>"
    through: Any = None

    def description(self) -> list[Any]:
        """What the text and the pixels depend on."""
        parts = [self.size, self.tokens, self.least, self.most, self.start, self.context, self.end]
        return [*parts, "PIL" if self.through is None else "transformers"]

    def count(self, height: int, width: int, pictures: int) -> int:
        """N, tiles of a picture among so many of its sample: those of the grid, and the whole picture unless the grid
        is one tile."""
        columns, rows = self.grid(height, width, pictures)
        return columns * rows + (columns * rows > 1)

    def grid(self, height: int, width: int, pictures: int) -> tuple[int, int]:
        """Columns and rows of tiles."""
        return tile_grid(width, height, self.size, self.least, max(1, self.most // pictures))

    def picture_text(self, tiles: int) -> str:
        """What stands for a picture."""
        return f"{self.start}{self.context * (self.tokens * tiles)}{self.end}"

    def video_text(self, frames: int, *, asked: bool) -> str:
        """What stands for a video: a line a frame, numbered from 1.

        Args:
            asked: by an evaluation; the official one writes `Frame1`; its training writes `Frame-1`.
        """
        dash = "" if asked else "-"
        return "\n".join(f"Frame{dash}{number + 1}: {self.picture_text(1)}" for number in range(frames))

    def picture(self, image_13HW: Tensor, pictures: int) -> Tensor:
        """uint8 [N, 3, Z, Z] of a uint8 picture: tiles row by row, then the whole picture."""
        height, width = image_13HW.shape[2:]
        if self.through is not None:
            asked = {"min_patches": self.least, "max_patches": max(1, self.most // pictures), **AS_BYTES}
            seen = self.through.image_processor(
                [image_13HW[0].permute(1, 2, 0).numpy()], crop_to_patches=True, return_tensors="pt", **asked
            )
            return _expected(seen["pixel_values"], self.count(height, width, pictures))
        columns, rows = self.grid(height, width, pictures)
        image, size = _image(image_13HW[0]), self.size
        grid = image.resize((columns * size, rows * size), resample=Image.Resampling.BICUBIC)
        corners = [(column * size, row * size) for row in range(rows) for column in range(columns)]
        parts = [grid.crop((left, top, left + size, top + size)) for left, top in corners]
        if len(parts) > 1:
            parts.append(image.resize((size, size), resample=Image.Resampling.BICUBIC))
        return _stacked(parts)

    def squares(self, frames_T3HW: Tensor) -> Tensor:
        """uint8 [T, 3, Z, Z] of uint8 frames: one tile each, whatever their shape."""
        if self.through is not None:
            clip = frames_T3HW.permute(0, 2, 3, 1).numpy()
            seen = self.through.video_processor([clip], do_sample_frames=False, return_tensors="pt", **AS_BYTES)
            return _expected(seen["pixel_values_videos"][0], len(frames_T3HW))
        size = (self.size, self.size)
        return _stacked([_image(frame).resize(size, resample=Image.Resampling.BICUBIC) for frame in frames_T3HW])

    def white(self) -> Tensor:
        """float32 [1, 3, Z, Z], of the white picture that a conversation without pictures is given in training."""
        return self.colours.look_up(self.squares(torch.full((1, 3, _WHITE, _WHITE), 255, dtype=torch.uint8)))

    @property
    def colours(self) -> ColourTable:
        """What the values of bytes are to the model."""
        return ColourTable.by(_normalised) if self.through is None else own_table(self.through.image_processor)


def tiles_of(processor: Any, tokens: int, where: str, *, through: bool, most: int | None = None) -> Tiles:
    """The tiles that a checkpoint's processor states.

    Args:
        processor: transformers' `InternVLProcessor`.
        tokens: visual tokens of a tile, by the model's configuration.
        through: whether transformers resizes.
        most: tiles of a picture, in place of the processor's.

    Raises:
        EnvironmentProblem: the processor's pictures are not square or not normalised by ImageNet's colours, which all
            published InternVL models are.
    """
    for name in ("image_processor", "video_processor"):
        part = getattr(processor, name)
        size = (part.size["height"], part.size["width"])
        statistics = tuple(map(tuple, (part.image_mean, part.image_std)))
        if size[0] != size[1] or size[0] != processor.image_processor.size["height"] or statistics != IMAGENET:
            raise EnvironmentProblem(
                f"{where}: its {name} makes pictures of {size[0]} x {size[1]} pixels with mean {statistics[0]} and "
                f"deviation {statistics[1]}; InternVL reads squares of one size with ImageNet's",
                hint="the file of the processor is another model's, or holds defaults of transformers",
            )
    image = processor.image_processor
    if processor.image_seq_length != tokens:
        raise EnvironmentProblem(
            f"{where}: its processor counts {processor.image_seq_length} tokens a tile, its configuration {tokens}"
        )
    return Tiles(
        image.size["height"],
        tokens,
        image.max_patches if most is None else most,
        image.min_patches,
        processor.start_image_token,
        processor.image_token,
        processor.end_image_token,
        processor if through else None,
    )


@cache
def tile_grid(width: int, height: int, size: int, least: int, most: int) -> tuple[int, int]:
    """Columns and rows of tiles, between `least` and `most` in all, whose shape is nearest to the picture's.

    Of two that are equally near the larger is taken where the picture has more than half its pixels.
    """
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)):
        distance = abs(width / height - columns / rows)
        worth = distance == nearest and width * height > 0.5 * size * size * columns * rows
        if distance < nearest or worth:
            best, nearest = (columns, rows), distance
    return best


def _image(picture_3HW: Tensor) -> Image.Image:
    return Image.fromarray(picture_3HW.permute(1, 2, 0).contiguous().numpy())


def _stacked(images: list[Image.Image]) -> Tensor:
    """uint8 [N, 3, Z, Z] of RGB images."""
    pixels_NZZ3 = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    return pixels_NZZ3.permute(0, 3, 1, 2).contiguous()


def _normalised(pixels_N3ZZ: Tensor) -> Tensor:
    """float32 of uint8."""
    mean, deviation = (torch.tensor(part)[:, None, None] for part in IMAGENET)
    return (pixels_N3ZZ.float() / 255 - mean) / deviation


def _expected(pixels: Tensor, count: int) -> Tensor:
    assert len(pixels) == count, f"transformers made {len(pixels)} tiles where {count} are counted"
    assert pixels.dtype == torch.uint8, f"transformers made {pixels.dtype} where bytes are asked"
    return pixels
