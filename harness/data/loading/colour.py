"""Decoded frames as upright RGB pictures of one size.

Legend: H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from av.filter import Graph
from av.video.reformatter import VideoReformatter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TURNS: Final = {90: ("clock",), 180: ("clock", "clock"), 270: ("cclock",)}
"""Steps of the transpose filter for a clockwise rotation; other angles are left as they are, as in decord."""
_BT601: Final = (2, 5, 6)
"""FFmpeg's AVColorSpace: unspecified, BT.470 BG and SMPTE 170M, which have one matrix."""
_LIMITED: Final = (0, 1)
"""FFmpeg's AVColorRange: unspecified and limited."""


class RgbFrames:
    """Frames of one stream through one filter graph: rotation, scale to the stream's size, colour matrix, RGB.

    The matrix and the range are those that each frame carries; a frame that names none is BT.601 and limited, as in
    FFmpeg and decord, whatever its size. A frame whose properties differ from the last one's gets a graph of its own.
    Plain frames need no graph, whose making takes longer than a short clip: the scaler alone gives the same bytes.

    Args:
        width, height: what the stream's header says, before the rotation; every frame is scaled to it.
    """

    def __init__(self, width: int, height: int, time_base: Any) -> None:
        self._width, self._height = width, height
        self._time_base = time_base
        self._graphs: dict[tuple[Any, ...], Graph] = {}
        self._scaler = VideoReformatter()

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        turn = round(-frame.rotation) % 360
        if turn == 0 and self._is_plain(frame):
            rgb = self._scaler.reformat(frame, format="rgb24", interpolation="BILINEAR")
            return np.asarray(rgb.to_ndarray(), np.uint8)
        return self.by_graph(frame, turn)

    def by_graph(self, frame: Any, turn: int) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] of any frame, turned clockwise by so many degrees."""
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, turn)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._graph(frame, turn)
        graph.vpush(frame)
        return np.asarray(graph.vpull().to_ndarray(), np.uint8)

    def _is_plain(self, frame: Any) -> bool:
        """Whether it is what most encoders write, in its stream's size."""
        same_size = (frame.width, frame.height) == (self._width or frame.width, self._height or frame.height)
        of_601 = frame.colorspace in _BT601 and frame.color_range in _LIMITED
        return same_size and of_601 and frame.format.name == "yuv420p"

    def _graph(self, frame: Any, turn: int) -> Graph:
        width, height = self._width or frame.width, self._height or frame.height
        if turn in (90, 270):
            width, height = height, width
        graph = Graph()
        nodes = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format.name, time_base=self._time_base
            )
        ]
        nodes += [graph.add("transpose", direction) for direction in _TURNS.get(turn, ())]
        nodes.append(graph.add("scale", f"{width}:{height}:flags=bilinear"))
        nodes.append(graph.add("format", "pix_fmts=rgb24"))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph
