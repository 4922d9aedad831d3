"""The user's own files with every family: LLaVA's form and InternVL's, from the annotation to a step of training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import regate
from harness.common.progress import Progress
from harness.config.data import InternVLData, LlavaData
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from tests.harness.models.hf.test_families import dense
from tests.harness.worlds.clips import clip
from tests.harness.worlds.transformers_models import NAMES, loss_of, recipe_of

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe

FRAMES = 4


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


RECORDS = [
    {"id": "video", "video": "a.mp4", "conversations": turns("<video>\nWhat happens?", "numbers pass by")},
    {"id": "picture", "image": "a.png", "conversations": turns("<image>\nWhat is it?", "noise!", "Sure?", "yes")},
    {"id": "text", "conversations": turns("Why?", "no reason")},
]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    clip(folder / "a.mp4", frames=12)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).save(folder / "a.png")
    (folder / "llava.json").write_text(json.dumps(RECORDS))
    (folder / "internvl.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    (folder / "meta.json").write_text(json.dumps({"own": {"root": "", "annotation": "internvl.jsonl", "length": 3}}))
    return folder


def recipe_with(folder: Path, media: Path, family: str, source: str) -> Recipe:
    data: Any = {
        "llava": LlavaData(source="llava", annotations=("llava.json",), media=".", frames=FRAMES),
        "internvl": InternVLData(source="internvl", meta="meta.json", frames=FRAMES),
    }[source]
    recipe = recipe_of(folder, family)
    paths = recipe.paths.model_copy(update={"data": str(media)})
    return recipe.model_copy(update={"data": data, "paths": paths})


@pytest.mark.parametrize(
    ("family", "source"), [*((name, "llava") for name in NAMES), ("internvl", "internvl"), ("qwen3_vl", "internvl")]
)
def test_a_step_of_training(tmp_path: Path, media: Path, family: str, source: str) -> None:
    """What an annotation says is learned, and the media are read by the source's own rule."""
    recipe = recipe_with(tmp_path, media, family, source)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    adapter.prepare(Progress(quiet=True))
    processor = adapter.processor()
    rows = [load(sample, data, processor) for sample in data.samples]
    assert not any(row.failed for row in rows)
    batch = processor.collate(rows)
    assert batch.failed == ()
    learned = processor.decode(batch.layout.labels_BS[batch.layout.target_BS].tolist())
    for words in ("numbers pass by", "noise!", "yes", "no reason"):
        assert words in learned
    student = adapter.student().train()
    loss = loss_of(adapter, regate.ScoredLM(student), batch, dense(batch))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
