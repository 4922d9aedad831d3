"""What a plan says of a model before anything of it is there, against the model itself on the meta device."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from harness.common.errors import RecipeError
from harness.config.load import load_recipe
from harness.models import MODELS
from harness.models.hf.sizes import PUBLISHED
from harness.models.tiny.config import TinyTowerConfig, TinyVLMConfig
from harness.models.tiny.model import TinyVLMForConditionalGeneration
from harness.models.videochat2.config import UMTConfig, VideoChat2Config
from harness.models.videochat2.model import VideoChat2ForConditionalGeneration
from harness.models.videochat2.sizes import MISTRAL_7B
from harness.models.videochat2.weights import Lora, add_adapters
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from harness.models.videollama2.sizes import TOWERS

if TYPE_CHECKING:
    from torch import nn

    from harness.models.footprint import Footprint

SHAPES = Path(__file__).parents[2] / "fixtures" / "videollama2_7b_shapes.json.xz"


def footprint_of(name: str, *overrides: str) -> Footprint:
    recipe = load_recipe(name, list(overrides))
    return MODELS[recipe.model.adapter].footprint(recipe)


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def parts_of(footprint: Footprint) -> dict[str, int]:
    return {part.name: part.parameters for part in footprint.parts}


def on_meta(build: Any) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = build()
    return model


def test_videollama2_holds_the_parameters_of_the_published_checkpoint() -> None:
    shapes = json.loads(lzma.decompress(SHAPES.read_bytes()))
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    footprint = footprint_of("videollama2_regate")
    tower = sum(size for name, size in sizes.items() if ".vision_tower." in name)
    connector = sum(size for name, size in sizes.items() if ".mm_projector." in name)
    assert parts_of(footprint) == {"vision tower": tower, "connector": connector}
    assert footprint.decoder_parameters == sum(sizes.values()) - tower - connector
    assert (footprint.frozen, footprint.trained) == (tower, sum(sizes.values()) - tower)
    assert footprint.visual_tokens == 1352


@pytest.mark.parametrize("kind", ["stc_connector", "stp_connector", "mlp2x_gelu", "linear"])
def test_every_connector_and_the_toy_model(kind: str) -> None:
    footprint = footprint_of("tiny_videollama2_regate", f"model.projector_type={kind}", "data.frames=8")
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64}
    vision |= {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
    text = {"model_type": "qwen2", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = VideoLLaMA2Config(text_config=text, vision_config=vision, mm_projector_type=kind, num_frames=8)
    model: Any = on_meta(lambda: VideoLLaMA2ForConditionalGeneration(config))
    inner = model.model
    assert parts_of(footprint) == {"vision tower": count(inner.vision_tower), "connector": count(inner.mm_projector)}
    assert footprint.parameters == count(model)
    assert footprint.visual_tokens == config.visual_tokens


def test_the_clip_tower_of_videollama2_0() -> None:
    footprint = footprint_of("videollama2_regate", "model.vision_tower=clip-vit-large-patch14-336")
    config = VideoLLaMA2Config(
        text_config={"model_type": "qwen2", "num_hidden_layers": 1},
        vision_config=dict(TOWERS["clip-vit-large-patch14-336"]),
    )
    model: Any = on_meta(lambda: VideoLLaMA2ForConditionalGeneration(config))
    assert parts_of(footprint)["vision tower"] == count(model.model.vision_tower)


def test_videochat2_at_the_size_of_its_publication() -> None:
    footprint = footprint_of("videochat2_regate")
    config = VideoChat2Config(text_config=dict(MISTRAL_7B))
    model: Any = on_meta(lambda: add_adapters(VideoChat2ForConditionalGeneration(config), Lora()))
    inner = model.get_base_model().model
    queries = inner.query_tokens.numel() + inner.extra_query_tokens.numel()
    assert parts_of(footprint) == {
        "vision tower": count(inner.vision) + count(inner.vision_layernorm),
        "qformer": count(inner.qformer) + queries,
        "projector": count(inner.projector),
    }
    assert footprint.parameters == count(model)
    assert footprint.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert footprint.visual_tokens == config.visual_tokens
    assert UMTConfig().checkpoint_blocks == 0


def test_the_tiny_model() -> None:
    footprint = footprint_of("tiny_regate")
    text = {"model_type": "qwen2", "vocab_size": 285, "hidden_size": 128, "intermediate_size": 256}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    text |= {"tie_word_embeddings": True}
    config = TinyVLMConfig(vision_config=TinyTowerConfig().to_dict(), text_config=text, frames=8)
    model: Any = on_meta(lambda: TinyVLMForConditionalGeneration(config))
    assert parts_of(footprint)["projector"] == count(model.model.projector)
    assert parts_of(footprint)["vision tower"] == count(model.model.vision_tower)
    assert footprint.decoder_parameters == count(model.model.language_model)  # the head is the embeddings
    assert footprint.visual_tokens == config.visual_tokens


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_sizes_are_those_of_the_published_files(name: str) -> None:
    """Built from the fields, a model has as many parameters as the publisher's files; the plan's parts too."""
    sizes = PUBLISHED[name]
    fields = {key: value for key, value in sizes.fields.items() if key != "model_type"}
    config = AutoConfig.for_model(sizes.fields["model_type"], **fields)
    model: Any = on_meta(lambda: AutoModelForImageTextToText.from_config(config, trust_remote_code=False))
    assert count(model) == sizes.parameters
    recipe = load_recipe("qwen2_5_vl_7b_regate", [f"model.checkpoint={name}", "model.tower.train=true"])
    footprint = MODELS["hf"].footprint(recipe)
    assert footprint.parameters == footprint.trained == sizes.parameters
    assert sizes.source in footprint.sources[0]


def test_lora_trains_the_adapters_alone() -> None:
    """As many parameters as the adapters of all linear layers of the decoder."""
    recipe = load_recipe("qwen2_5_vl_3b_lora_regate", [])
    footprint = MODELS["hf"].footprint(recipe)
    fields = {key: value for key, value in PUBLISHED["Qwen2.5-VL-3B-Instruct"].fields.items() if key != "model_type"}
    config = AutoConfig.for_model("qwen2_5_vl", **fields)
    model: Any = on_meta(lambda: AutoModelForImageTextToText.from_config(config, trust_remote_code=False))
    linear = [module for module in model.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    assert footprint.trained == sum(64 * (module.in_features + module.out_features) for module in linear)
    assert footprint.frozen == count(model)


def test_a_model_of_unknown_sizes_is_not_planned() -> None:
    with pytest.raises(RecipeError, match="no published sizes are known of Qwen9-VL"):
        footprint_of("qwen2_5_vl_7b_regate", "model.checkpoint=Qwen9-VL")


@pytest.mark.parametrize(
    ("name", "frames", "tokens"),
    [("qwen2_5_vl_7b", "316 x 316", 968), ("qwen3_vl_8b", "362 x 362", 968), ("llava_onevision_7b", None, 3137),
     ("smolvlm2_500m", None, 1024)],
)  # fmt: skip
def test_the_budget_of_pixels_says_the_visual_tokens(name: str, frames: str | None, tokens: int) -> None:
    """Of a square video; towers of one size have one number."""
    footprint = footprint_of(f"{name}_baseline")
    assert footprint.visual_tokens == tokens
    assert (frames is None) or any(f"frames of {frames} pixels" in source for source in footprint.sources)


def test_sizes_are_read_from_weights_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen2-7B-Instruct"
    folder.mkdir()
    fields = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    fields |= {"num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(fields))
    footprint = footprint_of("videollama2_regate", f"paths.weights={tmp_path}")
    assert (footprint.decoder.hidden, footprint.decoder.layers) == (896, 24)
    assert footprint.decoder_parameters == 494_032_768  # Qwen2-0.5B, as its model page says
    assert footprint.sources[0] == str(folder / "config.json")
    assert "as published" in footprint.sources[1]


@pytest.mark.parametrize("name", ["videollama2_regate", "videochat2_regate", "tiny_regate"])
def test_the_parts_work_is_that_of_the_family(name: str) -> None:
    """What the plan adds up is what the formula of the recipe's published model says by part."""
    recipe = load_recipe(name, ["train.gradient_checkpointing=true"] if "llama2" in name else [])
    family = MODELS[recipe.model.adapter]
    planned = family.footprint(recipe)
    layers = None if name == "tiny_regate" else 1  # what stands before the decoder is the same with one
    model = family.full_size().build(recipe.data.frames, layers)
    for part, theirs in zip(planned.parts, model.vision, strict=True):
        assert part.forward + part.backward == pytest.approx(theirs.formula, rel=1e-12), part.name
        assert part.again == pytest.approx(theirs.again, rel=1e-12), part.name
    assert planned.visual_tokens == model.visual_tokens


def test_it_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "from harness.config.load import load_recipe\n"
        "from harness.models import MODELS\n"
        "for name in ('tiny_regate', 'tiny_videollama2_regate', 'tiny_videochat2_regate', 'videollama2_regate',\n"
        "             'videochat2_regate', 'tiny_internvl_regate', 'smolvlm2_500m_regate'):\n"
        "    recipe = load_recipe(name, [])\n"
        "    print(MODELS[recipe.model.adapter].footprint(recipe).parameters)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 7
