"""InternVL's meta file and its annotations: what is read of them, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from harness.common.errors import DataError
from harness.config.data import InternVLData
from harness.config.recipe import Paths
from harness.data.formats import Bad, read_internvl
from harness.data.sample import Turn
from harness.data.sources import check_data, open_data, source_of
from tests.harness.worlds.clips import clip

if TYPE_CHECKING:
    from pathlib import Path

ASK, SAY = {"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat!"}
SYSTEM = {"from": "system", "value": "Be brief."}


def record(**fields: Any) -> dict[str, Any]:
    return {"id": 1, "conversations": [ASK, SAY], **fields}


@pytest.fixture
def world(tmp_path: Path) -> Any:
    """A folder of media below paths.data, and writers of annotations and of the meta file."""
    data = tmp_path / "data"
    (data / "media" / "coco").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(data / "media" / "coco" / name)

    class World:
        folder = data
        paths = Paths(data=str(data), stores=str(tmp_path / "stores"))
        section = InternVLData(source="internvl", meta="meta.json", media="media", frames=2)

        def annotation(self, *records: Any, name: str = "coco.jsonl") -> None:
            (data / name).write_text("".join(f"{json.dumps(line)}\n" for line in records))

        def meta(self, text: str | None = None, **entry: Any) -> None:
            whole = {"coco": {"root": "coco", "annotation": "coco.jsonl", "data_augment": False, **entry}}
            (data / "meta.json").write_text(json.dumps(whole) if text is None else text)

        def open(self) -> Any:
            return open_data(self.section, self.paths, 0, decode=False)

    return World()


def test_pictures_clips_and_text(world: Any) -> None:
    clip(world.folder / "media" / "coco" / "c.mp4")
    world.annotation(
        record(id="one", image="a.png"),
        record(id="two", image=["a.png", "b.png"], conversations=[SYSTEM, ASK, SAY]),
        record(id="clip", video="c.mp4", clip=[0.0, 0.5]),
        {"conversations": [ASK, SAY], "width": 3},
    )
    world.meta(max_dynamic_patch=6, length=4, repeat_time=1, colour="red")
    data = world.open()
    samples = {sample.key: sample for sample in data.samples}
    one, two, part = (samples[f"coco#{name}"] for name in ("one", "two", "clip"))
    assert one.turns == (Turn("user", "<media:0>\nWhat is it?"), Turn("assistant", "A cat!"))
    assert one.media[0].path == world.folder / "media" / "coco" / "a.png"
    assert one.media[0].max_tiles == 6
    assert two.turns[:2] == (Turn("system", "Be brief."), Turn("user", "<media:0>\n<media:1>\nWhat is it?"))
    assert (part.media[0].kind, part.media[0].start, part.media[0].end) == ("video", 0.0, 0.5)
    assert part.turns[0].text.startswith("<media:0>\n")
    (text,) = (sample for sample in data.samples if not sample.media)
    assert text.turns[0].text == "What is it?"
    assert any("width is not read" in note for note in data.notes)
    assert any("colour of the meta file is not read" in note for note in data.notes)
    assert check_data(world.section, world.paths, 0).damaged == ()


def test_tags_stand_where_the_text_has_them(world: Any) -> None:
    asked = {"from": "human", "value": "Look <image> and <image>?"}
    world.annotation(record(image=["a.png", "b.png"], conversations=[asked, SAY]))
    world.meta()
    assert world.open().samples[0].turns[0].text == "Look <media:0> and <media:1>?"


@pytest.mark.parametrize(("times", "count"), [(0.5, 2), (0.1, 0), (1, 4), (3, 12)])
def test_repeats_and_parts(world: Any, times: float, count: int) -> None:
    world.annotation(*(record(id=number, image="a.png", conversations=[ASK, SAY]) for number in range(4)))
    world.meta(repeat_time=times)
    if count == 0:
        with pytest.raises(DataError, match="no usable sample"):
            world.open()
        return
    samples = world.open().samples
    assert len(samples) == len({sample.id for sample in samples}) == count
    names = {sample.key.partition("~")[0] for sample in samples}
    assert names == {f"coco#{number}" for number in range(min(4, count))}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"annotation": "coco.json"}, "coco: annotation coco.json is no .jsonl file"),
        ({"annotation": "/coco.jsonl"}, "annotation /coco.jsonl must be relative"),
        ({"root": 3}, "root must be a path"),
        ({"data_augment": True}, "data_augment, another quality of JPEG"),
        ({"repeat_time": 1.5}, "repeat_time must be a part below 1 or a whole number of times, not 1.5"),
        ({"repeat_time": 0}, "repeat_time must be"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number of at least 1, not 0"),
        ({"length": 5}, r"coco: length is 5, and coco.jsonl has 1 records"),
    ],
)
def test_an_entry_that_cannot_be_used(world: Any, entry: dict[str, Any], message: str) -> None:
    world.annotation(record(image="a.png"))
    world.meta(**entry)
    with pytest.raises(DataError, match=message):
        world.open()


def test_a_trailing_comma_is_told_with_its_place(world: Any) -> None:
    """As in the meta file that the official code ships for preference data."""
    world.annotation(record(image="a.png"))
    world.meta('{"coco": {"root": "coco", "annotation": "coco.jsonl"},\n}')
    with pytest.raises(DataError, match=r"meta.json:2:1: not JSON: a comma stands before the closing bracket"):
        world.open()
    with pytest.raises(DataError, match="not JSON"):
        source_of(world.section, world.paths, 0).missing()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conversations": [ASK, {"from": "bing", "value": "x"}]}, 'turn 1: "from" must be one of human'),
        ({"image": "a.png", "video": "c.mp4"}, "it has pictures and a video"),
        ({"video": ["c.mp4", "d.mp4"]}, '"video" must be one path'),
        ({"image": "a.png", "clip": [0, 1]}, '"clip" bounds a video'),
        ({"video": "c.mp4", "clip": [2, 1]}, "bounds no part of a video"),
        ({"video": "c.mp4", "clip": 3}, '"clip" must be a list of two numbers'),
        ({"image": "a.png", "conversations": [{**ASK, "value": "<image>" * 2}, SAY]}, "more media than the 1"),
        ({"image": ["a.png", "b.png"], "conversations": [{**ASK, "value": "<image>"}, SAY]}, "names 1 of the"),
        ({"conversations": [ASK]}, "it has no answer"),
        ({"image": "../a.png"}, "is no path below the folder of media"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record(**fields)) + "\n")
    (row,) = read_internvl(path, "coco/")
    assert isinstance(row, Bad)
    assert message in row.reason


def test_what_is_missing_is_named(world: Any) -> None:
    source = source_of(world.section, world.paths, 0)
    (line,) = source.missing()
    assert line.startswith(f"{world.folder / 'meta.json'}: named by data.meta")
    world.meta(root="vg")
    lines = source.missing()
    assert [line.partition(": ")[0] for line in lines] == [
        str(world.folder / "coco.jsonl"), str(world.folder / "media" / "vg")
    ]  # fmt: skip
