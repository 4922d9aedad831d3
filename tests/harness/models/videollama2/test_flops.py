"""The closed form of the vision side's work against torch's own count, on the meta device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models.flops import convolution_backward
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.model import VideoLLaMA2Model
from harness.models.videollama2.sizes import CONNECTORS, vision_flops

PARTS = ("vision", "connector", "decoder", "head", "all")
TEXT = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def config(kind: str, tower: str, frames: int, size: int) -> VideoLLaMA2Config:
    vision = {
        "model_type": f"{tower}_vision_model",
        "hidden_size": 32,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 4,
    }
    made = VideoLLaMA2Config(text_config=TEXT, vision_config=vision, mm_projector_type=kind, num_frames=frames)
    made._attn_implementation = "eager"  # torch counts its two products whatever the kernel
    return made


@pytest.mark.parametrize("kind", CONNECTORS)
@pytest.mark.parametrize(("tower", "frames", "size"), [("siglip", 4, 20), ("clip", 8, 24), ("siglip", 5, 22)])
def test_it_is_torchs_own_count(kind: str, tower: str, frames: int, size: int) -> None:
    chosen = config(kind, tower, frames, size)
    with torch.device("meta"):
        model = VideoLLaMA2Model(chosen)
        pixels = torch.zeros(2, frames, 3, size, size)
    count = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward})
    with count:
        model.get_video_features(pixels).sum().backward()
    ours = vision_flops(chosen)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.get_video_features(pixels)
    assert forward.get_total_flops() / 2 == pytest.approx(ours.tower + ours.connector, rel=1e-12)
    assert count.get_total_flops() / 2 == pytest.approx(
        ours.tower + ours.connector + ours.connector_backward, rel=1e-12
    )
    with FlopCounterMode(display=False) as tower_alone:
        model.vision_tower(pixels.flatten(0, 1))
    assert tower_alone.get_total_flops() / 2 == pytest.approx(ours.tower, rel=1e-12)


def test_the_backward_ratio_counts_what_is_recomputed() -> None:
    ours = vision_flops(config("stc_connector_v35", "siglip", 8, 24))
    whole = ours.tower + ours.connector
    assert ours.backward_ratio(checkpointing=False) * whole == pytest.approx(ours.connector_backward)
    extra = (ours.backward_ratio(checkpointing=True) - ours.backward_ratio(checkpointing=False)) * whole
    assert extra == pytest.approx(ours.recomputed)
    assert 0 < ours.recomputed < ours.connector


@pytest.mark.slow
def test_the_table_at_full_size() -> None:
    """Eight frames of VideoLLaMA2.1-7B: every part but the decoder is counted as the formula says, digit by digit."""
    root = Path(__file__).parents[4]
    command = [sys.executable, "benchmarks/model_flops.py", "videollama2", "--frames", "8"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows[:5]] == [["8", "1.00", part] for part in PARTS]
    for _, _, part, _, _, counted, formula, *_ in rows:
        limit = 0.02 if part in ("decoder", "all") else 0.0
        assert float(counted) == pytest.approx(float(formula), rel=limit), part
    dense, sparse = (float(row[5]) for row in rows if row[2] == "all")
    assert 0.85 < sparse / dense < 0.9
