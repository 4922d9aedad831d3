"""Bytes that become what a model reads, by a table."""

from __future__ import annotations

import pickle

import torch

from harness.data.loading.pixels import ColourTable

MEAN, DEVIATION = torch.tensor([0.48, 0.45, 0.4]), torch.tensor([0.26, 0.25, 0.27])


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.float() / 255 - MEAN[:, None, None]) / DEVIATION[:, None, None]


def test_every_value_of_every_colour_is_that_of_the_function() -> None:
    table = pickle.loads(pickle.dumps(ColourTable.by(normalised)))
    every = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256)
    assert torch.equal(table.look_up(every), normalised(every))
    clips = torch.randint(256, (2, 5, 3, 7, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(table.look_up(clips), normalised(clips))
    assert torch.equal(table.look_up(clips.transpose(3, 4)), normalised(clips.transpose(3, 4)))


def test_rows_of_patches_have_one_colour_behind_the_other() -> None:
    table = ColourTable.by(normalised)
    patches = torch.randint(256, (6, 3, 8, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(table.look_up(patches.flatten(1)), normalised(patches).flatten(1))
