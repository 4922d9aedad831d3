"""VideoChat2-IT from the recipe to the plan: what is refused, with file and record, and what is counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from harness.common.errors import DataError, RecipeError
from harness.config.data import Annotation, Subset, VideoChat2Data
from harness.config.load import load_recipe
from harness.config.recipe import Paths
from harness.data.sources import check_data, open_data
from harness.plan import make_plan, render

if TYPE_CHECKING:
    from pathlib import Path

PAIR = {"i": "Look.", "q": "What?", "a": "This."}


def _world(folder: Path, images: int = 5, videos: int = 9, odd: list[Any] | None = None) -> VideoChat2Data:
    """Two annotation files with media of their own, one of them behind `odd` records."""
    for name in ("pictures", "clips"):
        (folder / "media" / name).mkdir(parents=True)
    for number in range(images):
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / "media" / "pictures" / f"{number}.png")
    for number in range(videos):
        frames = [Image.new("RGB", (8, 8), (i, number, 0)) for i in range(3)]
        frames[0].save(folder / "media" / "clips" / f"{number}.gif", save_all=True, append_images=frames[1:])
    pictures = [{"image": f"{number}.png", "QA": [PAIR]} for number in range(images)]
    clips = [{"video": f"{number}.gif", "QA": [PAIR, {**PAIR, "q": "And?"}]} for number in range(videos)]
    (folder / "pictures.json").write_text(json.dumps([*(odd or []), *pictures]))
    (folder / "clips.json").write_text(json.dumps(clips))
    annotations = tuple(Annotation(file=f"{name}.json", media=name) for name in ("pictures", "clips"))
    return VideoChat2Data(source="videochat2_it", annotations=annotations, media="media", frames=2)


def test_odd_records_are_named_with_file_and_place_and_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    odd = [
        {"image": "0.png", "QA": PAIR},
        {"image": "1.png", "QA": []},
        {"image": "2.png", "QA": [{**PAIR, "a": "a </Image> mark"}]},
        {"QA": [PAIR]},
    ]
    data, paths = _world(tmp_path, odd=odd), Paths(data=str(tmp_path))
    with pytest.raises(DataError, match="4 of 18 records cannot be used") as caught:
        open_data(data, paths, 0)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(": ")[:2] for line in lines] == [
        ["  pictures.json", "record 0 (0.png)"],
        ["  pictures.json", "record 1 (1.png)"],
        ["  pictures.json", "record 2 (2.png)"],
        ["  pictures.json", "record 3"],
    ]
    told = [f"  {name}: {reason}" for name, reason in check_data(data, paths, 0).damaged]
    assert told == lines
    rest = open_data(data.model_copy(update={"damaged": "exclude"}), paths, 0)
    assert (len(rest.samples), len(rest.excluded)) == (14, 4)
    assert (
        rest.fingerprint != open_data(_world(tmp_path / "whole"), Paths(data=str(tmp_path / "whole")), 0).fingerprint
    )


def test_only_the_media_of_the_subset_have_to_be_there(tmp_path: Path) -> None:
    data, paths = _world(tmp_path), Paths(data=str(tmp_path))
    part = data.model_copy(update={"subset": Subset(size=6)})
    needed = {media.path for sample in open_data(part, paths, 0).samples for media in sample.media}
    for file in (tmp_path / "media").rglob("*.*"):
        if file not in needed:
            file.unlink()
    assert check_data(part, paths, 0).damaged == ()
    assert len(open_data(part, paths, 0).samples) == 6
    with pytest.raises(DataError, match=r"8 of 14 media files .* are damaged"):
        open_data(data, paths, 0)


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    _world(tmp_path)
    return [
        f"paths.data={tmp_path}",
        "data.media=media",
        "data.annotations=[{file: pictures.json, media: pictures}, {file: clips.json, media: clips}]",
        "train.global_batch=4",
        "train.micro_batch=2",
    ]


def test_a_plan_counts_the_steps_of_each_medium(overrides: list[str]) -> None:
    """5 images and 9 videos, of 23 pairs, in steps of four samples of one medium."""
    everything, part = "data.subset=null", "data.subset={size: 20, unit: pairs}"
    plan = make_plan(load_recipe("videochat2_regate", [*overrides, everything]))
    assert (plan.samples, plan.steps_per_epoch, plan.left_out_per_epoch) == (14, 1 + 2, 1 + 1)
    assert plan.subset is None
    mixed = make_plan(load_recipe("videochat2_regate", [*overrides, everything, "data.batches=mixed"]))
    assert (mixed.steps_per_epoch, mixed.left_out_per_epoch) == (3, 2)
    some = make_plan(load_recipe("videochat2_regate", [*overrides, part, "data.batches=mixed"]))
    assert some.subset == f"{some.samples} of 14 samples with 19 of 23 pairs, drawn by seed 0", "20 would split one"
    assert any(some.subset in line for line in render(some))
    assert some.as_dict()["subset"] == some.subset
    large = [*overrides[:-2], everything, "train.global_batch=8", "train.micro_batch=2"]
    with pytest.raises(DataError, match="5 samples, the smallest of 2 media, do not fill one global batch of 8"):
        make_plan(load_recipe("videochat2_regate", large))


def test_a_plan_without_data_says_what_was_asked() -> None:
    plan = make_plan(load_recipe("videochat2_regate", ["paths.data=nowhere"]))
    assert plan.subset == "2,600,000 pairs, drawn by seed 0"
    assert plan.samples_basis == "stated"


def test_prompts_that_move_cannot_be_gated_by_their_place() -> None:
    with pytest.raises(RecipeError, match=r"data\.shuffle_turns moves the prompts"):
        load_recipe("videochat2_regate", ["gate.candidates=text"])
    load_recipe("videochat2_regate", ["gate.candidates=text", "data.shuffle_turns=false"])
    with pytest.raises(RecipeError, match=r"a\.json is given twice"):
        load_recipe("videochat2_regate", ["data.annotations=[{file: a.json, media: b}, {file: a.json, media: c}]"])


def test_the_fast_run_is_the_extended_one_with_fewer_epochs() -> None:
    names = ("videochat2_regate_fast", "videochat2_regate")
    fast, extended = (load_recipe(name).model_dump(mode="json") for name in names)
    assert {key for key in fast if fast[key] != extended[key]} == {"name", "train"}
    assert {key for key in fast["train"] if fast["train"][key] != extended["train"][key]} == {"epochs"}
    # Table 4: 1.51 of 2.22 billion tokens.
    assert fast["train"]["epochs"] / extended["train"]["epochs"] == pytest.approx(1.51 / 2.22, abs=5e-4)
