"""Frames of evaluated videos on the disk: the same bits as without, never of something else, and damage is said.

Legend: T frames, H and W pixels of a video, Z pixels of a square's side.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.common.errors import DataError
from harness.data.loading.video import read_frames
from harness.data.sample import Media
from harness.evaluation.frame_store import FrameStore, open_frames
from harness.models.hf.internvl.image_processing import Tiles
from harness.models.videochat2.image_processing import Pixels as VideoChat2Pixels
from harness.models.videollama2.image_processing import Pixels as VideoLLaMA2Pixels
from tests.harness.worlds.clips import clip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COUNT = 4
HALF = (0.5, 0.5, 0.5)
PADDED = VideoLLaMA2Pixels(24, (0.5, 0.4, 0.3), HALF)


class Squares:
    """A processor's part that keeps frames; everything else of it is not asked."""

    def __init__(self, settings: dict[str, Any] | None, squares: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.squares = squares
        self._settings = settings

    def square_settings(self) -> dict[str, Any] | None:
        return self._settings


class Reader:
    """Decodes, and counts how often."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, media: Media) -> torch.Tensor:
        self.read.append(media.path.name)
        return read_frames(media, frames=COUNT)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Media:
    path = tmp_path_factory.mktemp("videos") / "a.mp4"
    clip(path)
    return Media("video", path)


def opened(
    folder: Path, reader: Reader, *, room: int = 10**6, said: list[str] | None = None, **more: Any
) -> FrameStore:
    settings = {"count": COUNT, "rule": "spread", **more}
    processor = Squares(PADDED.settings(), PADDED.squares)
    say = [].append if said is None else said.append
    store = open_frames(reader, processor, folder=folder, room=room, say=say, **settings)
    assert store is not None
    return store


@pytest.mark.parametrize("shape", [(20, 31), (48, 32), (24, 24), (7, 60)])
@pytest.mark.parametrize(
    ("squares", "seen"),
    [
        (PADDED.squares, lambda frames: PADDED.normalise(PADDED.squares(frames))),
        *(
            (pixels.squares, lambda frames, pixels=pixels: pixels.normalise(pixels.squares(frames)))
            for pixels in (replace(PADDED, aspect="square"), replace(PADDED, aspect="square", crop=True))
        ),
        (lambda frames: VideoChat2Pixels(24).clips(frames)[0], VideoChat2Pixels(24).clips),
        (Tiles(24, 4, 6).squares, Tiles(24, 4, 6).squares),
    ],
    ids=["padded", "squashed", "cropped", "videochat2", "internvl"],
)
def test_a_model_sees_the_same_of_squares_as_of_frames(
    squares: Callable[[torch.Tensor], torch.Tensor],
    seen: Callable[[torch.Tensor], torch.Tensor],
    shape: tuple[int, int],
) -> None:
    draw = torch.Generator().manual_seed(0)
    frames_T3HW = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=draw)
    squares_T3ZZ = squares(frames_T3HW)
    assert squares_T3ZZ.dtype == torch.uint8
    assert squares_T3ZZ.shape == (2, 3, 24, 24)
    assert torch.equal(seen(squares_T3ZZ), seen(frames_T3HW))


def test_a_clip_is_decoded_once_for_all_who_ask(video: Media, tmp_path: Path) -> None:
    first, later = Reader(), Reader()
    expected = PADDED.squares(read_frames(video, frames=COUNT))
    assert torch.equal(opened(tmp_path, first)(video), expected)
    store = opened(tmp_path, later)
    assert torch.equal(store(video), expected)
    assert (first.read, later.read) == (["a.mp4"], [])
    assert (store.read_back, store.decoded) == (1, 0)


def test_other_frames_are_never_taken(video: Media, tmp_path: Path) -> None:
    """Another part, number, rule, size, sha256 or time of change is another clip."""
    reader = Reader()
    opened(tmp_path, reader)(video)
    other = replace(PADDED, size=32)
    processor = Squares(other.settings(), other.squares)
    resized = open_frames(reader, processor, count=COUNT, rule="spread", folder=tmp_path, room=10**6, say=print)
    assert resized is not None
    asked = [
        lambda: opened(tmp_path, reader)(replace(video, start=0.1)),
        lambda: opened(tmp_path, reader)(replace(video, sha256="0" * 64)),
        lambda: opened(tmp_path, reader, count=COUNT + 1)(video),
        lambda: opened(tmp_path, reader, rule="middle")(video),
        lambda: resized(video),
        lambda: opened(tmp_path, reader)(video),
    ]
    for number, ask in enumerate(asked, start=2):
        if ask is asked[-1]:
            later = video.path.stat().st_mtime_ns + 10**9
            os.utime(video.path, ns=(later, later))
        ask()
        assert len(reader.read) == number
        assert len(list(tmp_path.rglob("*.bin"))) == number


def test_pictures_and_folders_are_read_as_they_are(video: Media, tmp_path: Path) -> None:
    seen: list[Media] = []

    def read(media: Media) -> torch.Tensor:
        seen.append(media)
        return torch.zeros(1, 3, 5, 7, dtype=torch.uint8)

    store = FrameStore(read, PADDED.squares, {}, tmp_path / "frames", 10**6, print)
    for media in (replace(video, kind="image"), Media("video", tmp_path)):
        assert store(media).shape == (1, 3, 5, 7)
    assert len(seen) == 2
    assert not (tmp_path / "frames").exists()


def test_no_more_room_than_it_gets_is_used(video: Media, tmp_path: Path) -> None:
    reader = Reader()
    parts = [replace(video, start=start) for start in (0.0, 0.1, 0.2)]
    one = len(next(_files(opened(tmp_path / "one", reader), parts[:1], tmp_path / "one")))
    store = opened(tmp_path / "two", reader, room=2 * one + 1)
    assert len(list(_files(store, parts, tmp_path / "two"))) == 2
    assert torch.equal(store(parts[2]), PADDED.squares(read_frames(parts[2], frames=COUNT)))


def _files(store: FrameStore, parts: list[Media], folder: Path) -> Any:
    for part in parts:
        store(part)
    return (path.read_bytes() for path in folder.rglob("*.bin"))


def test_damage_is_said_by_name_and_mended(video: Media, tmp_path: Path) -> None:
    expected = opened(tmp_path, Reader())(video)
    (path,) = tmp_path.rglob("*.bin")
    whole = path.read_bytes()
    flipped = [bytes([*whole[:place], whole[place] ^ 1, *whole[place + 1 :]]) for place in (0, 20, 60, 150, -9)]
    for content in (*flipped, whole[:-1], whole[:10], b"", whole + b"0", b"[1]\n"):
        path.write_bytes(content)
        said: list[str] = []
        reader = Reader()
        assert torch.equal(opened(tmp_path, reader, said=said)(video), expected)
        assert reader.read == ["a.mp4"]
        assert len(said) == 1
        assert f"{path}: is not as it was written" in said[0]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_named(video: Media, tmp_path: Path, make: Callable[[Path], None]) -> None:
    store = opened(tmp_path, Reader())
    store(video)
    (path,) = tmp_path.rglob("*.bin")
    path.unlink()
    make(path)
    with pytest.raises(DataError, match=f"{path}: a (folder|named pipe), not a file"):
        store(video)


def test_a_video_that_cannot_be_read_is_named_and_nothing_is_kept(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"not a video")
    for path in (damaged, tmp_path / "absent.mp4"):
        with pytest.raises(DataError, match=path.name):
            opened(tmp_path / "frames", Reader())(Media("video", path))
    assert not list(tmp_path.rglob("*.bin"))


def test_processors_that_read_frames_otherwise_keep_none(tmp_path: Path) -> None:
    more = {"count": COUNT, "rule": "spread", "folder": tmp_path, "room": 1, "say": print}
    assert open_frames(Reader(), Squares(None, PADDED.squares), **more) is None
    assert open_frames(Reader(), object(), **more) is None
