"""A folder that looks to the shipped VideoLLaMA2 recipe as a user's does: its weights and data, at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.config.load import load_recipe
from harness.plan import make_plan, require

if TYPE_CHECKING:
    from harness.config.recipe import Recipe

NAME = "videollama2_regate"
FIXTURE = Path(__file__).parents[2] / "fixtures" / "videollama2"


def write_world(folder: Path) -> Path:
    """The parity fixture's model, taken apart into the three that are published, and its conversations."""
    fixture = FIXTURE
    weights = folder / "workspace" / "weights"
    model = load_recipe(NAME).model
    assert model.adapter == "videollama2"
    assert model.projector is not None
    state = load_file(fixture / "model.safetensors")
    tower = "model.vision_tower.vision_tower."
    language_model, vision_tower = weights / model.language_model, weights / model.vision_tower
    projector = weights / model.projector
    for place in (language_model, vision_tower, projector.parent, folder / "workspace" / "data" / "videollava_sft"):
        place.mkdir(parents=True)
    vision = {name.removeprefix(tower): value for name, value in state.items() if name.startswith(tower)}
    connector = {name: value for name, value in state.items() if "mm_projector." in name}
    text = {name: value for name, value in state.items() if not name.startswith(tower) and name not in connector}
    save_file(text, language_model / "model.safetensors", metadata={"format": "pt"})
    save_file(vision, vision_tower / "model.safetensors", metadata={"format": "pt"})
    torch.save(connector, projector)
    flat = json.loads((fixture / "config.json").read_text())
    config = {key: value for key, value in flat.items() if not key.startswith(("mm_", "tokenizer_"))}
    (language_model / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(fixture / name, language_model / name)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(fixture / flat["mm_vision_tower"] / name, vision_tower / name)
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    other = Qwen2Config(vocab_size=flat["vocab_size"], hidden_size=16, intermediate_size=16, **small)
    Qwen2ForCausalLM(other).save_pretrained(weights / "other-teacher")
    _write_data(folder / "workspace" / "data", fixture)
    return folder


def _write_data(folder: Path, fixture: Path) -> None:
    records = json.loads((fixture / "data.json").read_text())
    for record in records:
        for kind in ("video", "image"):
            if kind in record:
                shutil.copy(fixture / record[kind], folder / "videollava_sft" / record[kind])
    (folder / "videollava_sft" / "videochatgpt_tune.json").write_text(json.dumps(records))


def user_supplied(folder: Path, *overrides: str, run: bool = True) -> Recipe:
    """The shipped recipe with its paths in a folder; what is missing is raised as `harness run` does."""
    places = [f"paths.{name}={folder / 'workspace' / name}" for name in ("data", "weights", "stores")]
    recipe = load_recipe(
        NAME,
        [
            *places,
            f"paths.results={folder / 'results'}",
            "evaluate.benchmarks=[]",
            "train.global_batch=4",
            "train.micro_batch=2",
            *overrides,
        ],
    )
    if not run:
        require(make_plan(recipe))
    return recipe
