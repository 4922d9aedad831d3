"""Two hundred damaged files: the check and the reader of training agree on each, and none hangs or escapes."""

from __future__ import annotations

import json
import random
import shutil
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from harness.common.errors import DataError
from harness.config.data import LlavaData
from harness.config.recipe import Paths
from harness.data.loading.epoch_view import EpochView, clips
from harness.data.loading.errors import VideoError
from harness.data.loading.pictures import DEEP, ROTATED, TRANSPARENT, picture_notes, picture_size, read_picture
from harness.data.sample import SamplingPolicy
from harness.data.sources import check_data, open_data
from tests.harness.data.loading.test_clips import _sound
from tests.harness.worlds.clips import clip, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WHOLE = {
    "a.mp4": ("libx264", {"movflags": "+faststart"}),
    "b.mp4": ("mpeg4", {}),
    "c.mkv": ("libx264", {}),
    "d.webm": ("libvpx", {}),
    "e.avi": ("mpeg4", {}),
    "f.ts": ("libx264", {}),
    "g.flv": ("flv", {}),
    "h.mov": ("mjpeg", {}),
}
_PICTURES = ("i.png", "j.jpg")


def _damaged(folder: Path) -> Iterator[str]:
    """Names of 200 files: cut, with flipped bits, of another kind than they are called, empty, or sound alone."""
    rng = random.Random(0)
    whole = folder / "whole"
    for name, (codec, mux) in _WHOLE.items():
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        clip(whole / name, 30, codec=codec, gop=10, mux=mux, pix_fmt=pix_fmt)
    for name in _PICTURES:
        Image.fromarray(numbered(5)).save(whole / name)
    names = [*_WHOLE, *_PICTURES]
    sound = _sound("mp3")
    for number in range(200):
        source = names[number % len(names)]
        raw = bytearray((whole / source).read_bytes())
        kind = number // len(names) % 10
        if kind < 4:
            raw = raw[: rng.randrange(1, len(raw))]
        elif kind < 8:
            for _ in range(1 << rng.randrange(6)):
                raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == 8:
            raw = bytearray((whole / rng.choice(names)).read_bytes()) if number % 2 else bytearray(sound)
        else:
            raw = bytearray() if number % 2 else bytearray(rng.randbytes(2000))
        name = f"{number:03d}-{source}"
        (folder / name).write_bytes(raw)
        yield name
    shutil.rmtree(whole)


@pytest.mark.parametrize("rule", ["spread", "random"])
def test_the_check_and_the_reader_agree(rule: str, tmp_path: Path) -> None:
    records = []
    for name in _damaged(tmp_path / "media"):
        kind = "image" if name.endswith(_PICTURES) else "video"
        turns = [{"from": "human", "value": f"<{kind}>What?"}, {"from": "gpt", "value": "This."}]
        records.append({"id": name, kind: name, "conversations": turns})
    (tmp_path / "a.json").write_text(json.dumps(records))
    data = LlavaData(source="llava", annotations=("a.json",), media="media", damaged="exclude")
    paths = Paths(data=str(tmp_path))
    began = time.monotonic()
    damaged = dict(check_data(data, paths, 0).damaged)
    opened = open_data(data, paths, 0)
    assert {key.partition("#")[2] for key, _ in opened.excluded} == set(damaged)
    policy = SamplingPolicy(rule="random") if rule == "random" else SamplingPolicy()
    for sample in opened.samples:  # what the check finds good, training reads
        for epoch in range(3):
            (clip_T3HW,) = clips(sample, policy, EpochView(0, epoch), frames=8, size=64)
            assert clip_T3HW.shape[0] == (1 if sample.media[0].kind == "image" else 8)
    with pytest.raises(DataError, match=f"{len(damaged)} of 200 media files") as caught:
        open_data(data.model_copy(update={"damaged": "refuse"}), paths, 0)
    assert caught.value.exit_code == 4
    assert 60 < len(damaged) < 190  # both verdicts are there
    assert time.monotonic() - began < 300


