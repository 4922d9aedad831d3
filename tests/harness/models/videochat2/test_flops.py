"""The closed form of VideoChat2's vision side against torch's own count."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from harness.models.flops import convolution_backward
from harness.models.videochat2.config import UMTConfig, VideoChat2Config
from harness.models.videochat2.model import VideoChat2ForConditionalGeneration, VideoChat2Model
from harness.models.videochat2.sizes import adapter_parameters, vision_flops
from harness.models.videochat2.vision import UMTModel
from harness.models.videochat2.weights import Lora, add_adapters

PARTS = ("vision", "qformer", "projector", "decoder", "head", "all")


def config() -> VideoChat2Config:
    text = {"model_type": "mistral", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    qformer = {"vocab_size": 30, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3}
    qformer |= {"num_attention_heads": 2, "encoder_hidden_size": 16, "max_position_embeddings": 16}
    vision = UMTConfig(
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        checkpoint_blocks=2,
    )
    made = VideoChat2Config(
        text_config=text,
        qformer_config={**qformer, "model_type": "instructblipvideo_qformer"},
        vision_config=vision.to_dict(),
        num_query_tokens=5,
        num_extra_query_tokens=2,
    )
    made._attn_implementation = "eager"  # torch counts its two products whatever the kernel
    return made


@pytest.mark.parametrize(("frames", "words"), [(1, 2), (4, 5)])
def test_it_is_torchs_own_count(frames: int, words: int) -> None:
    chosen = config()
    model = VideoChat2Model(chosen)
    pixels, text = torch.zeros(2, frames, 3, 24, 24), torch.zeros(2, words, dtype=torch.long)
    known = {torch.ops.aten.convolution_backward: convolution_backward}
    ours = vision_flops(chosen, frames, instruction=words)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.get_video_features(pixels, qformer_input_ids=text)
    assert forward.get_total_flops() / 2 == pytest.approx(ours.forward, rel=1e-12)
    for training, recomputed in ((False, 0.0), (True, ours.recomputed)):
        model.train(training)
        with FlopCounterMode(display=False, custom_mapping=known) as both:
            model.get_video_features(pixels, qformer_input_ids=text).sum().backward()
        counted = both.get_total_flops() / 2
        assert counted == pytest.approx(ours.forward + ours.backward + recomputed, rel=1e-12)
    assert ours.backward_ratio * ours.forward == pytest.approx(ours.backward + ours.recomputed)


def test_checkpointing_everything_computes_blocks_and_qformer_again() -> None:
    part, all_of = (vision_flops(config(), 4, checkpointing=checkpointing) for checkpointing in (False, True))
    assert all_of.recomputed == pytest.approx(3 / 2 * part.recomputed + all_of.qformer)
    assert 0.7 * part.blocks < 3 / 2 * part.recomputed < part.blocks


def test_adapters_of_the_decoder() -> None:
    with torch.device("meta"):
        model = add_adapters(VideoChat2ForConditionalGeneration(config()), Lora(rank=3))
    counted = sum(v.numel() for n, v in model.named_parameters() if "lora_" in n and "lm_head" not in n)
    assert adapter_parameters(config().text_config, 3) == counted


def test_sixteen_frames_at_full_size() -> None:
    """2.7 TFLOP forward, which no elision saves."""
    whole = VideoChat2Config(text_config={"model_type": "mistral"})
    ours = vision_flops(whole, 16)
    vision = whole.vision_config
    vision._attn_implementation = "eager"  # type: ignore[union-attr]
    with torch.device("meta"):
        model, pixels = UMTModel(vision), torch.zeros(1, 16, 3, 224, 224)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(pixels)
    assert forward.get_total_flops() == pytest.approx(ours.patches + ours.blocks, rel=1e-12)
    assert ours.patches + ours.blocks == pytest.approx(2.747e12, rel=1e-3)


@pytest.mark.slow
def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part beside the decoder is counted as the formula says, digit by digit."""
    path = Path(__file__).parents[4] / "benchmarks" / "model_flops.py"
    monkeypatch.setattr(sys, "argv", [str(path), "videochat2", "--frames", "8", "--layers", "2"])
    runpy.run_path(str(path), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows[:6]] == [["8", "1.00", part] for part in PARTS]
    for _, _, part, _, _, counted, formula, *_ in rows:
        limit = 0.02 if part in ("decoder", "all") else 0.0
        assert float(counted) == pytest.approx(float(formula), rel=limit), part
    dense, sparse = (float(row[5]) for row in rows if row[2] == "decoder")
    assert 0.6 < sparse / dense < 0.65
