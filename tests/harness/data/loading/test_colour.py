"""Frames to RGB: what goes by the scaler alone is what the filter graph gives."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from harness.data.loading.colour import RgbFrames


def noise(width: int, height: int, colorspace: int, color_range: int, *, seed: int = 0, form: str = "yuv420p") -> Any:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
    frame.colorspace, frame.color_range, frame.pts = colorspace, color_range, seed
    return frame


@pytest.mark.parametrize("size", [(64, 64), (63, 37), (2, 2), (130, 98), (638, 362)], ids=str)
@pytest.mark.parametrize("colorspace", [2, 5, 6])
@pytest.mark.parametrize("color_range", [0, 1])
def test_a_plain_frame_has_the_bytes_of_the_graph(size: tuple[int, int], colorspace: int, color_range: int) -> None:
    frames = RgbFrames(*size, Fraction(1, 8))
    for seed in (0, 1):
        frame = noise(*size, colorspace, color_range, seed=seed)
        np.testing.assert_array_equal(frames(frame), frames.by_graph(frame, 0))


@pytest.mark.parametrize(
    ("form", "colorspace", "color_range", "stream"),
    [("yuv420p", 1, 1, (64, 48)), ("yuv420p", 2, 2, (64, 48)), ("yuvj420p", 2, 2, (64, 48)),
     ("yuv420p", 2, 0, (32, 24)), ("yuv444p", 2, 0, (64, 48))],
    ids=["another matrix", "full range", "full range by its format", "another size", "another format"],
)  # fmt: skip
def test_any_other_frame_goes_through_the_graph(
    form: str, colorspace: int, color_range: int, stream: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    by_graph = RgbFrames.by_graph
    monkeypatch.setattr(RgbFrames, "by_graph", lambda self, *given: asked.append(given) or by_graph(self, *given))
    rgb = RgbFrames(*stream, Fraction(1, 8))(noise(64, 48, colorspace, color_range, form=form))
    assert rgb.shape == (stream[1], stream[0], 3)
    assert len(asked) == 1