def test_deep_and_odd_pictures(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64)[None].repeat(48, 0)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "int.tif")
    row = read_picture(tmp_path / "deep.png")[0, 0, :, 0].astype(int)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 1
    assert picture_notes(tmp_path / "deep.png") == (DEEP,)
    for name in ("float.tif", "int.tif"):
        with pytest.raises(VideoError, match=f"{name}: its values are .*, of no known range"):
            read_picture(tmp_path / name)


def test_the_size_of_a_picture_is_that_of_what_is_read(tmp_path: Path) -> None:
    """By the header where that is sure: the size of a file that is cut off behind it is still known."""
    picture = Image.fromarray(numbered(5))
    exif = Image.Exif()
    exif[0x112] = 6
    for ending in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        path = tmp_path / f"a.{ending}"
        picture.save(path, **({"exif": exif} if ending == "jpg" else {}))
        assert picture_size(path) == read_picture(path).shape[1:3] == (48, 64), ending
    Image.fromarray(np.zeros((30, 20), np.uint16)).save(tmp_path / "deep.png")
    assert picture_size(tmp_path / "deep.png") == (30, 20)
    cut = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:-200])
    assert picture_size(cut) == (48, 64)
    Image.fromarray(np.zeros((30, 20), np.float32)).save(tmp_path / "float.tif")
    for name, message in (("float.tif", "of no known range"), ("none.png", "not there")):
        with pytest.raises(VideoError, match=message):
            picture_size(tmp_path / name)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(VideoError, match=r"text\.png: cannot be decoded"):
        picture_size(tmp_path / "text.png")


def test_rotation_and_transparency_are_as_in_the_official_loader_and_counted(tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    picture, records = Image.fromarray(numbered(5)), []
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x112] = orientation
        picture.save(media / f"{orientation}.jpg", exif=exif, quality=95)
    clear = np.dstack([numbered(5), np.zeros((48, 64), np.uint8)])
    Image.fromarray(clear).save(media / "clear.png")
    for path in sorted(media.iterdir()):
        shown = read_picture(path)[0]
        assert (shown == np.array(Image.open(path).convert("RGB"))).all()
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "This."}]
        records.append({"id": path.name, "image": path.name, "conversations": turns, "source": "x"})
    (tmp_path / "a.json").write_text(json.dumps(records))
    data = LlavaData(source="llava", annotations=("a.json",), media="media")
    expected = (
        "key source is not read, in 5 records",
        f"3 pictures {ROTATED.replace('carries', 'carry')}",
        f"1 picture {TRANSPARENT}",
    )
    assert check_data(data, Paths(data=str(tmp_path)), 0).remarks == expected
    assert open_data(data, Paths(data=str(tmp_path)), 0).notes == expected


def test_a_file_of_nearly_the_name_is_suggested(tmp_path: Path) -> None:
    media = tmp_path / "media"
    for name in ("caf\u00e9.mp4", "clip_01.mp4", "Upper.MP4".lower()):
        clip(media / name, 5)
    (media / "upper.mp4").rename(media / "Upper.MP4")
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "This."}]
    names = ("cafe\u0301.mp4", "clip_1.mp4", "UPPER.mp4", "nothing.like.it")
    records = [{"id": str(i), "video": name, "conversations": turns} for i, name in enumerate(names)]
    (tmp_path / "a.json").write_text(json.dumps([*records, {"q": "What?", "a": "x", "video_id": "Upper"}]))
    data = LlavaData(source="llava", annotations=("a.json",), media="media")
    damaged = dict(check_data(data, Paths(data=str(tmp_path)), 0).damaged)
    assert "in another Unicode form" in damaged[names[0]]
    assert damaged[names[1]] == "not there; is clip_01.mp4 meant?"
    assert "in other capitals" in damaged[names[2]]
    assert damaged[names[3]] == "not there"
    assert len(damaged) == 4
