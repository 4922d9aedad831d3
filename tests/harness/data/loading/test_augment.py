"""The official augmentation: the pixels of torchvision's, parts within their limits, one flip for a whole clip."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop as torchvision_crop  # 0.14's arithmetic; v2 has another

from harness.data.loading.augment import RATIO, SCALE, Crop, augmented, random_crop, resized_crop


def _clip(frames: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(
        0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("crop", [Crop(0, 0, 48, 64), Crop(5, 9, 40, 31), Crop(0, 30, 20, 26)])
@pytest.mark.parametrize("size", [32, 96])
def test_the_pixels_are_torchvisions_without_antialiasing(crop: Crop, size: int) -> None:
    clip = _clip(3, 48, 64)
    place = (crop.top, crop.left, crop.height, crop.width)
    official = torchvision_crop(clip, *place, [size, size], InterpolationMode.BICUBIC, antialias=False)
    assert torch.equal(resized_crop(clip, crop, size), official)
    smooth = torchvision_crop(clip, *place, [size, size], InterpolationMode.BICUBIC, antialias=True)
    assert size == 96 or not torch.equal(smooth, official), "the test could not tell the two apart"


@settings(deadline=None)
@given(height=st.integers(2, 800), width=st.integers(2, 800), seed=st.integers(0, 2**40))
def test_parts_lie_in_the_picture(height: int, width: int, seed: int) -> None:
    crop = random_crop(height, width, np.random.default_rng(seed))
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert min(crop.height, crop.width) > 0


def test_parts_have_the_official_sizes() -> None:
    crops = [random_crop(600, 800, np.random.default_rng(seed)) for seed in range(500)]
    areas = np.array([crop.height * crop.width / 480_000 for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops])
    assert SCALE[0] - 0.01 < areas.min() < SCALE[0] + 0.03
    assert SCALE[1] - 0.06 < areas.max() <= SCALE[1]
    assert RATIO[0] - 0.01 < ratios.min() < RATIO[0] + 0.05
    assert RATIO[1] - 0.05 < ratios.max() < RATIO[1] + 0.01


@pytest.mark.parametrize(("height", "width", "ratio"), [(20, 400, RATIO[1]), (400, 20, RATIO[0])])
def test_a_narrow_picture_gives_its_middle(height: int, width: int, ratio: float) -> None:
    crop = random_crop(height, width, np.random.default_rng(0))
    assert math.isclose(crop.width / crop.height, ratio, rel_tol=0.05)
    assert (crop.top, crop.left) == ((height - crop.height) // 2, (width - crop.width) // 2)


def test_all_frames_of_a_clip_are_cut_and_flipped_alike() -> None:
    frame = _clip(1, 40, 50)
    clip = frame.repeat(4, 1, 1, 1)
    seen = set()
    for seed in range(40):
        shown = augmented(clip, 32, np.random.default_rng(seed))
        assert shown.shape == (4, 3, 32, 32)
        assert shown.dtype == torch.uint8
        assert all(torch.equal(part, shown[0]) for part in shown)
        unflipped = resized_crop(clip, random_crop(40, 50, np.random.default_rng(seed)), 32)
        assert torch.equal(shown, unflipped) or torch.equal(shown, unflipped.flip(-1))
        seen.add(torch.equal(shown, unflipped))
    assert seen == {True, False}
