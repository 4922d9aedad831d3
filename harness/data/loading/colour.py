"""Decoded frames as upright RGB pictures of one size.

Legend: H and W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from av.filter import Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TURNS: Final = {90: ("clock",), 180: ("clock", "clock"), 270: ("cclock",)}
"""Steps of the transpose filter for a clockwise rotation; other angles are left as they are, as in decord."""


class RgbFrames:
    """Frames of one stream through one filter graph: rotation, scale to the stream's size, colour matrix, RGB.

    The matrix and the range are those that each frame carries; a frame that names none is BT.601 and limited, as in
    FFmpeg and decord, whatever its size. A frame whose properties differ from the last one's gets a graph of its own.

    Args:
        width, height: what the stream's header says, before the rotation; every frame is scaled to it.
    """

    def __init__(self, width: int, height: int, time_base: Any) -> None:
        self._width, self._height = width, height
        self._time_base = time_base
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """uint8 [H, W, 3]."""
        turn = round(-frame.rotation) % 360
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, turn)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._graph(frame, turn)
        graph.vpush(frame)
        return np.asarray(graph.vpull().to_ndarray(), np.uint8)

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
