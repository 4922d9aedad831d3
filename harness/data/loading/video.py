"""Frames out of video and image files, and out of folders of numbered pictures.

A video is read by the list of its frames (`harness.data.loading.timeline`): the best video stream that is no
attached picture, frames picked by time from that list, upright RGB of one size (`harness.data.loading.colour`).
`inspect_video` reads every frame by the same rule, so that what it finds good can be read.

Legend: T frames, H and W pixels.
"""

from __future__ import annotations

import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal

import av
import numpy as np

from harness.common.files import odd_kind
from harness.data.loading.colour import RgbFrames
from harness.data.loading.errors import VideoError
from harness.data.loading.frames import FOLDER_FPS, choose, outside
from harness.data.loading.pictures import picture_notes, picture_size, read_picture
from harness.data.loading.timeline import MISCOUNT, Timeline, from_start, read_timeline

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Media

_PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_NUMBER: Final = re.compile(r"(\d+)$")
_SKIPPABLE: Final = ("h264", "mpeg4", "mpeg2video", "mpeg1video", "vp8")
"""Codecs in which no other frame is computed from one that is marked as no reference. In HEVC, frames of a higher
temporal layer may be."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a media file that can be read.

    Attributes:
        frames: its number of frames or pictures.
        fps: frames a second; 0 where the header has none.
        notes: what the reader leaves out (`harness.data.loading.pictures`).
    """

    frames: int
    fps: float = 0.0
    notes: tuple[str, ...] = ()


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
        frame_1HW3 = read_picture(media.path)
        count = frames if images == "repeat" else 1
        frames_THW3 = np.repeat(frame_1HW3, count, axis=0)
    else:
        read = decode_folder if media.path.is_dir() else decode
        frames_THW3 = read(media.path, frames, media.start, media.end, rule, rng)
    return torch.from_numpy(frames_THW3).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What is known of the pictures that `read_frames` gives.

    Attributes:
        height, width: pixels.
        indices: of the frames in the file, ascending.
        total: frames of the file.
        fps: frames a second; 0 where the header has none, and for an image.
    """

    height: int
    width: int
    indices: tuple[int, ...]
    total: int
    fps: float


def clip_facts(media: Media, *, frames: int, rule: FrameRule = "spread") -> ClipFacts:
    """Sizes and times of what `read_frames` gives with the same arguments; of a video, one frame is decoded, of
    a picture most often none.

    Args:
        rule: not `random`, which draws.

    Raises:
        VideoError: naming the file.
    """
    if media.kind == "image":
        return ClipFacts(*picture_size(media.path), (0,), 1, 0.0)
    folder = media.path.is_dir()
    if folder:
        pictures = folder_pictures(media.path)
        total, fps = len(pictures), FOLDER_FPS
        wanted = choose(rule, frames, total=total, fps=fps, start=media.start, end=media.end, folder=True)
        shape = read_picture(pictures[wanted[0]]).shape[1:] if wanted else ()
    else:
        with _opened(media.path) as video:
            total, fps = video.timeline.total, video.timeline.fps
            wanted = choose(rule, frames, total=total, fps=fps, start=media.start, end=media.end)
            shape = video.pictures(wanted[:1])[wanted[0]].shape if wanted else ()
    if not wanted:
        raise VideoError(f"{media.path}: {outside(media.start, media.end, total, fps)}")
    return ClipFacts(shape[0], shape[1], tuple(wanted), total, fps)


def decode(
    path: Path,
    frames: int,
    start: float | None = None,
    end: float | None = None,
    rule: FrameRule = "spread",
    rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """`read_frames` of a video file without torch: uint8 [T, H, W, 3]."""
    with _opened(path) as video:
        total = video.timeline.total
        wanted = choose(rule, frames, total=total, fps=video.timeline.fps, start=start, end=end, rng=rng)
        if not wanted:
            raise VideoError(outside(start, end, total, video.timeline.fps))
        pictures = video.pictures(wanted)
        return np.stack([pictures[index] for index in wanted])


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
        raise VideoError(f"{path}: {outside(start, end, total, FOLDER_FPS).replace('frames', 'pictures')}")
    shown = {index: read_picture(pictures[index])[0] for index in set(wanted)}
    if len({picture.shape for picture in shown.values()}) > 1:
        raise VideoError(f"{path}: its pictures are not of one size")
    return np.stack([shown[index] for index in wanted])


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


def inspect_video(path: Path) -> Facts:
    """Read every frame of a video file as training does.

    Raises:
        VideoError: what is wrong with the file.
    """
    with _opened(path) as video:
        video.check()
        return Facts(video.timeline.total, video.timeline.fps)


def inspect_folder(path: Path) -> Facts:
    """Decode every picture of a folder. Errors as `inspect_video`."""
    pictures = folder_pictures(path)
    if len({read_picture(picture).shape for picture in pictures}) > 1:
        raise VideoError(f"{path}: its pictures are not of one size")
    notes = dict.fromkeys(note for picture in pictures for note in picture_notes(picture))
    return Facts(len(pictures), FOLDER_FPS, tuple(notes))


def inspect_picture(path: Path) -> Facts:
    """Decode a picture. Errors as `inspect_video`."""
    return Facts(1, notes=picture_notes(path))


def probe_video(path: Path) -> str | None:
    """What is wrong with a video file, or None."""
    return _wrong(inspect_video, path)


def probe_folder(path: Path) -> str | None:
    """What is wrong with a folder of pictures, or None."""
    return _wrong(inspect_folder, path)


def probe_image(path: Path) -> str | None:
    """What is wrong with a picture, or None."""
    return _wrong(inspect_picture, path)


def _wrong(inspect: Callable[[Path], Facts], path: Path) -> str | None:
    try:
        inspect(path)
    except VideoError as error:
        return str(error).removeprefix(f"{path}: ")
    return None


@contextmanager
def _opened(path: Path) -> Iterator[_Video]:
    """The video in a file, whose errors all name the file."""
    odd = odd_kind(path)
    if odd is not None:
        raise VideoError(f"{path}: {odd}, not a file")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            yield _Video(container, _video_stream(container))
    except FileNotFoundError:
        raise VideoError(f"{path}: not there") from None
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from None
    except Exception as error:  # noqa: BLE001  whatever a damaged file makes the libraries stumble over
        raise VideoError(f"{path}: cannot be decoded: {error}") from None


def _video_stream(container: Any) -> Any:
    """The stream that players and decord choose; a cover or a thumbnail is a picture, not a video."""
    stream = container.streams.best("video")
    if stream is None:
        raise VideoError("has no video stream")
    if stream.disposition & stream.disposition.attached_pic:
        raise VideoError("has no video stream, only a cover picture")
    return stream


class _Video:
    """An open video: its frames by index.

    Raises:
        VideoError: it has no frame, or its end is missing.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        _one_thread(stream)
        context = stream.codec_context
        self._rgb = RgbFrames(context.width, context.height, stream.time_base)
        self._container, self._stream = container, stream
        self.timeline: Timeline = read_timeline(container, stream)
        if self.timeline.cut_off is not None:
            raise VideoError(self.timeline.cut_off)
        if self.timeline.total == 0:
            raise VideoError("no frame can be decoded")

    def pictures(self, wanted: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """RGB of the wanted frames, uint8 [H, W, 3] by index."""
        if self.timeline.times_N is None:
            return self._counted(wanted)
        pictures: dict[int, NDArray[np.uint8]] = {}
        parts = self.timeline.parts(sorted(set(wanted)))
        if self.timeline.worth_seeking(parts):
            for key, part in parts.items():
                with suppress(VideoError):  # decoding from the start decides
                    for index, frame in self._from_key(key, part):
                        pictures[index] = self._rgb(frame)
        left = sorted(set(wanted) - pictures.keys())
        if left:
            for index, frame in self._from_start(left):
                pictures[index] = self._rgb(frame)
            left = sorted(set(left) - pictures.keys())
        return self._mended(pictures, left) if left else pictures

    def check(self) -> None:
        """Decode every frame; raises what reading some of them could raise."""
        total = self.timeline.total
        if self.timeline.times_N is None:
            decoded = set(range(sum(1 for _ in self._all())))
        else:
            decoded = {index for index, _ in self._from_start(range(total), skip=False)}
        for index in sorted(set(range(total)) - decoded):
            self._stand_in(index, decoded)

    def _mended(self, pictures: dict[int, NDArray[np.uint8]], left: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """With stand-ins for frames that the decoder does not give: what a player shows in their place."""
        near = {index + step for index in left for step in range(-MISCOUNT, MISCOUNT + 1)}
        total = self.timeline.total
        shown = {i: self._rgb(f) for i, f in self._from_start(sorted(i for i in near if 0 <= i < total), skip=False)}
        return pictures | {index: shown[self._stand_in(index, shown.keys())] for index in left}

    def _stand_in(self, index: int, decoded: Collection[int]) -> int:
        """The frame before one that is not given, or at the start the one behind it."""
        before = [index - step for step in range(MISCOUNT + 1) if index - step in decoded]
        behind = [index + step for step in range(MISCOUNT + 1) if index + step in decoded and index < MISCOUNT]
        if not before and not behind:
            raise VideoError(f"frame {index} of {self.timeline.total} cannot be decoded")
        return (before or behind)[0]

    def _counted(self, wanted: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Frames known by the order they come in; where the last one or two do not come, the last that does."""
        need, total, frame, index = set(wanted), self.timeline.total, None, -1
        pictures: dict[int, NDArray[np.uint8]] = {}
        for index, frame in enumerate(self._all()):
            if index in need:
                pictures[index] = self._rgb(frame)
            if index == max(need):
                return pictures
        if frame is None or total - (index + 1) > MISCOUNT:
            raise VideoError(f"{index + 1} frames can be decoded, {total} are promised: it is cut off")
        last = self._rgb(frame)
        return {index: pictures.get(index, last) for index in need}

    def _all(self) -> Iterator[Any]:
        started = not self.timeline.has_keys
        for packet in from_start(self._container, self._stream, self.timeline):
            started = started or packet.is_keyframe
            if started:
                _one_thread(packet.stream)
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise VideoError(f"the frame at {frame.time or 0:.2f} s is damaged")
                    yield frame

    def _from_start(self, wanted: Sequence[int], *, skip: bool = True) -> Iterator[tuple[int, Any]]:
        packets = from_start(self._container, self._stream, self.timeline)
        return self._decode(packets, wanted, skip=skip)

    def _from_key(self, key: int, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """From a key frame on; nothing where the container goes to another place."""
        self._container.seek(key, stream=self._stream, backward=True)
        packets = self._container.demux(self._stream)
        first = next(packets, None)
        if first is None or not first.is_keyframe or first.pts is None or first.pts > key:
            return iter(())
        return self._decode(chain([first], packets), wanted, skip=True)

    def _decode(self, packets: Iterable[Any], wanted: Sequence[int], *, skip: bool) -> Iterator[tuple[int, Any]]:
        """(index, frame) of the wanted frames, from the first key frame of `packets` on.

        With `skip`, frames that are not wanted and that no other frame needs are not decoded.
        """
        times_N = self.timeline.times_N
        assert times_N is not None
        waiting = {times_N[index]: index for index in wanted}
        skip = skip and self._stream.codec_context.name in _SKIPPABLE
        started, state = not self.timeline.has_keys, ""
        for packet in packets:
            started = started or packet.is_keyframe
            if not started:
                continue
            context = packet.stream.codec_context
            if not state:
                _one_thread(packet.stream)
            wish = "NONREF" if skip and packet.size and packet.pts not in waiting else "DEFAULT"
            if wish != state:
                context.skip_frame = state = wish
            for frame in packet.decode():
                if frame.pts in waiting:
                    if frame.is_corrupt:
                        raise VideoError(f"frame {waiting[frame.pts]} of {self.timeline.total} is damaged")
                    yield waiting.pop(frame.pts), frame
            if not waiting:
                break


def _one_thread(stream: Any) -> None:
    """Processes decode side by side; threads would fight for the cores."""
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
