"""A folder that looks to the shipped VideoChat2 recipe as a user's does: its weights and data, at toy size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from harness.config.load import load_recipe
from harness.models.videochat2 import checkpoint_names as names
from harness.plan import make_plan, require
from tests.harness.worlds.videochat2_fixture import Parity

if TYPE_CHECKING:
    from harness.config.recipe import Recipe

NAME = "videochat2_regate"
FIXTURES = Path(__file__).parents[2] / "fixtures"
ANNOTATIONS = "it/train.json"


def stage_files(parity: Parity, folder: Path) -> tuple[Path, Path]:
    """The fixture's stage 3 taken back to the files that stage 3 starts from, in their two official layouts."""
    official = load_file(parity.files.stages()[0])
    unborn = ("mistral_", "extra_query_tokens")
    first = {name: value for name, value in official.items() if not name.startswith(unborn)}
    second = {name: official[name] for name in parity.told["stage2_trainable_keys"]}
    assert not any(names.TEXT_HALF.match(name) for name in second)
    one, two = folder / "umt_l16_qformer.pth", folder / "videochat2_mistral_7b_stage2.pth"
    torch.save({**first, "itm_head.weight": torch.zeros(2, 2)}, one)
    torch.save({"model": second, "epoch": 1, "global_step": 7}, two)
    return one, two


def write_world(folder: Path) -> Path:
    """Weights, videos and pictures where the recipe looks for them."""
    parity = Parity(FIXTURES / "videochat2")
    weights, data = folder / "workspace" / "weights", folder / "workspace" / "data"
    model = load_recipe(NAME).model
    assert model.adapter == "videochat2"
    shutil.copytree(parity.files.language_model, weights / model.language_model)
    shutil.copytree(parity.files.qformer_tokenizer, weights / model.qformer_tokenizer)
    stage_files(parity, weights)
    videos = FIXTURES / "videollama2"
    (data / "media").mkdir(parents=True)
    (data / ANNOTATIONS).parent.mkdir()
    for name in ("clip_a.mp4", "clip_b.mp4", "img.png"):
        shutil.copy(videos / name, data / "media" / name)
    ask = {"i": "Watch the video and answer.", "q": "What is the person doing?", "a": "running"}
    more = {"i": "Watch the video and answer.", "q": "Where does it go?", "a": "It turns left."}
    caption = {"i": "Describe the image briefly.", "q": "", "a": "A small dog sits near a tree."}
    records = [
        {"video": "clip_a.mp4", "QA": [ask, more]},
        {"video": "clip_b.mp4", "QA": [more]},
        {"image": "img.png", "QA": [caption]},
    ]
    (data / ANNOTATIONS).write_text(json.dumps(records))
    return folder


def user_supplied(folder: Path, *overrides: str, run: bool = True) -> Recipe:
    """The shipped recipe with its paths in a folder; what is missing is raised as `harness run` does."""
    places = [f"paths.{name}={folder / 'workspace' / name}" for name in ("data", "weights", "stores")]
    small = [
        f"paths.results={folder / 'results'}",
        f"data.annotations=[{{file: {ANNOTATIONS}, media: .}}]",
        "data.media=media",
        "data.subset=null",
        "data.batches=mixed",
        "evaluate.benchmarks=[]",
        "train.global_batch=2",
        "train.micro_batch=2",
        "train.precision=float32",
    ]
    recipe = load_recipe(NAME, [*places, *small, *overrides])
    if not run:
        require(make_plan(recipe))
    return recipe
