"""The tiny model is an ordinary transformers model, and its parts get the gradients they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from harness.models.tiny.config import TinyVLMConfig
from harness.models.tiny.model import TinyTower, TinyVLMForConditionalGeneration, tower_parameters
from harness.models.tiny.sizes import vision_flops, visual_tokens

if TYPE_CHECKING:
    from pathlib import Path

VIDEO, P = 2, 16


@pytest.fixture
def model() -> TinyVLMForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyVLMForConditionalGeneration(config())


def config(**changes: object) -> TinyVLMConfig:
    text = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return TinyVLMConfig(text_config=text, placeholder_token_id=VIDEO, **changes)


def batch(rows: int = 2, length: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 50, (rows, length), generator=generator)
    ids[:, 1 : 1 + P] = VIDEO
    pixels = torch.randn(rows, 8, 3, 64, 64, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def test_generic_hooks_find_decoder_base_model_and_embeddings(model: TinyVLMForConditionalGeneration) -> None:
    assert model.get_decoder() is model.model.language_model
    assert model.base_model is model.model
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_input_embeddings().weight is model.lm_head.weight


def test_head_on_base_model_output_is_the_forward_pass(model: TinyVLMForConditionalGeneration) -> None:
    inputs = batch()
    with torch.no_grad():
        hidden = model.base_model(**inputs).last_hidden_state
        assert torch.equal(model.get_output_embeddings()(hidden), model(**inputs).logits)


def test_checkpoint_round_trip(model: TinyVLMForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = TinyVLMForConditionalGeneration.from_pretrained(tmp_path)
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    assert again.get_input_embeddings().weight is again.lm_head.weight
    for name in ("frames", "placeholder_token_id", "visual_tokens"):
        assert getattr(again.config, name) == getattr(model.config, name)


def test_tower_alone_is_a_checkpoint(model: TinyVLMForConditionalGeneration, tmp_path: Path) -> None:
    tower = model.model.vision_tower
    tower.save_pretrained(tmp_path)
    again = TinyTower.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tower.parameters(), again.parameters(), strict=True))


def test_gradient_reaches_projector_and_decoder_but_not_the_frozen_tower(
    model: TinyVLMForConditionalGeneration,
) -> None:
    for parameter in tower_parameters(model):
        parameter.requires_grad_(False)
    inputs = batch()
    model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] == VIDEO, -100)).loss.backward()
    for name, parameter in model.named_parameters():
        if "vision_tower." in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_gradient_checkpointing_changes_nothing(model: TinyVLMForConditionalGeneration) -> None:
    inputs = batch()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        grads.append([p.grad.clone() for p in model.model.language_model.parameters()])
    assert model.model.language_model.is_activation_checkpointing
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_generate_equals_greedy_search_without_cache(model: TinyVLMForConditionalGeneration) -> None:
    inputs = batch()
    made = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        for _ in range(4):
            logits = model(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"]).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            mask = torch.ones_like(ids)
    assert torch.equal(made, ids)


def test_visual_tokens_depend_on_their_own_clip_frame_pair_and_cell(
    model: TinyVLMForConditionalGeneration,
) -> None:
    pixels = batch()["pixel_values"]
    changed = pixels.clone()
    changed[1, 2:4] += 1.0  # the second clip's second pair of frames
    with torch.no_grad():
        before, after = model.model.get_video_features(pixels), model.model.get_video_features(changed)
    different = (before != after).any(-1)
    assert not different[0].any()
    assert different[1].nonzero().flatten().tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("pixels", [None, 1])
def test_placeholders_without_their_clip_are_refused(
    model: TinyVLMForConditionalGeneration, pixels: int | None
) -> None:
    inputs = batch()
    inputs["pixel_values"] = None if pixels is None else inputs["pixel_values"][:pixels]
    with pytest.raises(ValueError, match="32 visual placeholders"):
        model(**inputs)


@pytest.mark.parametrize(("frames", "size"), [(7, 64), (8, 48)])
def test_sizes_that_do_not_divide_are_refused(frames: int, size: int) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        TinyVLMForConditionalGeneration(config(frames=frames, vision_config={"image_size": size}))


@pytest.mark.parametrize("changes", [{"frames_a_token": 3}, {"cells_a_token": 3}, {"cells_a_token": 8}])
def test_a_token_that_does_not_divide_frames_or_cells_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of"):
        TinyVLMForConditionalGeneration(config(**changes))


def test_a_token_of_one_cell_of_one_frame_is_that_cell_through_the_projector() -> None:
    """128 visual tokens behind the same tower, in (time, row, column) order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fine = TinyVLMForConditionalGeneration(config(frames_a_token=1, cells_a_token=1)).model
    pixels = batch(rows=1)["pixel_values"]
    with torch.no_grad():
        tokens_PD = fine.get_video_features(pixels)[0]
        cells_TCHW = fine.vision_tower(pixels[0]).last_hidden_state
        linear = fine.projector
        for token, (t, row, column) in ((0, (0, 0, 0)), (7, (0, 1, 3)), (127, (7, 3, 3))):
            cell_C = cells_TCHW[t, :, row, column]
            by_hand_D = linear.linear_2(linear.act(linear.linear_1(cell_C))) + linear.place_PD[token]
            torch.testing.assert_close(tokens_PD[token], by_hand_D)
    assert len(tokens_PD) == fine.config.visual_tokens == 128


@pytest.mark.parametrize("merged", [1, 2])
def test_vision_flops_are_those_that_torch_counts(merged: int) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = TinyVLMForConditionalGeneration(config(frames_a_token=merged, cells_a_token=merged))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.get_video_features(batch(rows=1)["pixel_values"])
    assert counter.get_total_flops() == vision_flops(model.config)
    assert visual_tokens(8, 4, merged, merged) == model.config.visual_tokens == {1: 128, 2: P}[merged]
