"""What of a model is put together at once, by name, and what stays whole: on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import regate
from harness.models.hf.sizes import PUBLISHED
from harness.models.videochat2.config import VideoChat2Config
from harness.models.videochat2.model import VideoChat2ForConditionalGeneration
from harness.models.videochat2.sizes import MISTRAL_7B
from harness.models.videochat2.weights import Lora, add_adapters
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from harness.training.placement.sharding import units_of, whole_parameters
from regate.wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn


def units(build: Callable[[], nn.Module], *before: str) -> tuple[list[list[str]], set[str], int]:
    """Names of the modules of each unit but the layers, first names of what is whole, and the number of layers."""
    with torch.device("meta"):
        scored = regate.ScoredLM(build())
    model = unwrap(scored)
    names = {id(module): name for name, module in model.named_modules()}
    sharded = units_of(scored, [model.get_submodule(name) for name in before])
    named = [[names[id(module)] for module in unit.modules] for unit in sharded]
    layers = [modules for modules in named if modules[0].split(".")[-2:-1] == ["layers"]]
    assert named[: len(layers)] == layers, "the layers come first"
    assert all(len(modules) == 1 for modules in layers)
    assert [unit.kept for unit in sharded] == [any("lm_head" in name for name in modules) for modules in named]
    kept_whole = whole_parameters(scored, sharded)
    whole = {names[id(module)] for name in kept_whole for module in parents(scored, name, names)}
    return named[len(layers) :], whole, len(layers)


def parents(scored: nn.Module, name: str, names: dict[int, str]) -> Sequence[nn.Module]:
    """The module right below the base model that holds a parameter."""
    model: Any = unwrap(scored)
    inner = {id(p): module for module in model.model.children() for p in module.parameters()}
    return [inner[id(scored.get_parameter(name))]]


def test_videollama2() -> None:
    text = {"model_type": "qwen2", "vocab_size": 50, "hidden_size": 48, "intermediate_size": 64}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 24, "num_hidden_layers": 3}
    config = VideoLLaMA2Config(text_config=text, vision_config=vision)
    modules, whole, layers = units(lambda: VideoLLaMA2ForConditionalGeneration(config), "model.mm_projector")
    assert modules == [
        ["model.mm_projector"],
        ["model.language_model.embed_tokens"],
        ["model.language_model.norm", "lm_head"],
    ]
    assert whole == {"model.vision_tower"}
    assert layers == 3


def test_a_connector_that_is_not_trained_is_no_unit_and_stays_whole() -> None:
    text = {"model_type": "qwen2", "vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 24, "num_hidden_layers": 3}

    def build() -> nn.Module:
        model = VideoLLaMA2ForConditionalGeneration(VideoLLaMA2Config(text_config=text, vision_config=vision))
        model.model.mm_projector.requires_grad_(False)
        return model

    modules, whole, _ = units(build, "model.mm_projector")
    assert modules == [["model.language_model.embed_tokens"], ["model.language_model.norm", "lm_head"]]
    assert whole == {"model.vision_tower", "model.mm_projector"}


def test_videochat2_with_adapters() -> None:
    """The frozen decoder is in parts as well; the trained tower belongs to the whole model."""
    config = VideoChat2Config(text_config=dict(MISTRAL_7B))
    modules, whole, layers = units(lambda: add_adapters(VideoChat2ForConditionalGeneration(config), Lora()))
    assert modules == [["model.language_model.embed_tokens"], ["model.language_model.norm", "lm_head"]]
    assert whole == set()
    assert layers == 32


@pytest.mark.parametrize(("name", "tied"), [("Qwen2.5-VL-3B-Instruct", True), ("Qwen2.5-VL-7B-Instruct", False)])
def test_models_of_transformers(name: str, tied: bool) -> None:
    fields = {key: value for key, value in PUBLISHED[name].fields.items() if key != "model_type"}
    config = AutoConfig.for_model(PUBLISHED[name].fields["model_type"], **fields)

    def build() -> nn.Module:
        model: Any = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        model.model.visual.requires_grad_(False)
        return model

    modules, whole, _ = units(build)
    embeddings, last = "model.language_model.embed_tokens", ["model.language_model.norm", "lm_head"]
    assert modules == ([[embeddings, *last]] if tied else [[embeddings], last])
    assert whole == {"model.visual"}
