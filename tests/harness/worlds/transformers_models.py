"""Families of transformers at toy size with every part trained; conversations with pictures, videos and neither."""

from __future__ import annotations

import importlib.util
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import regate
from harness.common.progress import Progress
from harness.config.model import TinyHFModel
from harness.data.loading.video import read_frames
from harness.data.sample import Media, Sample, Turn
from harness.data.sources import make_data, open_data
from harness.models import adapter_for
from harness.models.hf.toy import FAMILIES
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from harness.config.recipe import Recipe
    from harness.data.sample import Batch, Encoded

NAMES = sorted(FAMILIES)
PARAMS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "smolvlm" and importlib.util.find_spec("num2words") is None,
            reason="transformers' SmolVLM processor needs the package num2words, which is not installed",
        ),
    )
    for name in NAMES
]
EVERY_PART = {part: {"train": True} for part in ("tower", "projector", "decoder")}


def recipe_of(folder: Path, family: str, **model: Any) -> Recipe:
    """The family's toy model on the clips of the tiny recipe."""
    section = {"adapter": "tiny_hf", "family": family, "hidden": 32, "heads": 2, **EVERY_PART, **model}
    return tiny_recipe(folder).model_copy(update={"model": TinyHFModel.model_validate(section)})


def made(recipe: Recipe) -> Any:
    """Its adapter, everything made."""
    make_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))
    adapter.prepare(Progress(quiet=True))
    return adapter


@cache
def picture(folder: Path) -> Path:
    """A file of 50 by 40 pixels, all of them different."""
    path = folder / "picture.png"
    pixels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def sample(key: str, *turns: tuple[str, str], media: tuple[Media, ...] = ()) -> Sample:
    return Sample(zlib.crc32(key.encode()), key, media, tuple(Turn(role, text) for role, text in turns))  # type: ignore[arg-type]


def samples(adapter: Any) -> list[Sample]:
    """A video, a picture, text alone, and a picture with three turns."""
    video = adapter.data.samples[0]
    image = (Media("image", picture(Path(adapter.recipe.paths.data))),)
    return [
        video,
        sample("picture", ("user", "<media:0>\nWhat moves?"), ("assistant", "a red ball!"), media=image),
        sample("text", ("user", "What moves?"), ("assistant", "nothing at all")),
        sample(
            "turns",
            ("user", "<media:0>\nWhat moves?"), ("assistant", "it moves left"),
            ("user", "And then?"), ("assistant", "right"),
            ("user", "Why?"), ("assistant", "no reason!"),
            media=image,
        ),
    ]  # fmt: skip


def encoded(adapter: Any, chosen: list[Sample]) -> list[Encoded]:
    processor, frames = adapter.processor(), adapter.data.frames
    return [processor.encode(s, [read_frames(m, frames=frames) for m in s.media]) for s in chosen]


def in_double(batch: Batch) -> Batch:
    inputs = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.model_inputs().items()
    }
    return replace(batch, inputs=inputs, colours={})


def loss_of(adapter: Any, scored: regate.ScoredLM, batch: Batch, decision: regate.Decision) -> torch.Tensor:
    logits_NV, targets_N = adapter.forward(scored, batch, decision)
    return regate.token_loss(logits_NV, targets_N).sum()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
