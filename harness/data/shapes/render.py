"""Scenes to pictures to mp4 bytes.

Legend: T frames, H and W pixels.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import av
import numpy as np

from harness.data.shapes.scene import BACKGROUNDS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.data.shapes.scene import Scene, Thing

RGB: Final = {
    "red": (230, 45, 40),
    "green": (45, 195, 70),
    "blue": (60, 105, 250),
    "yellow": (240, 220, 50),
    "purple": (175, 65, 225),
    "white": (242, 242, 242),
}
CODEC: Final = "mpeg4"
"""Built into every FFmpeg, and four times as fast as x264 on clips of this size."""
FPS: Final = 8
_QUANTISER: Final = 2
_FF_QP2LAMBDA: Final = 118


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The frames of a scene, anti-aliased: uint8 [T, H, W, 3]."""
    shape = (scene.frames, scene.size, scene.size, 3)
    frames_THW3 = np.empty(shape, np.float32)
    frames_THW3[:] = np.array(BACKGROUNDS[scene.background], np.float32)
    for thing in scene.things:
        _paint(frames_THW3, thing)
    return np.rint(frames_THW3).astype(np.uint8)


def _paint(frames_THW3: NDArray[np.float32], thing: Thing) -> None:
    """Blend one object in, inside its own box only."""
    size = frames_THW3.shape[1]
    reach = int(thing.radius) + 3
    for t, (x, y, colour, visible) in enumerate(zip(thing.x, thing.y, thing.colour, thing.visible, strict=True)):
        if not visible:
            continue
        left, top = max(int(x) - reach, 0), max(int(y) - reach, 0)
        right, bottom = min(int(x) + reach + 1, size), min(int(y) + reach + 1, size)
        x_W = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)
        y_H1 = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y))[:, None]
        cover_HW1 = np.clip(0.5 - _distance(thing.shape, x_W, y_H1, thing.radius), 0, 1)[..., None]
        box = frames_THW3[t, top:bottom, left:right]
        box += cover_HW1 * (np.array(RGB[colour], np.float32) - box)


def _distance(shape: str, x: NDArray[np.float32], y: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Signed distance to the outline, in pixels, negative inside."""
    away: Any
    if shape == "circle":
        away = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        away = np.maximum(np.abs(x), np.abs(y)) - 0.88 * radius
    elif shape == "triangle":
        # Three half planes: the base, and two slanted sides that meet at the top.
        slant = (np.abs(x) * 2 - (y + radius * 1.05)) / np.float32(5**0.5)
        away = np.maximum(slant, y - 0.9 * radius)
    elif shape == "cross":
        ax, ay, arm = np.abs(x), np.abs(y), 0.34 * radius
        away = np.minimum(np.maximum(ax - radius, ay - arm), np.maximum(ay - radius, ax - arm))
    else:
        raise AssertionError(shape)
    result: NDArray[np.float32] = away
    return result


def encode(frames_THW3: NDArray[np.uint8]) -> bytes:
    """An mp4 of high quality; the same frames give the same bytes with one build of FFmpeg (one thread)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        # A fixed quantiser; libavcodec counts it in units of FF_QP2LAMBDA.
        options = {"flags": "+qscale+bitexact", "global_quality": str(_QUANTISER * _FF_QP2LAMBDA)}
        stream: Any = container.add_stream(CODEC, rate=FPS, options=options)
        stream.height, stream.width = frames_THW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in frames_THW3:
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()
