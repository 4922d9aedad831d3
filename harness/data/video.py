"""Frames out of video and image files.

Legend: T frames, H and W pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, Literal

import av
import numpy as np

from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from harness.data.sample import Media

_LONG: Final = 1500
"""Frames beyond which it is worth knowing where the key frames are: one minute at 25 a second."""
_SEEK_COST: Final = 15
"""What a seek costs, in decoded frames."""
_MISCOUNT: Final = 2
"""Containers may promise a frame or two that the stream does not have."""


class VideoError(DataError):
    """A media file is missing, damaged, or shorter than its bounds."""


def read_frames(media: Media, *, frames: int, images: Literal["single", "repeat"] = "single") -> Tensor:
    """Decode `frames` frames, evenly spread over the clip: uint8 [T, 3, H, W], RGB, in the file's own size.

    Frames are chosen as the official VideoLLaMA2 loader does; a clip with fewer frames repeats some. An image
    is one frame, or the same frame `frames` times.

    Raises:
        VideoError: naming the file.
    """
    import torch

    if media.kind == "image":
        frame_1HW3 = _image(media.path)
        count = frames if images == "repeat" else 1
        frames_THW3 = np.repeat(frame_1HW3, count, axis=0)
    else:
        frames_THW3 = decode(media.path, frames, media.start, media.end)
    return torch.from_numpy(frames_THW3).permute(0, 3, 1, 2).contiguous()


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


def decode(path: Path, frames: int, start: float | None = None, end: float | None = None) -> NDArray[np.uint8]:
    """`read_frames` of a video without torch: uint8 [T, H, W, 3]."""
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            total = stream.frames or _count(container, stream)
            fps = float(stream.average_rate or 0)
            first, last = bounds(total, fps, start, end)
            if total < 1 or last < first:
                raise VideoError(f"{path}: no frame between {start} s and {end} s; it has {total} frames")
            wanted = [first + index for index in spread(last - first + 1, frames)]
            found = _pick(container, stream, wanted, total, path)
            return np.stack([found[index] for index in wanted])
    except FileNotFoundError:
        raise VideoError(f"{path}: not there") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be decoded: {error}") from None


def probe_video(path: Path) -> str | None:
    """Decode every frame; what is wrong with the file, or None."""
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            promised = stream.frames
            decoded = sum(1 for _ in container.decode(stream))
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")
    except (av.FFmpegError, OSError, ValueError) as error:
        return f"cannot be decoded: {error}"
    if decoded == 0:
        return "no frame can be decoded"
    if promised - decoded > _MISCOUNT:
        return f"{decoded} frames can be decoded, {promised} are promised: it is cut off"
    return None


def probe_image(path: Path) -> str | None:
    """Decode an image; what is wrong with the file, or None."""
    try:
        _image(path)
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


def _image(path: Path) -> NDArray[np.uint8]:
    """uint8 [1, H, W, 3], through PIL as the official image processors do."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"), dtype=np.uint8)[None]
    except FileNotFoundError:
        raise VideoError(f"{path}: not there") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"{path}: cannot be decoded: {error}") from None


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"{path}: has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # processes decode side by side; threads would fight for the cores
    return stream


def _count(container: Any, stream: Any) -> int:
    """Number of packets with a picture, for containers whose header does not tell the number of frames."""
    total = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return total


def _pick(container: Any, stream: Any, wanted: Sequence[int], total: int, path: Path) -> dict[int, NDArray[np.uint8]]:
    """The wanted frames by index: decoding all of them up to the last, or from key frame to key frame."""
    if wanted[-1] >= _LONG:
        order, keys = _timeline(container, stream)
        parts = _parts(wanted, keys)
        cost = sum(part[-1] - key + 1 + _SEEK_COST for key, part in parts.items())
        if order and wanted[-1] < len(order) and cost < wanted[-1] + 1:
            return _seek(container, stream, parts, order, path)
    found: dict[int, NDArray[np.uint8]] = {}
    need, index, frame = set(wanted), -1, None
    for index, frame in enumerate(container.decode(stream)):
        if index in need:
            found[index] = frame.to_ndarray(format="rgb24")
        if index == wanted[-1]:
            return found
    if frame is None or total - (index + 1) > _MISCOUNT:
        raise VideoError(f"{path}: {index + 1} frames can be decoded, {total} are promised: it is cut off")
    late = frame.to_ndarray(format="rgb24")
    return {index: found.get(index, late) for index in need}


def _timeline(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """Presentation times of all frames in order, and the indices of the key frames; nothing is decoded."""
    packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and p.pts is not None]
    container.seek(0)
    packets.sort()
    return [pts for pts, _ in packets], [index for index, (_, key) in enumerate(packets) if key]


def _parts(wanted: Sequence[int], keys: Sequence[int]) -> dict[int, list[int]]:
    """Wanted frames by the key frame that decoding must start at."""
    parts: dict[int, list[int]] = {}
    for index in wanted:
        place = bisect_right(keys, index) - 1
        parts.setdefault(keys[place] if place >= 0 else 0, []).append(index)
    return parts


def _seek(
    container: Any, stream: Any, parts: dict[int, list[int]], order: Sequence[int], path: Path
) -> dict[int, NDArray[np.uint8]]:
    found: dict[int, NDArray[np.uint8]] = {}
    for key, part in parts.items():
        container.seek(order[key], stream=stream, backward=True)
        waiting = sorted(set(part), reverse=True)
        for frame in container.decode(stream):
            while waiting and frame.pts is not None and frame.pts >= order[waiting[-1]]:
                found[waiting.pop()] = frame.to_ndarray(format="rgb24")
            if not waiting:
                break
        if waiting:
            raise VideoError(f"{path}: ends before frame {waiting[-1]} of {len(order)}: it is cut off")
    return found
