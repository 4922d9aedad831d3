"""Official checkpoints: every name and shape at full size, files put together, and what is refused."""

from __future__ import annotations

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipConfig, SiglipModel

from harness.common.errors import EnvironmentProblem
from harness.models.videollama2.config import VideoLLaMA2Config, nested
from harness.models.videollama2.connector import ChannelNorm
from harness.models.videollama2.model import RENAMED, VideoLLaMA2ForConditionalGeneration, our_name
from harness.models.videollama2.sizes import visual_tokens
from harness.models.videollama2.weights import ModelFiles, assemble, read_projector

FIXTURES = Path(__file__).parents[3] / "fixtures"
SHAPES_7B = json.loads(lzma.decompress((FIXTURES / "videollama2_7b_shapes.json.xz").read_bytes()))
COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "num_frames": 16,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 2048,
    "torch_dtype": "bfloat16",
}
OFFICIAL_2_1 = {
    **COMMON,
    "model_type": "videollama2_qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "mm_hidden_size": 1152,
    "mm_projector_type": "stc_connector_v35",
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
OFFICIAL_2_0 = {
    **COMMON,
    "model_type": "videollama2_mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "mm_hidden_size": 1024,
    "mm_projector_type": "stc_connector",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "vocab_size": 32000,
}


def on_meta(official: dict[str, Any], folder: Path) -> VideoLLaMA2ForConditionalGeneration:
    """The whole model without memory, from the flat config as it stands in a checkpoint folder."""
    (folder / "config.json").write_text(json.dumps(official))
    config = VideoLLaMA2Config.from_pretrained(folder)
    with torch.device("meta"):
        return VideoLLaMA2ForConditionalGeneration(config)


def official_name(ours: str) -> str:
    for before, after in RENAMED.items():
        if ours.startswith(after):
            return before + ours.removeprefix(after)
    return ours


def test_every_name_and_shape_of_2_1_7b_16f(tmp_path: Path) -> None:
    model = on_meta(OFFICIAL_2_1, tmp_path)
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert ours == {our_name(name): shape for name, shape in SHAPES_7B.items()}
    assert len(ours) == 900
    assert sum(value.numel() for value in model.parameters()) == 8_420_731_360
    assert sum(value.numel() for value in model.parameters() if value.requires_grad) == 7_992_505_760
    assert model.config.visual_tokens == 1352


@pytest.mark.parametrize(
    ("official", "index_bytes", "gigabytes"),
    [(OFFICIAL_2_1, 93_091, 4.878 + 4.933 + 4.995 + 2.037), (OFFICIAL_2_0, 82_247, 4.943 + 5.000 + 4.990 + 1.135)],
    ids=["2.1-7B-16F", "2.0-7B-16F"],
)
def test_the_published_index_has_these_names(
    tmp_path: Path, official: dict[str, Any], index_bytes: int, gigabytes: float
) -> None:
    """The size of the published index, to the byte, and of the shards: so names, number and type are right."""
    model = on_meta(official, tmp_path)
    state = {official_name(name): value for name, value in model.state_dict().items()}
    total = 2 * sum(value.numel() for value in state.values())
    shards = dict.fromkeys(state, "model-00001-of-00004.safetensors")
    index = {"metadata": {"total_size": total}, "weight_map": shards}
    assert len(json.dumps(index, indent=2, sort_keys=True) + "\n") == index_bytes
    assert total / 1e9 == pytest.approx(gigabytes, abs=3e-3)


def test_the_constants_that_a_checkpoint_does_not_hold(tmp_path: Path) -> None:
    model = on_meta(OFFICIAL_2_1, tmp_path)
    config = model.config
    vision, text = config.vision_config, config.text_config
    assert (vision.layer_norm_eps, vision.hidden_act, vision.patch_size) == (1e-6, "gelu_pytorch_tanh", 14)
    assert (config.grid, config.tower_layers, vision.num_hidden_layers) == (27, 26, 27)
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"]) == (1e-6, 1e6)
    assert (text.sliding_window, set(text.layer_types)) == (None, {"full_attention"})
    norms = [module for module in model.model.mm_projector.modules() if isinstance(module, ChannelNorm)]
    assert len(norms) == 8 * 3 + 1
    assert {norm.eps for norm in norms} == {1e-5}
    gelu = model.model.mm_projector.readout[1]
    assert (type(gelu), gelu.approximate) == (torch.nn.GELU, "none")
    assert model.model.mm_projector.s1.b1.se.fc1.out_channels == 288
    clip = on_meta(OFFICIAL_2_0, tmp_path).config
    assert (clip.vision_config.layer_norm_eps, clip.vision_config.hidden_act) == (1e-5, "quick_gelu")
    assert (clip.grid, clip.tower_layers, clip.visual_tokens) == (24, 23, 1521)


@pytest.mark.parametrize(
    ("kind", "frames", "grid", "tokens"),
    [
        ("stc_connector_v35", 16, 27, 1352), ("stc_connector_v35", 16, 24, 1152), ("stc_connector_v35", 8, 24, 576),
        ("stc_connector", 16, 27, 1764), ("stc_connector", 16, 24, 1521), ("stc_connector", 8, 24, 845),
        ("stp_connector", 16, 27, 1352), ("linear", 16, 27, 729), ("mlp2x_gelu", 8, 24, 576),
    ],
)  # fmt: skip
def test_visual_tokens(kind: str, frames: int, grid: int, tokens: int) -> None:
    assert visual_tokens(kind, frames, grid) == tokens


def write_parts(folder: Path, projector: str = "mm_projector.bin") -> ModelFiles:
    """A language model, a whole SigLIP and a projector of our own, as their publishers store them."""
    torch.manual_seed(3)
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen2ForCausalLM(Qwen2Config(**text, **heads)).save_pretrained(folder / "llm")
    vision = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    words = {"vocab_size": 10, **vision}
    siglip = SiglipConfig(vision_config={**vision, "image_size": 24, "patch_size": 6}, text_config=words)
    SiglipModel(siglip).save_pretrained(folder / "tower")
    files = ModelFiles(folder / "llm", folder / "tower", None, num_frames=4)
    model = assemble(files, seed=5)
    state = {f"model.mm_projector.{name}": value for name, value in model.model.mm_projector.state_dict().items()}
    base = folder / "base" / projector
    base.parent.mkdir()
    if base.suffix == ".bin":
        torch.save({name: value.to(torch.bfloat16) for name, value in state.items()}, base)
    else:
        save_file(state, base)
    return ModelFiles(folder / "llm", folder / "tower", base, num_frames=4)


@pytest.mark.parametrize("projector", ["mm_projector.bin", "mm_projector.safetensors"])
def test_parts_make_the_model(tmp_path: Path, projector: str) -> None:
    """Every tensor of the model is that of its part."""
    files = write_parts(tmp_path, projector)
    assert files.projector is not None
    model = assemble(files, seed=99)
    state = model.state_dict()
    for name, value in load_file(tmp_path / "llm" / "model.safetensors").items():
        assert torch.equal(state.pop(our_name(name)), value), name
    for name, value in load_file(tmp_path / "tower" / "model.safetensors").items():
        if name.startswith("vision_model."):
            inner = name.removeprefix("vision_model.")
            assert torch.equal(state.pop(f"model.vision_tower.vision_tower.{inner}"), value), name
    for name, value in read_projector(files.projector).items():
        assert torch.equal(state.pop(f"model.mm_projector.{name}"), value.float()), name
    assert not state
    assert model.config.visual_tokens == 2 * 2 * 2


def test_an_untrained_connector_follows_its_seed(tmp_path: Path) -> None:
    files = ModelFiles(write_parts(tmp_path).language_model, tmp_path / "tower", None, num_frames=4)
    before = torch.random.get_rng_state()
    one, same, other = (assemble(files, seed=seed).model.mm_projector.readout[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


class Anything:
    """Not a tensor."""


def broken(path: Path, files: ModelFiles, how: str) -> ModelFiles:
    assert files.projector is not None
    tensors = torch.load(files.projector, weights_only=True)
    if how == "another connector":
        return ModelFiles(files.language_model, files.vision_tower, files.projector, "mlp2x_gelu", num_frames=4)
    if how == "its config says so":
        config = {"model_type": "videollama2_qwen2", "mm_projector_type": "stc_connector"}
        (files.projector.parent / "config.json").write_text(json.dumps(config))
    elif how == "a pickle":
        torch.save({"model.mm_projector.x": Anything()}, files.projector)
    elif how == "a tensor less":
        torch.save(dict(list(tensors.items())[1:]), files.projector)
    elif how == "not there":
        files.projector.unlink()
    elif how == "something else":
        torch.save({"lm_head.weight": torch.zeros(1)}, files.projector)
    elif how == "cut off":
        files.projector.write_bytes(files.projector.read_bytes()[:1000])
    elif how == "no llm":
        (files.language_model / "model.safetensors").unlink()
    elif how == "a whole model":
        (files.language_model / "config.json").write_text('{"model_type": "videollama2_qwen2"}')
    elif how == "damaged llm":
        file = files.language_model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    return files


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("another connector", "unexpected"),
        ("its config says so", "it is a stc_connector, the recipe a stc_connector_v35"),
        ("a pickle", "cannot be read as a file of tensors"),
        ("a tensor less", "1 missing: model.mm_projector.s1.b1.conv1.conv.weight"),
        ("not there", "not there"),
        ("something else", "holds no tensor named mm_projector"),
        ("cut off", "cannot be read as a file of tensors"),
        ("no llm", "model.safetensors: not there"),
        ("damaged llm", "damaged"),
        ("a whole model", "model_type is 'videollama2_qwen2'; known are qwen2, mistral"),
    ],
)
def test_parts_that_are_refused(tmp_path: Path, how: str, words: str) -> None:
    files = broken(tmp_path, write_parts(tmp_path), how)
    with pytest.raises(EnvironmentProblem, match=words) as raised:
        assemble(files)
    assert "\n" not in str(raised.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the fixture's checkpoint, in two shards."""
    copied = tmp_path / "checkpoint"
    shutil.copytree(FIXTURES / "videollama2", copied)
    model = VideoLLaMA2ForConditionalGeneration.from_pretrained(copied)
    (copied / "model.safetensors").unlink()
    model.save_pretrained(copied, max_shard_size="800KB")
    assert len(list(copied.glob("model-*.safetensors"))) > 1
    return copied


def test_shards_are_read(folder: Path) -> None:
    places = (folder, FIXTURES / "videollama2")
    ours, theirs = (VideoLLaMA2ForConditionalGeneration.from_pretrained(place) for place in places)
    other = theirs.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("how", "words"),
    [("shard", "model-00001-of-"), ("extra", "1 unexpected: model.mm_projector.more"),
     ("missing", "1 missing: model.mm_projector.readout.0.bias"),
     ("shape", "1 mismatched: model.mm_projector.readout.0.bias"), ("connector", "unexpected"),
     ("unknown connector", "mm_projector_type is 'spatial_conv'; known are stc_connector_v35"),
     ("tower", "vision tower 'nothing'"), ("width", "mm_hidden_size is 7"), ("model", "model_type is 'llama'")],
)  # fmt: skip
def test_checkpoints_that_are_refused(folder: Path, how: str, words: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    bias = "model.mm_projector.readout.0.bias"
    place = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][bias]
    tensors = load_file(folder / place)
    changes: dict[str, dict[str, Any]] = {
        "connector": {"mm_projector_type": "linear"},
        "unknown connector": {"mm_projector_type": "spatial_conv"},
        "tower": {"mm_vision_tower": "nothing", "vision_config": None},
        "width": {"mm_hidden_size": 7},
        "model": {"model_type": "llama"},
    }
    if how == "shard":
        (folder / "model-00001-of-00002.safetensors").unlink()
    elif how in changes:
        (folder / "config.json").write_text(json.dumps(config | changes[how]))
    else:
        tensors |= {"model.mm_projector.more": torch.ones(1)} if how == "extra" else {}
        tensors |= {bias: torch.ones(3)} if how == "shape" else {}
        if how == "missing":
            del tensors[bias]
        save_file(tensors, folder / place, metadata={"format": "pt"})
    if how in ("extra", "missing"):  # as a publisher would write it: the index goes with the files
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"] = {
            **{name: file for name, file in index["weight_map"].items() if file != place},
            **dict.fromkeys(tensors, place),
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(EnvironmentProblem, match=words):
        VideoLLaMA2ForConditionalGeneration.from_pretrained(folder)


def test_the_nested_form_is_read_too(parity_root: Path) -> None:
    config = VideoLLaMA2Config.from_pretrained(parity_root)
    again = VideoLLaMA2Config.from_dict(config.to_dict())
    assert again.flat() == config.flat()
    assert nested(config.flat(), parity_root)["official"] == config.official
