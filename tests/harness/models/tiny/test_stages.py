"""The tiny model's stages: made once, whole or not at all, the same from the same seed."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from harness.common.errors import EnvironmentProblem, RecipeError, StaleError
from harness.common.files import temporary_path, write_json
from harness.common.progress import Progress
from harness.config.data import LlavaData
from harness.config.recipe import GateConfig, ReferenceConfig
from harness.data.shapes import stage_clips
from harness.data.shapes.scene import COLOURS, SHAPES
from harness.data.sources import make_data, open_data
from harness.models.artifacts import CARD, hash_weights
from harness.models.tiny import pretraining as tiny_training
from harness.models.tiny.adapter import TinyAdapter
from harness.models.tiny.stages import STAGES, stages_of, tag_samples
from regate.types import Kind
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    return tiny_recipe(folder)


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> DataSet:
    make_data(recipe.data, recipe.paths, recipe.seed)
    return open_data(recipe.data, recipe.paths, recipe.seed)


@pytest.fixture(scope="module")
def made(recipe: Recipe, data: DataSet) -> TinyAdapter:
    adapter = TinyAdapter(recipe, data)
    adapter.prepare(QUIET)
    return adapter


@pytest.fixture
def again(made: TinyAdapter, data: DataSet, tmp_path: Path) -> Iterator[TinyAdapter]:
    """The same recipe with an empty folder of weights."""
    paths = made.recipe.paths.model_copy(update={"weights": str(tmp_path)})
    return TinyAdapter(made.recipe.model_copy(update={"paths": paths}), data)


def weights(adapter: TinyAdapter) -> dict[str, str]:
    return {stage: hash_weights(adapter.stages.folder(stage)) for stage in STAGES}


def test_every_stage_is_there_and_tells_what_it_cost(made: TinyAdapter, data: DataSet) -> None:
    assert made.missing() == []
    assert sorted(path.name for path in made.stages.root.iterdir()) == sorted(STAGES)
    for stage in STAGES:
        card = made.stages.card(stage)
        assert card["seconds"] > 0
        assert card["data"] == data.fingerprint
        assert card["figures"]["loss"] > 0
        assert card["weights"] == hash_weights(made.stages.folder(stage))


def test_same_seed_same_weights_and_the_global_random_state_is_untouched(
    made: TinyAdapter, again: TinyAdapter
) -> None:
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again.prepare(QUIET)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert weights(again) == weights(made)
    assert again.weights_fingerprint == made.weights_fingerprint


def test_another_seed_gives_other_weights_in_another_folder(made: TinyAdapter, data: DataSet) -> None:
    pinned = made.recipe.data.model_copy(update={"seed": 0})
    other = TinyAdapter(made.recipe.model_copy(update={"seed": 5, "data": pinned}), data)
    assert other.stages.root != made.stages.root
    other.prepare(QUIET)
    assert not set(weights(other).values()) & set(weights(made).values())


def test_stages_that_are_there_are_not_made_again(made: TinyAdapter) -> None:
    files = [path for stage in STAGES for path in made.stages.folder(stage).iterdir()]
    times = {path: path.stat().st_mtime_ns for path in files}
    made.prepare(QUIET)
    assert {path: path.stat().st_mtime_ns for path in files} == times


def test_what_a_killed_stage_left_is_swept_away(made: TinyAdapter, again: TinyAdapter) -> None:
    left = temporary_path(again.stages.root / "backbone")
    left = left.with_name(left.name.replace(f"-{os.getpid()}.", "-999999999."))
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    shutil.copytree(made.stages.folder("tower"), again.stages.folder("tower"))
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in again.missing()] == ["backbone", "aligned"]
    again.prepare(QUIET)
    assert not left.exists()
    assert weights(again) == weights(made)


def test_a_stage_that_fails_leaves_nothing_that_looks_made(
    again: TinyAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_training, "train_alignment", broken)
    with pytest.raises(KeyboardInterrupt):
        again.prepare(QUIET)
    assert sorted(path.name for path in again.stages.root.iterdir()) == ["backbone", "tower"]


def test_stages_made_from_other_data_are_stale(made: TinyAdapter, data: DataSet) -> None:
    stages = stages_of(made.recipe, "another data set")
    with pytest.raises(StaleError, match="made from other data"):
        stages.card("tower")
    with pytest.raises(EnvironmentProblem, match="not made yet"):
        stages_of(made.recipe.model_copy(update={"seed": 77})).card("tower")


def test_a_card_of_another_version_is_stale(made: TinyAdapter, again: TinyAdapter) -> None:
    shutil.copytree(made.stages.root, again.stages.root)
    path = again.stages.folder("tower") / CARD
    write_json(path, {**json.loads(path.read_text()), "schema": 0}, sealed=True)
    with pytest.raises(StaleError, match="schema 1 expected"):
        again.prepare(QUIET)


def test_the_student_is_built_from_the_stages(made: TinyAdapter) -> None:
    """The tower as stage (a) left it, the decoder moved on from stage (b), which the teacher keeps."""
    aligned = load_file(made.stages.folder("aligned") / "model.safetensors")
    tower = load_file(made.stages.folder("tower") / "model.safetensors")
    backbone = load_file(made.stages.folder("backbone") / "model.safetensors")
    assert all(torch.equal(aligned[f"model.vision_tower.{name}"], value) for name, value in tower.items())
    name = "layers.0.mlp.down_proj.weight"
    start, moved = backbone[f"model.{name}"], aligned[f"model.language_model.{name}"]
    assert not torch.equal(start, moved)
    assert torch.nn.functional.cosine_similarity(start.flatten(), moved.flatten(), dim=0) > 0.5
    assert torch.equal(made.teacher().model.layers[0].mlp.down_proj.weight, start)


@pytest.mark.parametrize(
    ("stage", "clips", "message"),
    [
        ("align", 1000, "1000 stage clips"),
        ("tower", None, "need a number of clips"),
        ("text", 3, "model.text sees none"),
    ],
)
def test_clips_that_do_not_fit_are_refused(
    made: TinyAdapter, data: DataSet, stage: str, clips: int | None, message: str
) -> None:
    changed = getattr(made.recipe.model, stage).model_copy(update={"clips": clips})
    model = made.recipe.model.model_copy(update={stage: changed})
    with pytest.raises(RecipeError, match=message):
        TinyAdapter(made.recipe.model_copy(update={"model": model}), data).prepare(QUIET)


def test_stages_need_the_scenes_of_shapes(made: TinyAdapter, data: DataSet) -> None:
    other = LlavaData(source="llava", annotations=("a.json",), media="media")
    recipe = made.recipe.model_copy(update={"data": other})
    with pytest.raises(RecipeError, match=r"trained on data\.source shapes"):
        TinyAdapter(recipe, data).prepare(QUIET)


def test_cell_labels_say_what_stands_where(data: DataSet) -> None:
    (clip, *_) = stage_clips(data.root)
    labels_TCGG = tiny_training.cell_labels([clip.scene], 4)[0]
    assert labels_TCGG.shape == (8, 1 + len(COLOURS) + len(SHAPES), 4, 4)
    for t in range(8):
        seen = [thing for thing in clip.scene.frame(t) if thing.visible]
        for thing in seen:
            cell = labels_TCGG[t, :, int(thing.y // 16), int(thing.x // 16)]
            assert cell[0] == 1
            assert cell[1 + COLOURS.index(thing.colour)] == 1
            assert cell[1 + len(COLOURS) + SHAPES.index(thing.shape)] == 1
        places = {(int(thing.y // 16), int(thing.x // 16)) for thing in seen}
        assert int(labels_TCGG[t, 0].sum()) == len(places)


def test_tag_lists_name_every_object_and_are_wholly_known(made: TinyAdapter, data: DataSet) -> None:
    clips = stage_clips(data.root)
    processor = made.processor()
    assert tag_samples(clips, processor, 0) == tag_samples(clips, processor, 0)
    for clip, sample in zip(clips, tag_samples(clips, processor, 0), strict=True):
        row = processor.encode(sample, None)
        tokens = processor.tokenizer.convert_ids_to_tokens(row.input_ids_S[row.kind_S == Kind.TARGET].tolist())
        assert not any(token.startswith("##") for token in tokens)
        for thing in clip.scene.things:
            assert {thing.shape, thing.colour[0], thing.colour[-1]} <= set(tokens), tokens


def test_draws_see_every_item_equally_often() -> None:
    order = tiny_training.draws(7, 3, 14, torch.Generator().manual_seed(0))
    assert order.shape == (14, 3)
    assert order.flatten().bincount().tolist() == [6] * 7


def test_backbone_rows_keep_their_positions(made: TinyAdapter, data: DataSet) -> None:
    row = made.processor().encode(data.samples[0], None)
    ids_S, labels_S, position_S = tiny_training._without_visual(row)
    assert torch.equal(ids_S, row.input_ids_S[position_S])
    assert torch.equal(labels_S, row.labels_S[position_S])
    assert bool((row.kind_S[position_S] != Kind.VISUAL).all())
    assert len(position_S) == len(row.kind_S) - 16


def test_another_teacher_is_refused_and_never_left_aside(recipe: Recipe) -> None:
    gate = GateConfig(reference=ReferenceConfig(model="Qwen2-1.5B"))
    with pytest.raises(RecipeError, match=r"gate\.reference\.model"):
        TinyAdapter(recipe.model_copy(update={"gate": gate}), None)
