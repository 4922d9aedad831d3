"""Kept tower features: what was written is read, and nothing else is."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from harness.common.errors import DataError
from harness.data.loading.tower_features import TowerFeatures, write_features

if TYPE_CHECKING:
    from pathlib import Path

FEATURES = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
MADE_FROM = {"data": "d", "frames": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four samples; the first two show the same clip, the last one's is not kept."""
    write_features(tmp_path / "tower", 3, FEATURES.split(2), np.array([1, 1, 2, -1]), MADE_FROM)
    return tmp_path / "tower"


def test_samples_get_the_row_of_their_clip(folder: Path) -> None:
    features = TowerFeatures.open(folder, MADE_FROM)
    assert features is not None
    assert features.samples == 3
    for opened in (features, pickle.loads(pickle.dumps(features))):
        taken = opened.of([2, 0, 1])
        assert taken is not None
        assert torch.equal(taken, FEATURES[[2, 1, 1]])


def test_a_batch_with_a_sample_that_has_none_gets_none(folder: Path) -> None:
    features = TowerFeatures.open(folder, MADE_FROM)
    assert features is not None
    assert features.of([0, 3]) is None


def test_a_changed_byte_is_not_read(folder: Path) -> None:
    content = bytearray((folder / "features.npy").read_bytes())
    content[-1] ^= 1
    (folder / "features.npy").write_bytes(content)
    features = TowerFeatures.open(folder, MADE_FROM)
    assert features is not None
    assert features.of([2]) is None
    assert features.of([0]) is not None


def test_what_is_not_there_is_none_and_what_is_damaged_is_told(folder: Path) -> None:
    assert TowerFeatures.open(folder.with_name("other"), MADE_FROM) is None
    with pytest.raises(DataError, match="made from something else"):
        TowerFeatures.open(folder, {**MADE_FROM, "frames": 16})
    (folder / "sums.npy").write_bytes(b"")
    with pytest.raises(DataError, match="are damaged"):
        TowerFeatures.open(folder, MADE_FROM)
