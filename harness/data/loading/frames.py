"""Which frames of a clip are read: four rules, each with the numbers of the code that it is named after.

`spread` is VideoLLaMA2's. `middle` and `random` are VideoChat2's in training, `mvbench` is that of its MVBench
evaluation. All give indices in ascending order, so a clip is decoded in one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FrameRule = Literal["spread", "middle", "random", "mvbench"]
FOLDER_FPS: Final = 3.0
"""Pictures a second of a clip that is stored as a folder of numbered pictures."""


def choose(
    rule: FrameRule,
    frames: int,
    *,
    total: int,
    fps: float,
    start: float | None = None,
    end: float | None = None,
    folder: bool = False,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Indices of `frames` frames out of the `total` of a clip, or of its part between `start` and `end` seconds.

    Args:
        folder: the clip is a folder of pictures, which the MVBench code numbers from 1.
        rng: what `random` draws from; read by no other rule.

    Returns:
        Ascending, some of them repeated where the clip is short; empty where the part lies outside the clip.
    """
    if total < 1:
        return []
    if rule == "mvbench":
        return mvbench(total, fps, frames, start, end, first=int(folder))
    if rule == "spread":
        first, last = bounds(total, fps, start, end)
        return [first + index for index in spread(last - first + 1, frames)] if first <= last else []
    first, count = part(total, fps, start, end)
    if count < 1:
        return []
    if rule == "middle":
        return [first + index for index in middle(count, frames)]
    assert rng is not None, "the rule random needs a generator to draw from"
    return [first + index for index in random(count, frames, rng)]


def outside(start: float | None, end: float | None, total: int, fps: float) -> str:
    """What is wrong with bounds that hold no frame."""
    length = f", {total / fps:.2f} s" if fps else ""
    return f"no frame between {start} s and {end} s; it has {total} frames{length}"


def spread(total: int, frames: int) -> list[int]:
    """Indices of `frames` frames out of `total`: the middle of each of `frames` equal parts (VideoLLaMA2)."""
    step = float(total - 1) / frames
    middle = np.array([(step * i + step * (i + 1)) / 2 for i in range(frames)])
    return [int(index) for index in np.round(middle + 1e-6)]


def bounds(total: int, fps: float, start: float | None, end: float | None) -> tuple[int, int]:
    """First and last frame of a part given in seconds, as the official VideoLLaMA2 loader counts them."""
    if start is not None and end is not None:
        start, end = sorted((max(start, 0.0), max(end, 0.0)))
        end = start + 1 if start == end else end
    first = 0 if start is None else max(int(start * fps) - 1, 0)
    last = total - 1 if end is None else min(int(end * fps) - 1, total - 1)
    return first, last


def middle(total: int, frames: int) -> list[int]:
    """The middle of each of `frames` parts, of a short clip every frame; then its last one again (VideoChat2)."""
    edges = _edges(total, frames)
    return _padded((edges[:-1] + edges[1:] - 1) // 2, frames)


def random(total: int, frames: int, rng: np.random.Generator) -> list[int]:
    """One frame drawn from each of `frames` parts (VideoChat2's `rand`).

    As there, the last frame of a part is never drawn, and where a part has no other, the frames are drawn from the
    whole clip, without replacement. A short clip is padded with its last one.
    """
    edges = _edges(total, frames)
    first, last = edges[:-1], edges[1:] - 1
    if bool((first < last).all()):
        return _padded(rng.integers(first, last), frames)
    return _padded(np.sort(rng.permutation(total)[: len(first)]), frames)


def mvbench(
    total: int, fps: float, frames: int, start: float | None = None, end: float | None = None, first: int = 0
) -> list[int]:
    """Frames of VideoChat2's MVBench evaluation; `first` is 1 for a folder, whose pictures it numbers from 1."""
    low = first if start is None else max(first, round(start * fps))
    last = total - 1 + first
    high = last if end is None else min(round(end * fps), last)
    if high < low:
        return []
    size = (high - low) / frames
    return [min(int(low + size / 2 + np.round(size * index)), last) - first for index in range(frames)]


def part(total: int, fps: float, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame and number of frames of a part given in seconds, as the official VideoChat2 loader counts them.

    That loader fails where the part ends behind the clip, and takes another sample; here the part ends with the clip.
    """
    if start is None or end is None:
        return 0, total
    first = int(start * fps)
    return first, min(int((end - start) * fps), total - first)


def _edges(total: int, frames: int) -> NDArray[np.int64]:
    return np.linspace(0, total, num=min(frames, total) + 1).astype(np.int64)


def _padded(indices: NDArray[np.int64], frames: int) -> list[int]:
    padded = [int(index) for index in indices]
    return padded + [padded[-1]] * (frames - len(padded))
