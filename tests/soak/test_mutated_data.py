"""Annotation files and media with something odd in them: read, left out, or refused in one message with the exit code
of data; never a traceback, and never long."""

from __future__ import annotations

import copy
import json
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from harness.common.exits import explained
from harness.config.data import Annotation, InternVLData, LlavaData, VideoChat2Data
from harness.config.recipe import Paths
from harness.data.loading.errors import VideoError
from harness.data.loading.video import inspect_picture, inspect_video, read_frames
from harness.data.sample import Media
from harness.data.sources import open_data
from tests.harness.worlds.clips import clip

from .test_mutated_recipes import MOST_S, ODD

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.data import Data

TALK = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
RECORDS: dict[str, list[dict[str, Any]]] = {
    "llava": [
        {"id": "a", "video": "a.mp4", "conversations": TALK},
        {"id": "b", "image": "b.png", "conversations": [{"from": "human", "value": "<image> What?"}, TALK[1]]},
        {"id": "c", "conversations": [{"from": "human", "value": "Hi"}, TALK[1]]},
    ],
    "videochat2": [
        {"video": "a.mp4", "start": 0.5, "end": 2.0, "QA": [{"i": "Look.", "q": "What?", "a": "A dog."}]},
        {"video": "a.mp4", "QA": [{"q": "What?", "a": "A dog."}, {"q": "Where?", "a": "Here."}]},
    ],
    "internvl": [
        {"id": 1, "video": "a.mp4", "clip": [0.2, 0.8], "conversations": TALK},
        {"id": 2, "image": ["b.png"], "conversations": [{"from": "human", "value": "<image> What?"}, TALK[1]]},
    ],
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    clip(folder / "a.mp4")
    Image.effect_noise((64, 48), 40).convert("RGB").save(folder / "b.png")
    Image.effect_noise((64, 48), 40).convert("RGB").save(folder / "c.jpg")
    return folder


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a nested value, as its owner and key."""
    owned = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in owned for place in ((value, key), *leaves(item))]


def odd_records(records: list[dict[str, Any]], rng: random.Random) -> bytes:
    """One to three values of the records odd or gone; of every third file some bytes, too."""
    changed = copy.deepcopy(records)
    for _ in range(rng.randint(1, 3)):
        owner, key = rng.choice(leaves(changed))
        if rng.random() < 0.2:
            del owner[key]
            if not changed:
                break
        else:
            owner[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(changed).encode()
    return damaged(text, rng) if rng.random() < 0.3 else text


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut off, taken out, put twice or put in; of every second content one byte alone."""
    changed = bytearray(content)
    if rng.random() < 0.5:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    for _ in range(rng.randint(1, 20)):
        place = rng.randrange(max(1, len(changed)))
        size = rng.randint(1, max(1, len(changed) // 8))
        match rng.randrange(6):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + size]
            case 2:
                changed[place:place] = changed[place : place + size]
            case 3:
                changed[place:place] = rng.randbytes(size)
            case _:
                changed[place : place + 1] = rng.randbytes(1)
    return bytes(changed)


def data_of(kind: str, folder: Path, content: bytes, damaged: Any) -> Data:
    """The data of a recipe whose annotations are these bytes."""
    if kind == "llava":
        (folder / "a.json").write_bytes(content)
        return LlavaData(source="llava", annotations=("a.json",), media="media", damaged=damaged)
    if kind == "videochat2":
        (folder / "a.json").write_bytes(content)
        files = (Annotation(file="a.json"),)
        return VideoChat2Data(source="videochat2_it", annotations=files, media="media", damaged=damaged)
    (folder / "a.jsonl").write_bytes(content[1:-1].replace(b"}, {", b"}\n{"))
    (folder / "meta.json").write_text(json.dumps({"one": {"root": "", "annotation": "a.jsonl", "repeat_time": 1}}))
    return InternVLData(source="internvl", meta="meta.json", media="media", damaged=damaged)


def test_mutated_annotations(media: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (tmp_path / "media").symlink_to(media)
    rng, failures, refused = random.Random(0), [], 0
    count = 300 if request.config.getoption("--soak") else 30
    for number in range(count):
        kind = rng.choice(list(RECORDS))
        content, began = odd_records(RECORDS[kind], rng), time.monotonic()
        data = data_of(kind, tmp_path, content, rng.choice(["refuse", "exclude"]))
        try:
            opened = open_data(data, Paths(data=str(tmp_path)), 0)
            assert all(sample.turns for sample in opened.samples)
        except Exception as error:  # noqa: BLE001 - whatever comes is judged
            message, code = explained(error)
            refused += 1
            if code not in (2, 4) or "Traceback" in message:
                failures.append(f"{number}: {kind}: exit {code}: {content[:300]!r}: {message[-900:]}")
        if time.monotonic() - began > MOST_S:
            failures.append(f"{number}: {kind}: took too long: {content[:300]!r}")
    assert 0 < refused < count
    assert not failures, "\n".join([f"{len(failures)} of {count}", *failures])


def test_mutated_media(media: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    rng, failures, refused = random.Random(1), [], 0
    count = 100 if request.config.getoption("--soak") else 24
    for number in range(count):
        source = media / rng.choice(["a.mp4", "a.mp4", "b.png", "c.jpg"])
        path, began = tmp_path / f"odd{source.suffix}", time.monotonic()
        path.write_bytes(damaged(source.read_bytes(), rng))
        video = source.suffix == ".mp4"
        try:
            (inspect_video if video else inspect_picture)(path)
            read_frames(Media("video" if video else "image", path), frames=4)
        except VideoError as error:
            refused += 1
            if str(path) not in str(error):
                failures.append(f"{number}: not named: {error}")
        except Exception as error:  # noqa: BLE001 - whatever comes is judged
            failures.append(f"{number}: {source.name}: {explained(error)[0][-900:]}")
        if time.monotonic() - began > MOST_S:
            failures.append(f"{number}: {source.name}: took too long")
    assert 0 < refused < count
    assert not failures, "\n".join([f"{len(failures)} of {count}", *failures])
