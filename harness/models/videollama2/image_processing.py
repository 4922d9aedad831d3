"""Frames as VideoLLaMA2's towers read them: PIL's bicubic resize and normalisation, bit for bit the official ones.

Legend: T frames, F frames of all clips, H and W pixels of a file, Z pixels of the tower's side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from PIL import Image

from harness.common.errors import EnvironmentProblem
from harness.config.weight_files import read_settings
from harness.data.loading.pixels import ColourTable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

SETTINGS: Final = "preprocessor_config.json"
_BICUBIC: Final = 3


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a frame becomes the tower's input.

    Attributes:
        size: Z.
        aspect: "pad" puts the frame in the middle of a square of the mean colour, as in the official fine-tuning;
            "square" is the tower's own way, as in the official inference: SigLIP squashes, CLIP takes the middle.
        crop: whether the tower's own way is CLIP's, the short side to `size` and the middle cut out.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    aspect: Literal["pad", "square"] = "pad"
    crop: bool = False

    def squares(self, frames_T3HW: Tensor) -> Tensor:
        """uint8 frames of any size to uint8 [T, 3, Z, Z]."""
        frames = [Image.fromarray(frame) for frame in frames_T3HW.permute(0, 2, 3, 1).contiguous().numpy()]
        squares = [np.asarray(self._square(frame)) for frame in frames]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).contiguous()

    @property
    def colours(self) -> ColourTable:
        """Rescaled in double precision, then normalised in single precision, with numpy's rounding."""
        return ColourTable(self._table().tobytes())

    def normalise(self, squares_F3ZZ: Tensor) -> Tensor:
        """uint8 to float32."""
        return self.colours.look_up(squares_F3ZZ)

    def settings(self) -> dict[str, Any]:
        """All that decides the numbers."""
        return asdict(self)

    def _table(self) -> Any:
        """float32 [3, 256]."""
        values = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(part, dtype=np.float32)[:, None] for part in (self.mean, self.std))
        return (values - mean) / std

    def _square(self, frame: Image.Image) -> Image.Image:
        if self.aspect == "pad":
            frame = self._padded(frame)
        if not self.crop:
            return frame.resize((self.size, self.size), resample=Image.Resampling.BICUBIC)
        width, height = frame.size
        short = min(width, height)
        wide, high = (self.size if side == short else int(self.size * side / short) for side in (width, height))
        frame = frame.resize((wide, high), resample=Image.Resampling.BICUBIC)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        return frame.crop((left, top, left + self.size, top + self.size))

    def _padded(self, frame: Image.Image) -> Image.Image:
        width, height = frame.size
        if width == height:
            return frame
        side = max(width, height)
        red, green, blue = (int(part * 255) for part in self.mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(frame, ((side - width) // 2, (side - height) // 2))
        return square


def read_pixels(tower: Path, aspect: Literal["pad", "square"]) -> Pixels:
    """The tower's own settings, from the file beside its weights.

    Raises:
        EnvironmentProblem: the file is not there, or asks for something else than a bicubic resize to a square,
            rescaling by 1/255 and normalisation.
    """
    path = tower / SETTINGS
    if not path.is_file():
        raise EnvironmentProblem(f"{path}: not there", hint=f"fetch {tower.name} again")
    stored: Mapping[str, Any] = read_settings(path)
    resize = stored.get("size", {})
    size = resize if isinstance(resize, int) else resize.get("height") or resize.get("shortest_edge")
    wanted = {
        "resample": stored.get("resample", _BICUBIC) == _BICUBIC,
        "rescale_factor": abs(stored.get("rescale_factor", 1 / 255) - 1 / 255) < 1e-9,
        "size": bool(size) and (isinstance(resize, int) or resize.get("width", size) == size),
    }
    for key, right in wanted.items():
        if not right:
            raise EnvironmentProblem(f"{path}: {key} is {stored.get(key)!r}, which this program does not do")
    mean, std = (tuple(float(part) for part in stored[key]) for key in ("image_mean", "image_std"))
    assert len(mean) == len(std) == 3
    return Pixels(int(size), mean, std, aspect, crop=bool(stored.get("do_center_crop", False)))
