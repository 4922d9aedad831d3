"""Sharing a clip's pass through the tower changes nothing but the work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from harness.evaluation.lmms.shared_tower import one_tower_pass


class Tower(nn.Module):
    """Remembers what it was given; answers in the given form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.seen: list[int] = []

    def forward(self, pixels: torch.Tensor, scale: float = 1.0) -> Any:
        self.seen.append(pixels.shape[0])
        features = scale * pixels.cumsum(1)
        if self.form == "tensor":
            return features
        return BaseModelOutput(last_hidden_state=features) if self.form == "output" else (features, features + 1)


class Model(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"vision_tower": Tower(form), "other": nn.Identity()})

    @property
    def tower(self) -> Any:
        return self.inner["vision_tower"]


def tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    return list(output.values() if isinstance(output, dict) else output)


@pytest.mark.parametrize("form", ["tensor", "output", "tuple"])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("clip_B", [[0, 0, 1, 1, 1, 2], [0, 1, 0, 0, 2, 1], [0, 0, 0, 0, 0, 0]])
def test_each_clip_is_computed_once_and_every_row_gets_its_own(form: str, frames: int, clip_B: list[int]) -> None:
    model = Model(form)
    clips = torch.randn(3, frames, 5)
    pixels = clips[clip_B].flatten(0, 1)
    expected = tensors(model.tower(pixels, scale=2.0))
    with one_tower_pass(model, clip_B):
        by_keyword = model.tower(pixels, scale=2.0)
        by_name = model.tower(pixels=pixels, scale=2.0)
    assert model.tower.seen == [6 * frames] + [len(set(clip_B)) * frames] * 2
    for output in (by_keyword, by_name):
        assert type(output) is type(model.tower(pixels))
        for ours, theirs in zip(tensors(output), expected, strict=True):
            assert torch.equal(ours, theirs)
    model.tower(pixels)
    assert model.tower.seen[-1] == 6 * frames, "nothing stays behind"


def test_rows_that_differ_are_left_alone() -> None:
    model = Model("tensor")
    pixels = torch.randn(4, 5)  # said to be two clips, but all four differ
    with one_tower_pass(model, [0, 0, 1, 1]):
        assert torch.equal(model.tower(pixels), pixels.cumsum(1))
        packed = torch.randn(7, 5)  # not laid out row by row
        assert torch.equal(model.tower(packed), packed.cumsum(1))
    assert model.tower.seen == [4, 7]


def test_without_repeats_no_hook_is_set() -> None:
    model = Model("tensor")
    with one_tower_pass(model, [0, 1, 2]):
        assert not model.tower._forward_pre_hooks
