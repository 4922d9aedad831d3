"""Small clips of every kind that people have, whose frame numbers and colours can be read back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_BITS: Final = 11
_RED: Final = (200, 40, 60)


def numbered(i: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """Frame i: 4 x 3 blocks, white where the bit of i is set, on grey; the last block is red."""
    picture = np.full((height, width, 3), 60, np.uint8)
    h, w = height // 3, width // 4
    for bit in range(_BITS):
        if i >> bit & 1:
            y, x = divmod(bit, 4)
            picture[y * h : (y + 1) * h, x * w : (x + 1) * w] = 255
    picture[2 * h :, 3 * w :] = _RED
    return picture


def number(picture: NDArray[np.uint8]) -> int:
    """The i of `numbered`, from a picture of any size."""
    h, w = picture.shape[0] // 3, picture.shape[1] // 4
    value = 0
    for bit in range(_BITS):
        y, x = bit // 4 * h, bit % 4 * w
        block = picture[y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4]
        value |= int(block.mean() > 150) << bit
    return value


def clip(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    rate: Fraction | int = 10,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    gop: int | None = None,
    mux: dict[str, str] | None = None,
) -> Path:
    """A clip of numbered frames; `times` are those of the frames in units of 1 / rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=mux or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if gop:
            stream.codec_context.gop_size = gop
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(i, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], 1 / Fraction(rate)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def remux(source: Path, target: Path, *, shift: int = 0, drop: int = 0, rate: int = 10, **mux: str) -> Path:
    """Copy a stream: `shift` frames earlier (an edit list hides what is before 0), without its first packets."""
    options = {"avoid_negative_ts": "disabled", **mux}
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as written:
        old = read.streams.video[0]
        new = written.add_stream_from_template(old)
        early = int(Fraction(shift, rate) / old.time_base)
        for place, packet in enumerate(read.demux(old)):
            if packet.dts is None or place < drop:
                continue
            packet.pts -= early
            packet.dts -= early
            packet.stream = new
            written.mux(packet)
    return target


