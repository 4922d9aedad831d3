"""InternVL's published checkpoints: names and shapes at full size, there and back at tiny size, what is refused."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.common.errors import EnvironmentProblem
from harness.models.hf.config import read_config
from harness.models.hf.internvl import checkpoint_names, config, weights
from harness.models.hf.weights import load_model, load_processor

if TYPE_CHECKING:
    from collections.abc import Callable

FIXTURES = Path(__file__).parents[3] / "fixtures"
SIZES = {
    "8b": ((4096, 12288, 36, 32), 8_528_318_464, 745, 841),
    "14b": ((5120, 17408, 40, 40), 15_119_523_840, 789, 885),
}
Written = dict[str, Any]


def published_config(hidden: int, inner: int, layers: int, heads: int) -> Written:
    """config.json of InternVL3.5 at full size."""
    return {
        "model_type": "internvl_chat", "ps_version": "v2", "select_layer": -1, "template": "internvl2_5",
        "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448, "max_dynamic_patch": 12,
        "min_dynamic_patch": 1, "use_thumbnail": True, "use_backbone_lora": 0, "use_llm_lora": 0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "llm_config": {
            "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None,
            "max_position_embeddings": 40960, "attention_bias": False, "attention_dropout": 0.0,
            "initializer_range": 0.02, "use_sliding_window": False, "bos_token_id": 151643, "eos_token_id": 151645,
        },
        "vision_config": {
            "model_type": "intern_vit_6b", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu",
            "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False,
            "attention_dropout": 0.0, "dropout": 0.0, "drop_path_rate": 0.1, "initializer_range": 0.02,
        },
    }  # fmt: skip


def listed(size: str, form: str) -> dict[str, tuple[int, ...]]:
    raw = lzma.decompress((FIXTURES / f"internvl3_5_{size}_{form}_shapes.json.xz").read_bytes())
    return {name: tuple(shape) for name, shape in json.loads(raw).items()}


@pytest.mark.parametrize("size", SIZES)
def test_every_name_and_shape_at_full_size(size: str) -> None:
    sides, parameters, theirs, ours = SIZES[size]
    translated = config.from_official(published_config(*sides), 151671, size)
    shapes = weights.shapes_of(translated)
    assert {name: tuple(shape) for name, shape in shapes.items()} == listed(size, "hf")
    assert checkpoint_names.official_shapes(shapes) == listed(size, "github")
    assert (len(listed(size, "github")), len(shapes)) == (theirs, ours)
    assert sum(shape.numel() for shape in shapes.values()) == parameters


def test_the_fields_whose_defaults_are_another_model_s() -> None:
    translated: Any = config.from_official(published_config(*SIZES["8b"][0]), 151671, "8b")
    text, vision = translated.text_config, translated.vision_config
    assert (translated.tie_word_embeddings, translated.image_token_id) == (False, 151671)
    assert (vision.attention_bias, vision.layer_norm_eps, vision.norm_type) == (True, 1e-6, "layer_norm")
    assert (text.rope_parameters["rope_theta"], text.head_dim, text.rms_norm_eps) == (1e6, 128, 1e-6)
    assert (translated.image_seq_length, translated.vision_feature_layer) == (256, -1)
    assert text.tie_word_embeddings is False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tiny published checkpoint, to be changed."""
    copied = tmp_path / "published"
    copied.mkdir()
    tokenizer = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    for name in ("config.json", "model.safetensors", *tokenizer):
        shutil.copy(FIXTURES / "internvl" / name, copied)
    return copied


def change(folder: Path, edit: Callable[[Written], object]) -> None:
    written = json.loads((folder / "config.json").read_text())
    edit(written)
    (folder / "config.json").write_text(json.dumps(written))


def logits_of(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    side, token = model.config.vision_config.image_size[0], model.config.image_token_id
    pixels = torch.randn((1, 3, side, side), generator=generator)
    ids = torch.randint(0, 300, (1, 40), generator=generator)
    ids[0, 5 : 5 + model.config.image_seq_length] = token
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids, pixel_values=pixels).logits
    return logits


