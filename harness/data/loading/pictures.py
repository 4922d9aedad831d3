"""Picture files as RGB, through PIL as the official image processors do, and what is lost on the way.

Legend: H and W pixels.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.common.files import odd_kind
from harness.data.loading.errors import VideoError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ROTATED: Final = "carries a rotation that is not applied"
TRANSPARENT: Final = "carries transparency that is dropped"
DEEP: Final = "has 16 bits a value and is scaled to 8"
_ORIENTATION: Final = 0x112
"""The EXIF tag; 1 is upright."""
_SIXTEEN: Final = ("I;16", "I;16L", "I;16B", "I;16N")
_HEADER_TELLS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Formats in which decoding does not change the size that the header states."""
_UNKNOWN_RANGE: Final = {"I": "32-bit integers", "F": "floating-point numbers"}


def read_picture(path: Path) -> NDArray[np.uint8]:
    """uint8 [1, H, W, 3].

    As in the official loaders, an EXIF rotation is not applied and transparency is dropped; `picture_notes` says
    where. PIL clips 16-bit values at 255, which leaves a white picture: here they are scaled.

    Raises:
        VideoError: the file is missing or damaged, or its values have no known range.
    """
    picture, _ = _read(path)
    return picture


def picture_notes(path: Path) -> tuple[str, ...]:
    """What is not in the picture that `read_picture` gives though the file holds it. Errors as there."""
    _, notes = _read(path)
    return notes


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture that `read_picture` gives: by the header where the format's can be trusted, so
    that a missing rest of the file is not noticed here. Errors as there."""
    with _opened(path) as image:
        if image.format in _HEADER_TELLS and image.mode not in _UNKNOWN_RANGE:
            return image.height, image.width
        height, width, _ = _rgb(image).shape
        return height, width


def _read(path: Path) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    with _opened(path) as image:
        picture = _rgb(image)
        return picture[None], _notes(image)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """PIL's picture of a file, whose errors all name the file."""
    from PIL import Image

    odd = odd_kind(path)
    if odd is not None:
        raise VideoError(f"{path}: {odd}, not a file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are large, or whose metadata are not as they should
            with Image.open(path) as image:
                yield image
    except FileNotFoundError:
        raise VideoError(f"{path}: not there") from None
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001  PIL's readers raise whatever a damaged file makes them stumble over
        raise VideoError(f"{path}: cannot be decoded: {error}") from None


def _rgb(image: Any) -> NDArray[np.uint8]:
    if image.mode in _UNKNOWN_RANGE:
        values = _UNKNOWN_RANGE[image.mode]
        raise VideoError(f"its values are {values}, of no known range: store it with 8 bits a value")
    if image.mode in _SIXTEEN:
        grey_HW = np.rint(np.asarray(image, np.float32) / 257).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _notes(image: Any) -> tuple[str, ...]:
    notes = []
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  metadata that cannot be read rotate nothing
        orientation = 1
    if orientation in range(2, 9):
        notes.append(ROTATED)
    if "A" in image.getbands() or "transparency" in image.info:
        notes.append(TRANSPARENT)
    if image.mode in _SIXTEEN:
        notes.append(DEEP)
    return tuple(notes)
