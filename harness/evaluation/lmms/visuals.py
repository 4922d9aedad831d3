"""What a published benchmark shows for a document, as media with frames.

lmms-eval's tasks give pictures that PIL has opened, or the paths of videos. Several pictures are one clip: so the
benchmarks here use them (MVBench's frames of a film).

Legend: T frames, H and W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from harness.common.errors import DataError
from harness.data.loading.frames import FOLDER_FPS, choose
from harness.data.sample import Media
from harness.evaluation.lmms.scorer import Shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from harness.data.loading.frames import FrameRule


def shown(
    visuals: Sequence[Any] | None,
    frames: Callable[[Media], Tensor],
    count: int,
    name: str,
    rule: FrameRule = "spread",
) -> Shown:
    """The media of a document.

    Args:
        visuals: what the task's `doc_to_visual` gives; None or empty for a document without any.
        frames: decodes a video to `count` frames, uint8 T3HW.
        count: frames of a clip.
        name: of the document, for messages.
        rule: which of many pictures are the clip's frames.

    Raises:
        DataError: something that is neither a picture nor the path of a video, or a video that cannot be read.
    """
    visuals = list(visuals or ())
    pictures = [visual for visual in visuals if isinstance(visual, Image.Image)]
    if pictures and len(pictures) == len(visuals):
        return _pictures(pictures, count, name, rule)
    unknown = [visual for visual in visuals if not isinstance(visual, str | Path)]
    if unknown:
        raise DataError(
            f"{name}: shows {type(unknown[0]).__name__} among {len(visuals)} media; known are videos and pictures"
        )
    media = tuple(Media("video", Path(visual)) for visual in visuals)
    return Shown(media, [frames(video) for video in media])


def _pictures(pictures: Sequence[Image.Image], count: int, name: str, rule: FrameRule) -> Shown:
    if len(pictures) == 1:
        return Shown((Media("image", Path(name)),), [_pixels(pictures[0])[None]])
    wanted = choose(rule, count, total=len(pictures), fps=FOLDER_FPS, folder=True)
    chosen = [_pixels(pictures[index]) for index in wanted]
    sizes = sorted({tuple(picture.shape[1:]) for picture in chosen})
    if len(sizes) > 1:
        raise DataError(f"{name}: {len(pictures)} pictures of one clip differ in size: {sizes[0]} and {sizes[1]}")
    return Shown((Media("video", Path(name)),), [torch.stack(chosen)])


def _pixels(picture: Image.Image) -> Tensor:
    """uint8 3HW."""
    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.uint8)).permute(2, 0, 1).contiguous()
