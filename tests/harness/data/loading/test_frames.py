"""Which frames are read: the official loaders' numbers, and indices that are always there and in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.loading.frames import FrameRule, choose, middle, mvbench, part, random

# What the official VideoChat2 code gives (video_chat2/dataset/video_utils.py, demo/mvbench.ipynb).
OFFICIAL: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "fixtures" / "videochat2_data_rules.json").read_text()
)


@pytest.mark.parametrize("case", OFFICIAL["train_middle"])
def test_the_middle_of_each_part_as_the_official_loader_takes_it(case: dict[str, Any]) -> None:
    assert middle(case["vlen"], case["num_frames"]) == case["indices"]


@pytest.mark.parametrize("case", OFFICIAL["train_rand_range_over_400_seeds"])
def test_drawn_frames_have_the_range_of_the_official_loader(case: dict[str, Any]) -> None:
    """Over many draws every frame of a part comes but its last; a short clip is drawn without replacement."""
    drawn = np.array([random(case["vlen"], case["num_frames"], np.random.default_rng(i)) for i in range(400)])
    lowest, highest = drawn.min(axis=0).tolist(), drawn.max(axis=0).tolist()
    assert lowest == case["min_seen"] or case["vlen"] == 20
    if case["vlen"] == 20:  # the ends of the whole-clip rng are rare: within one frame of those seen there
        assert np.abs(np.array(lowest) - case["min_seen"]).max() <= 1
        assert np.abs(np.array(highest) - case["max_seen"]).max() <= 1
    else:
        assert highest == case["max_seen"]


@pytest.mark.parametrize("case", OFFICIAL["mvbench_eval"])
def test_the_frames_of_the_mvbench_evaluation(case: dict[str, Any]) -> None:
    first = case["first_idx"]
    start, end = case["bound"] or (None, None)
    total = case["max_frame"] + 1 - first
    found = mvbench(total, case["fps"], case["num_segments"], start, end, first)
    assert [index + first for index in found] == case["indices"]


@settings(deadline=None)
@given(
    rule=st.sampled_from(get_args(FrameRule)),
    total=st.integers(1, 3000),
    frames=st.integers(1, 40),
    bounds=st.none() | st.tuples(st.floats(0, 50), st.floats(0.01, 50)),
    folder=st.booleans(),
)
def test_indices_are_in_the_clip_and_in_order(
    rule: FrameRule, total: int, frames: int, bounds: tuple[float, float] | None, folder: bool
) -> None:
    start, end = (None, None) if bounds is None else (bounds[0], bounds[0] + bounds[1])
    rng = np.random.default_rng(0)
    found = choose(rule, frames, total=total, fps=24.0, start=start, end=end, folder=folder, rng=rng)
    if not found:
        assert start is not None, "a whole clip always has frames"
        return
    assert len(found) == frames
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < total


def test_a_part_ends_with_its_clip() -> None:
    assert part(100, 10.0, 2.0, 4.0) == (20, 20)
    assert part(100, 10.0, 8.0, 40.0) == (80, 20)
    assert part(100, 10.0, None, 4.0) == (0, 100)
    assert choose("middle", 4, total=100, fps=10.0, start=10.0, end=11.0) == []
    assert choose("middle", 4, total=100, fps=10.0, start=2.0, end=4.0) == [22, 27, 32, 37]


def test_a_clip_of_one_frame_and_of_none() -> None:
    for rule in get_args(FrameRule):
        assert choose(rule, 3, total=1, fps=25.0, rng=np.random.default_rng(0)) == [0, 0, 0]
        assert choose(rule, 3, total=0, fps=25.0) == []