def rotate(path: Path, degrees: int) -> Path:
    """Write a clockwise rotation into the track header of an mp4."""
    one = 1 << 16
    matrices = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}
    if degrees:
        a, b, c, d = matrices[degrees]
        raw = bytearray(path.read_bytes())
        place = raw.index(b"tkhd") + 44
        raw[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(raw)
    return path


COLOURS: Final = ((200, 40, 60), (30, 160, 70), (20, 60, 220), (240, 220, 30), (128, 128, 128), (250, 250, 250))
_MATRICES: Final = {  # name in x264: (libavutil's number, kr, kb)
    "bt709": (1, 0.2126, 0.0722),
    "undef": (2, 0.299, 0.114),
    "fcc": (4, 0.30, 0.11),
    "bt470bg": (5, 0.299, 0.114),
    "smpte170m": (6, 0.299, 0.114),
    "smpte240m": (7, 0.212, 0.087),
    "bt2020nc": (9, 0.2627, 0.0593),
}


def coloured(path: Path, matrix: str, *, full: bool, codec: str = "libx264", frames: int = 3) -> Path:
    """Six stripes, 32 pixels wide, of `COLOURS`, converted here by the matrix's own numbers."""
    tag, kr, kb = _MATRICES[matrix]
    rgb_C3 = np.array(COLOURS, float) / 255
    y_C = rgb_C3 @ np.array([kr, 1 - kr - kb, kb])
    cb_C = (rgb_C3[:, 2] - y_C) / (2 * (1 - kb))
    cr_C = (rgb_C3[:, 0] - y_C) / (2 * (1 - kr))
    offset, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
    planes = (offset + luma * y_C, 128 + chroma * cb_C, 128 + chroma * cr_C)
    options = {"crf": "5", "x264-params": f"colormatrix={matrix}:fullrange={'on' if full else 'off'}"}
    if codec != "libx264":
        options = {"deadline": "realtime", "crf": "5", "b": "0"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 32 * len(COLOURS), 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, 2 if full else 1
        for _ in range(frames):
            frame = av.VideoFrame(stream.width, stream.height, "yuv420p")
            for place, (plane, values_C) in enumerate(zip(frame.planes, planes, strict=True)):
                row = np.repeat(np.rint(values_C).clip(0, 255).astype(np.uint8), 32 if place == 0 else 16)
                padded = np.zeros((plane.height, plane.line_size), np.uint8)
                padded[:, : len(row)] = row
                plane.update(padded.tobytes())
            frame.colorspace, frame.color_range = tag, 2 if full else 1
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def stripes(picture: NDArray[np.uint8]) -> list[list[int]]:
    """The colour in the middle of each stripe of `coloured`."""
    return [picture[32, 32 * i + 16].tolist() for i in range(len(COLOURS))]


@dataclass(frozen=True, slots=True)
class Kind:
    """One entry of the matrix of clips: what to call and with what."""

    name: str
    arguments: dict[str, Any]
    degrees: int = 0
    matrix: tuple[str, bool, str] | None = None
    shift: int = 0

    def make(self, folder: Path) -> Path:
        path = folder / self.name
        if self.matrix is not None:
            matrix, full, codec = self.matrix
            return coloured(path, matrix, full=full, codec=codec)
        if not self.shift:
            return rotate(clip(path, **self.arguments), self.degrees)
        whole = clip(folder / f"whole-{self.name}", **self.arguments)
        return remux(whole, path, shift=self.shift)


_CODECS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "h264": ("libx264", {}),
    "h264open": ("libx264", {"options": {"x264-params": "keyint=8:open-gop=1:scenecut=0:b-adapt=0:bframes=3"}}),
    "h264intra": ("libx264", {"options": {"x264-params": "keyint=8:intra-refresh=1"}}),
    "h264ten": ("libx264", {"pix_fmt": "yuv420p10le"}),
    "h264four": ("libx264", {"pix_fmt": "yuv444p"}),
    "hevc": ("libx265", {"options": {"x265-params": "log-level=none:keyint=8"}}),
    "mpeg4": ("mpeg4", {"options": {"g": "8"}}),
    "mpeg4b": ("mpeg4", {"options": {"bf": "2", "g": "9"}}),
    "mpeg2": ("mpeg2video", {"options": {"bf": "2", "g": "9"}, "rate": 25}),
    "mjpeg": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "vp8": ("libvpx", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}}),
    "vp9": ("libvpx-vp9", {"options": {"deadline": "realtime", "cpu-used": "8"}}),
    "av1": ("libsvtav1", {"options": {"preset": "12", "svtav1-params": "lp=1"}}),
    "flv1": ("flv", {}),
    "wmv2": ("wmv2", {}),
}
_CONTAINERS: Final = {
    "mp4": ("h264", "h264open", "h264intra", "h264ten", "h264four", "hevc", "mpeg4", "mpeg4b", "mjpeg", "vp9", "av1"),
    "mov": ("h264", "mjpeg"),
    "mkv": ("h264", "h264open", "hevc", "mpeg4", "mpeg2", "vp8", "av1"),
    "webm": ("vp8", "vp9", "av1"),
    "avi": ("h264", "mpeg4", "mpeg4b", "mjpeg"),
    "ts": ("h264", "h264open", "mpeg2"),
    "mpg": ("mpeg2",),
    "flv": ("h264", "flv1"),
    "wmv": ("wmv2",),
}
_RATES: Final = {"24000-1001": Fraction(24000, 1001), "25": 25, "60": 60}
_LATER: Final = tuple(i + 3 * (i > 7) + 5 * (i > 15) for i in range(24))
"""Times of a clip whose frame rate varies."""


def matrix() -> list[Kind]:
    """Containers x codecs; rates and varying times x containers; rotations; colour matrices x ranges; edit lists."""
    kinds = []
    for suffix, codecs in _CONTAINERS.items():
        for codec in codecs:
            encoder, more = _CODECS[codec]
            kinds.append(Kind(f"{codec}.{suffix}", {"frames": 24, "codec": encoder, **more}))
    for suffix in ("mp4", "mkv", "ts", "flv", "avi", "webm"):
        encoder = {"webm": "libvpx", "avi": "mpeg4"}.get(suffix, "libx264")
        for name, rate in _RATES.items():
            kinds.append(Kind(f"rate-{name}.{suffix}", {"frames": 24, "codec": encoder, "rate": rate}))
        kinds.append(Kind(f"varying.{suffix}", {"frames": 24, "codec": encoder, "times": _LATER}))
    for degrees in (0, 90, 180, 270):
        square = {"frames": 9, "size": (64, 64)}
        kinds += [Kind(f"turned-{degrees}.{suffix}", square, degrees=degrees) for suffix in ("mp4", "mov")]
    for name in _MATRICES:
        for full in (False, True):
            span = "full" if full else "limited"
            kinds.append(Kind(f"{name}-{span}.mp4", {}, matrix=(name, full, "libx264")))
    kinds += [Kind(f"{name}-limited.webm", {}, matrix=(name, False, "libvpx-vp9")) for name in ("bt709", "smpte170m")]
    kinds.append(Kind("edited.mp4", {"frames": 40, "gop": 12}, shift=15))
    return kinds