def test_there_and_back(folder: Path, tmp_path: Path) -> None:
    """Published to transformers to published: the same tensors, configuration and logits."""
    model, processor = load_model(folder, torch.float32), load_processor(folder)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(str(tmp_path / "ours"))
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert torch.equal(logits_of(ours), logits_of(model))
    again = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert again.image_token_id == model.config.image_token_id
    weights.save_published(ours, again, tmp_path / "back")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits_of(load_model(tmp_path / "back", torch.float32)), logits_of(model))
    first, second = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "back"))
    unread = {"architectures", "layer_types", "initializer_factor", "max_window_layers", "sliding_window",
              "use_cache", "use_flash_attn", "output_attentions", "transformers_version"}  # fmt: skip
    for part in ("", "llm_config", "vision_config"):
        own, theirs = (written[part] if part else written for written in (second, first))
        differing = {name for name in theirs if not isinstance(theirs[name], dict) and own.get(name) != theirs[name]}
        assert differing <= unread, part


def test_a_tied_head(folder: Path, tmp_path: Path) -> None:
    change(folder, lambda written: written.update(tie_word_embeddings=True))
    state = load_file(folder / "model.safetensors")
    with pytest.raises(EnvironmentProblem, match="tie_word_embeddings is true, and the head differs"):
        load_model(folder, torch.float32)
    state.pop(checkpoint_names.HEAD)
    save_file(state, folder / "model.safetensors")
    model = load_model(folder, torch.float32)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    weights.save_published(model, load_processor(folder), tmp_path / "back")
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == state.keys()
    change(folder, lambda written: written["llm_config"].update(tie_word_embeddings=False))
    with pytest.raises(EnvironmentProblem, match="tie_word_embeddings true and false"):
        read_config(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("mlp1.3.bias"), r"1 missing: mlp1\.3\.bias"),
        (lambda state: state.update(strange=torch.zeros(2)), "1 surplus: strange"),
        (
            lambda state: state.update({"vision_model.encoder.layers.0.attn.qkv.bias": torch.zeros(3)}),
            r"1 of another shape: vision_model\.encoder\.layers\.0\.attn\.qkv\.bias",
        ),
    ],
)
def test_tensors_are_accounted_for_by_name(folder: Path, edit: Callable[[Any], object], message: str) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(EnvironmentProblem, match=message):
        load_model(folder, torch.float32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("ps_version"), "has no ps_version"),
        (lambda c: c.update(ps_version="v1"), "ps_version is 'v1'; known is 'v2'"),
        (lambda c: c.update(template="internlm2-chat"), "template is 'internlm2-chat'"),
        (lambda c: c.update(use_llm_lora=16), "use_llm_lora is 16"),
        (lambda c: c.update(force_image_size=112), "force_image_size is 112 and vision_config.image_size 56"),
        (lambda c: c.pop("tie_word_embeddings"), "tie_word_embeddings nothing"),
        (lambda c: c["llm_config"].update(model_type="qwen2"), "llm_config.model_type is 'qwen2'; known is 'qwen3'"),
        (lambda c: c["llm_config"].pop("rope_theta"), "has no llm_config.rope_theta"),
        (lambda c: c["llm_config"].pop("head_dim"), "has no llm_config.head_dim"),
        (lambda c: c["llm_config"].update(rope_scaling={"type": "dynamic"}), "llm_config.rope_scaling is"),
        (lambda c: c["vision_config"].pop("norm_type"), "has no vision_config.norm_type"),
        (lambda c: c["llm_config"].update(vocab_size=100), "has the id 339, and config.json 100 rows"),
        (lambda c: c.pop("vision_config"), "has no vision_config"),
    ],
)
def test_configurations_that_are_refused(folder: Path, edit: Callable[[Written], object], message: str) -> None:
    change(folder, edit)
    with pytest.raises(EnvironmentProblem, match=message):
        load_model(folder, torch.float32)


def test_pictures_that_are_cut_otherwise_are_refused(folder: Path) -> None:
    change(folder, lambda written: written.update(use_thumbnail=False))
    with pytest.raises(EnvironmentProblem, match="use_thumbnail is False; known is True"):
        load_processor(folder)


def test_another_model_s_tokenizer_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<IMG_CONTEXT>", "<IMG_OTHER>"))
    with pytest.raises(EnvironmentProblem, match="does not know <IMG_CONTEXT>"):
        load_processor(folder)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"none")
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors: damaged"):
        load_model(folder, torch.float32)
