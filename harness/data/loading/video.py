"""Frames out of video and image files, and out of folders of numbered pictures.

Legend: T frames, H and W pixels.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, Literal

import av
import numpy as np

from harness.common.errors import DataError
from harness.data.loading.frames import FOLDER_FPS, choose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Media

_PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_NUMBER: Final = re.compile(r"(\d+)$")
_LONG: Final = 1500
"""Frames beyond which it is worth knowing where the key frames are: one minute at 25 a second."""
_SEEK_COST: Final = 15
"""What a seek costs, in decoded frames."""
_MISCOUNT: Final = 2
"""Containers may promise a frame or two that the stream does not have."""


class VideoError(DataError):
    """A media file is missing, damaged, or shorter than its bounds."""


def read_frames(
    media: Media,
    *,
    frames: int,
    images: Literal["single", "repeat"] = "single",
    rule: FrameRule = "spread",
    rng: np.random.Generator | None = None,
) -> Tensor:
    """Decode `frames` frames of the clip: uint8 [T, 3, H, W], RGB, in the file's own size.

    A clip with fewer frames repeats some. An image is one frame, or the same frame `frames` times.

    Args:
        rule: which frames (`harness.data.loading.frames`).
        rng: what the rule `random` draws from.

    Raises:
        VideoError: naming the file.
    """
    import torch

    if media.kind == "image":
        frame_1HW3 = _image(media.path)
        count = frames if images == "repeat" else 1
        frames_THW3 = np.repeat(frame_1HW3, count, axis=0)
    else:
        read = decode_folder if media.path.is_dir() else decode
        frames_THW3 = read(media.path, frames, media.start, media.end, rule, rng)
    return torch.from_numpy(frames_THW3).permute(0, 3, 1, 2).contiguous()


def decode(
    path: Path,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    rule: FrameRule = "spread",
    rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """`read_frames` of a video file without torch: uint8 [T, H, W, 3]."""
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            total = stream.frames or _count(container, stream)
            fps = float(stream.average_rate or 0)
            wanted = choose(rule, frames, total=total, fps=fps, start=start, end=end, rng=rng)
            if not wanted:
                raise VideoError(f"{path}: no frame between {start} s and {end} s; it has {total} frames")
            found = _pick(container, stream, wanted, total, path)
            return np.stack([found[index] for index in wanted])
    except FileNotFoundError:
        raise VideoError(f"{path}: not there") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be decoded: {error}") from None


def decode_folder(
    path: Path,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    rule: FrameRule = "spread",
    rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """`read_frames` of a folder of numbered pictures, three a second, without torch: uint8 [T, H, W, 3]."""
    pictures = folder_pictures(path)
    total = len(pictures)
    wanted = choose(rule, frames, total=total, fps=FOLDER_FPS, start=start, end=end, folder=True, rng=rng)
    if not wanted:
        raise VideoError(f"{path}: no frame between {start} s and {end} s; it has {total} pictures")
    found = {index: _image(pictures[index])[0] for index in set(wanted)}
    if len({picture.shape for picture in found.values()}) > 1:
        raise VideoError(f"{path}: its pictures are not of one size")
    return np.stack([found[index] for index in wanted])


def folder_pictures(path: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers that their names end with, from whichever they start.

    Raises:
        VideoError: there is none, a name has no number, or a number is missing or there twice.
    """
    try:
        named = [file for file in path.iterdir() if file.suffix.lower() in _PICTURES]
    except OSError as error:
        raise VideoError(f"{path}: cannot be read: {error.strerror}") from None
    if not named:
        raise VideoError(f"{path}: a folder without pictures")
    numbered: dict[int, Path] = {}
    for file in named:
        number = _NUMBER.search(file.stem)
        if number is None:
            raise VideoError(f"{path}: the name of {file.name} does not end with a number")
        if int(number[1]) in numbered:
            raise VideoError(f"{path}: picture {int(number[1])} is there twice")
        numbered[int(number[1])] = file
    order = sorted(numbered)
    if order[-1] - order[0] + 1 != len(order):
        lost = next(number for number in range(order[0], order[-1]) if number not in numbered)
        raise VideoError(f"{path}: picture {lost} is missing between {order[0]} and {order[-1]}")
    return [numbered[number] for number in order]


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


def probe_folder(path: Path) -> str | None:
    """Decode every picture of a folder; what is wrong with it, or None."""
    try:
        sizes = {_image(picture).shape for picture in folder_pictures(path)}
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")
    return None if len(sizes) == 1 else "its pictures are not of one size"


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
