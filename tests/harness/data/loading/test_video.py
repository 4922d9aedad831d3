"""Frames of videos and images: which ones, what they show, and what is said of files that cannot be read."""

from __future__ import annotations

import wave
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.data.loading import video
from harness.data.loading.errors import VideoError
from harness.data.loading.frames import bounds, choose, middle, spread
from harness.data.loading.timeline import Timeline
from harness.data.loading.video import probe_folder, probe_video, read_frames
from harness.data.sample import Media

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.data.loading.frames import FrameRule


def _write(path: Path, frames: int, **options: str) -> Path:
    """Grey frames; frame i has the grey value 4 * (i % 60) + 10 and, from 60 on, a bright top."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10, options={"qscale": "1", "flags": "+qscale", **options})
        stream.width, stream.height, stream.pix_fmt = 32, 48, "yuv420p"
        for i in range(frames):
            picture = np.full((48, 32, 3), 4 * (i % 60) + 10, np.uint8)
            picture[: i // 60 * 2] = 250
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _shown(frames_T3HW: torch.Tensor) -> list[int]:
    """The frame numbers that the grey values tell."""
    return [round((float(frame[:, -8:].float().mean()) - 10) / 4) for frame in frames_T3HW]


# What the official VideoLLaMA2 loader gives: (frames in the clip, frames asked for, indices).
OFFICIAL = [
    (1, 16, [0] * 16),
    (2, 16, [0] * 8 + [1] * 8),
    (9, 16, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]),
    (8, 8, list(range(8))),
    (50, 8, [3, 9, 15, 21, 28, 34, 40, 46]),
    (333, 16, [10, 31, 52, 73, 93, 114, 135, 156, 176, 197, 218, 239, 259, 280, 301, 322]),
]


@pytest.mark.parametrize(("total", "frames", "indices"), OFFICIAL)
def test_frames_are_spread_as_the_official_loader_does(total: int, frames: int, indices: list[int]) -> None:
    assert spread(total, frames) == indices


@given(total=st.integers(1, 100_000), frames=st.integers(1, 64))
def test_spread_stays_inside_and_in_order(total: int, frames: int) -> None:
    indices = spread(total, frames)
    assert len(indices) == frames
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (None, None, 0, 49),
        (0.0, 2.0, 0, 19),
        (1.3, 3.7, 12, 36),
        (4.9, 9.0, 48, 49),
        (2.0, 2.0, 19, 29),
        (3.0, 1.0, 9, 29),
        (-1.0, 2.0, 0, 19),
    ],
)
def test_bounds_as_the_official_loader_counts_them(
    start: float | None, end: float | None, first: int, last: int
) -> None:
    assert bounds(50, 10.0, start, end) == (first, last)


def test_reads_the_frames_that_were_chosen(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", 50)
    frames_T3HW = read_frames(Media("video", path), frames=8)
    assert frames_T3HW.shape == (8, 3, 48, 32)
    assert frames_T3HW.dtype == torch.uint8
    assert _shown(frames_T3HW) == spread(50, 8)
    assert _shown(read_frames(Media("video", path, 1.3, 3.7), frames=4)) == [12 + i for i in spread(25, 4)]


def test_a_short_video_repeats_frames(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", 2)
    assert _shown(read_frames(Media("video", path), frames=5)) == spread(2, 5) == [0, 0, 1, 1, 1]


def test_seeking_gives_the_frames_that_decoding_everything_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.mp4", 900, g="20", bf="2")
    with monkeypatch.context() as patch:
        patch.setattr(Timeline, "worth_seeking", lambda self, parts: False)
        every = read_frames(Media("video", path), frames=6)
    sought: list[list[int]] = []
    real = video._Video._from_key

    def counted(self: Any, key: int, part: list[int]) -> Any:
        sought.append(part)
        return real(self, key, part)

    monkeypatch.setattr(video._Video, "_from_key", counted)
    monkeypatch.setattr(video._Video, "_from_start", None)  # every frame comes from its key frame
    assert torch.equal(read_frames(Media("video", path), frames=6), every)
    assert sought == [[i] for i in spread(900, 6)]
    assert _shown(every) == [i % 60 for i in spread(900, 6)]


def test_a_container_without_a_frame_count(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    _write(path, 30)
    assert _shown(read_frames(Media("video", path), frames=3)) == spread(30, 3)


def test_images_are_one_frame_or_repeated(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = np.zeros((5, 7, 4), np.uint8)
    picture[..., 0], picture[..., 3] = 200, 255
    Image.fromarray(picture).save(path)
    single = read_frames(Media("image", path), frames=8)
    assert single.shape == (1, 3, 5, 7)
    assert single[0, :, 0, 0].tolist() == [200, 0, 0]
    assert read_frames(Media("image", path), frames=8, images="repeat").shape == (8, 3, 5, 7)


def _gif(path: Path, frames: int) -> Path:
    """Frame i is grey 4 * i + 10; lengths differ, as in files that people made."""
    pictures = [Image.new("RGB", (32, 48), (4 * i + 10,) * 3) for i in range(frames)]
    lengths = [40 + 10 * (i % 3) for i in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=lengths)
    return path


def _folder(path: Path, numbers: Sequence[int], name: str = "{:05d}.jpg") -> Path:
    """Picture i of the folder is grey 4 * i + 10, whatever its number."""
    path.mkdir()
    for i, number in enumerate(numbers):
        Image.new("RGB", (32, 48), (4 * i + 10,) * 3).save(path / name.format(number), quality=95)
    return path


@pytest.mark.parametrize("rule", ["spread", "middle", "mvbench"])
def test_a_gif_is_a_video(tmp_path: Path, rule: FrameRule) -> None:
    path = _gif(tmp_path / "a.gif", 20)
    frames_T3HW = read_frames(Media("video", path), frames=6, rule=rule)
    assert frames_T3HW.shape == (6, 3, 48, 32)
    assert _shown(frames_T3HW) == choose(rule, 6, total=20, fps=20.0)
    assert probe_video(path) is None
    short = read_frames(Media("video", _gif(tmp_path / "b.gif", 3)), frames=5, rule="middle")
    assert _shown(short) == [0, 1, 2, 2, 2]  # the official reader of gifs gives three frames then, and fails


def test_a_folder_of_pictures_is_a_video_of_three_frames_a_second(tmp_path: Path) -> None:
    path = _folder(tmp_path / "clip", range(1, 31))
    assert _shown(read_frames(Media("video", path), frames=5, rule="middle")) == middle(30, 5)
    assert _shown(read_frames(Media("video", path, 2.0, 8.0), frames=6, rule="middle")) == [7, 10, 13, 16, 19, 22]
    # MVBench numbers pictures from 1, so its part begins one picture earlier than the index says.
    assert _shown(read_frames(Media("video", path, 2.0, 8.0), frames=6, rule="mvbench")) == [6, 9, 12, 15, 18, 21]
    assert probe_folder(path) is None


def test_folders_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = _folder(tmp_path / "clip", range(8, 13), "shot2_{}.png")
    (path / "notes.txt").write_text("no picture")
    assert _shown(read_frames(Media("video", path), frames=5)) == [0, 1, 2, 3, 4]


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _folder(tmp_path / "gap", [1, 2, 4])
    _folder(tmp_path / "names", [1, 2], "{:05d}a.jpg")
    _folder(tmp_path / "twice", [1, 2])
    (tmp_path / "twice" / "1.jpg").write_bytes((tmp_path / "twice" / "00001.jpg").read_bytes())
    _folder(tmp_path / "broken", [1, 2])
    (tmp_path / "broken" / "00002.jpg").write_bytes(b"x")
    _folder(tmp_path / "sizes", [1, 2])
    Image.new("RGB", (16, 16)).save(tmp_path / "sizes" / "00002.jpg")
    wrong = {
        "empty": "without pictures",
        "gap": "picture 3 is missing between 1 and 4",
        "names": "does not end with a number",
        "twice": "picture 1 is there twice",
        "broken": "cannot be decoded",
        "sizes": "not of one size",
    }
    for name, words in wrong.items():
        assert words in (probe_folder(tmp_path / name) or "")
        with pytest.raises(VideoError, match=name) as caught:
            read_frames(Media("video", tmp_path / name), frames=2)
        assert words in str(caught.value)
    with pytest.raises(VideoError, match=r"no frame between 5.0 s and 6.0 s; it has 2 pictures"):
        read_frames(Media("video", tmp_path / "sizes", 5.0, 6.0), frames=2, rule="middle")


def test_a_part_of_a_video_is_counted_as_the_official_loader_does(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", 50)
    shown = _shown(read_frames(Media("video", path, 1.3, 3.7), frames=4, rule="middle"))
    assert shown == [13 + i for i in middle(24, 4)]
    draws = [np.random.default_rng(seed) for seed in (0, 0, 1)]
    drawn = [_shown(read_frames(Media("video", path), frames=4, rule="random", rng=rng)) for rng in draws]
    assert drawn[0] == drawn[1] != drawn[2]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good = _write(tmp_path / "good.mp4", 40).read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "garbage.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    for name in ("absent.mp4", "empty.mp4", "garbage.mp4", "cut.mp4", "sound.wav"):
        with pytest.raises(VideoError, match=name) as caught:
            read_frames(Media("video", tmp_path / name), frames=8)
        assert caught.value.exit_code == 4
        if name != "absent.mp4":
            assert probe_video(tmp_path / name)
    for name in ("absent.png", "half.png"):
        with pytest.raises(VideoError, match=name):
            read_frames(Media("image", tmp_path / name), frames=8)


def test_a_stream_cut_behind_its_header_is_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", 40)
    fast = tmp_path / "fast.mp4"
    with av.open(str(path)) as source, av.open(str(fast), "w", options={"movflags": "+faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert probe_video(fast) is None
    whole = fast.read_bytes()
    fast.write_bytes(whole[: len(whole) * 3 // 4])
    assert "cut off" in (probe_video(fast) or "")
    with pytest.raises(VideoError, match=r"fast\.mp4.*(cut off|cannot be decoded)"):
        read_frames(Media("video", fast), frames=8)


def test_bounds_behind_the_end_are_told(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", 20)
    with pytest.raises(VideoError, match=r"no frame between 5.0 s and 9.0 s"):
        read_frames(Media("video", path, 5.0, 9.0), frames=4)
