"""Every kind of clip that people have: the frames and colours that decord reads of it, or a message what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from PIL import Image

from harness.data.loading.errors import VideoError
from harness.data.loading.frames import spread
from harness.data.loading.timeline import Timeline
from harness.data.loading.video import Facts, decode, inspect_video, probe_video, read_frames
from harness.data.sample import Media
from tests.harness.worlds import clips
from tests.harness.worlds.clips import clip, number, numbered, remux, rotate

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURES = Path(__file__).parents[3] / "fixtures"
DECORD: dict[str, Any] = json.loads((FIXTURES / "decord_frames.json").read_text())["clips"]
PADDED = ("h264open.ts", "mpeg2.ts", "edited.mp4")
"""decord loses the start of a transport stream, and shows the last frame again for each that an edit list hides."""
KINDS = {kind.name: kind for kind in clips.matrix()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_reads_what_decord_reads(name: str, folder: Path) -> None:
    kind, reference = KINDS[name], DECORD[name]
    path = kind.make(folder)
    facts = inspect_video(path)
    numbers = list(range(kind.shift, kind.arguments.get("frames", 3)))
    frames_THW3 = decode(path, len(numbers), rule="middle")
    assert facts.frames == len(numbers) == len(frames_THW3)
    if reference is not None:
        assert facts.fps == pytest.approx(reference["fps"], abs=1e-3)
        assert list(frames_THW3.shape[1:3]) == reference["size"]
    if kind.matrix is not None:
        shown = np.array(clips.stripes(frames_THW3[0]))
        assert np.abs(shown - np.array(clips.COLOURS)).max() <= 4
        assert np.abs(shown - np.array(reference["stripes"])).max() <= 2
    elif "turned" in name:
        samples = frames_THW3[5][8::16, 8::16].reshape(-1, 3).astype(int)
        assert np.abs(samples - np.array(reference["samples"])).max() <= 2
    else:
        assert [number(frame) for frame in frames_THW3] == numbers
        if reference is not None and name not in PADDED:
            assert reference["numbers"] == numbers
    few = decode(path, 3)
    assert (few == frames_THW3[spread(len(numbers), 3)]).all()


@pytest.mark.parametrize("name", [name for name in sorted(KINDS) if KINDS[name].matrix is None])
def test_seeking_and_skipping_change_no_pixel(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = KINDS[name].make(folder)
    every = decode(path, 24, rule="middle")
    total = inspect_video(path).frames
    for worth in (True, False):
        monkeypatch.setattr(Timeline, "worth_seeking", lambda self, parts, worth=worth: worth)
        for start in range(3):
            wanted = [min(start + 7 * i, total - 1) for i in range(4)]
            monkeypatch.setattr("harness.data.loading.video.choose", lambda *_, wanted=wanted, **__: wanted)
            assert (decode(path, 4) == every[np.minimum(wanted, len(every) - 1)]).all()


FRAMES = {
    ("clip_a.mp4", 8): "428dc0ea03dfcc475214e95be27abc7d29ba7479377741abaccb7f2d27918247",
    ("clip_b.mp4", 8): "d505588908ea30c98ec282af7734893a4aaca32818e76ec18545b180b6971dfd",
    ("clip_b.mp4", 1000): "7c7a0603846aaf9b1141f9430367b245101a6757ee1f95159754f28e3009c4d2",
}
"""sha256 of the frames that the first reader of this project gave for the clips of the parity fixtures."""


@pytest.mark.parametrize(("name", "frames"), sorted(FRAMES))
def test_the_fixtures_read_as_they_always_did(name: str, frames: int) -> None:
    frames_THW3 = decode(FIXTURES / "videollama2" / name, frames)
    assert hashlib.sha256(frames_THW3.tobytes()).hexdigest() == FRAMES[name, frames]


def _two_sizes(path: Path) -> Path:
    """A transport stream whose pictures grow from 64 x 48 to 96 x 72 in its middle."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        other: Any = av.CodecContext.create("libx264", "w")
        other.width, other.height, other.pix_fmt = 96, 72, "yuv420p"
        other.framerate, other.time_base = 10, stream.codec_context.time_base or 1 / stream.average_rate
        for encoder, first in ((stream, 0), (other, 10)):
            packets = []
            for i in range(first, first + 10):
                frame = av.VideoFrame.from_ndarray(numbered(i, encoder.width, encoder.height), format="rgb24")
                frame.pts, frame.time_base = i, 1 / stream.average_rate
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    return path


def test_pictures_that_change_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    path = _two_sizes(tmp_path / "sizes.ts")
    frames_THW3 = decode(path, 20, rule="middle")
    assert frames_THW3.shape == (20, 48, 64, 3)
    assert [number(frame) for frame in frames_THW3] == list(range(20))
    assert [number(frame) for frame in decode(path, 2)] == spread(20, 2)


def test_a_recording_that_starts_between_key_frames(tmp_path: Path) -> None:
    whole = clip(tmp_path / "all.ts", 60, options={"bf": "0", "x264-params": "keyint=20:scenecut=0"})
    late = remux(whole, tmp_path / "late.ts", drop=7)
    assert inspect_video(late).frames == 40
    assert [number(frame) for frame in decode(late, 5)] == [20 + i for i in spread(40, 5)]
    cut = remux(whole, tmp_path / "late.mkv", drop=7)
    assert [number(frame) for frame in decode(cut, 5)] == [20 + i for i in spread(40, 5)]


def test_dropped_frames_of_an_avi_are_none(tmp_path: Path) -> None:
    times = [i if i < 20 else i + 10 for i in range(40)]
    path = clip(tmp_path / "gap.avi", 40, codec="mpeg4", times=times)
    assert inspect_video(path) == Facts(40, 10.0)
    assert [number(frame) for frame in decode(path, 5)] == spread(40, 5)


def _cover(picture: bytes) -> bytes:
    """An ID3 tag with a picture, as in front of a sound file."""
    body = b"\0image/jpeg\0\3\0" + picture
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


def _sound(format: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream: Any = container.add_stream("libmp3lame", rate=44100)
        stream.layout = "mono"
        for k in range(20):
            wave = (np.sin(np.arange(1152) * 0.1) * 9000).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16p", layout="mono")
            frame.sample_rate, frame.pts = 44100, k * 1152
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file.getvalue()


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    sound = _sound("mp3")
    if sound[:3] == b"ID3":
        size = sum(byte << shift for byte, shift in zip(sound[6:10], (21, 14, 7, 0), strict=True))
        sound = sound[10 + size :]
    jpeg = io.BytesIO()
    Image.fromarray(numbered(5)).save(jpeg, "JPEG")
    path = tmp_path / "song.mp4"
    path.write_bytes(_cover(jpeg.getvalue()) + sound)
    assert probe_video(path) == "has no video stream, only a cover picture"
    with pytest.raises(VideoError, match=r"song\.mp4: has no video stream"):
        read_frames(Media("video", path), frames=4)


def _whole(folder: Path) -> Iterator[Path]:
    for suffix, codec, mux in (
        ("mp4", "libx264", {"movflags": "+faststart"}),
        ("mov", "libx264", {"movflags": "+faststart"}),
        ("mkv", "libx264", {}),
        ("webm", "libvpx", {}),
        ("flv", "flv", {}),
        ("avi", "mpeg4", {}),
    ):
        yield clip(folder / f"whole.{suffix}", 60, codec=codec, gop=10, mux=mux)


def test_a_missing_end_is_noticed_where_the_header_tells_the_length(tmp_path: Path) -> None:
    for whole in _whole(tmp_path):
        assert probe_video(whole) is None, whole.name
        raw = whole.read_bytes()
        half = tmp_path / f"half{whole.suffix}"
        half.write_bytes(raw[: len(raw) * 4 // 5])
        reason = probe_video(half) or ""
        assert "cut off" in reason or "cannot be decoded" in reason or "damaged" in reason, (half.name, reason)
        with pytest.raises(VideoError, match=half.name):
            read_frames(Media("video", half), frames=4)


def test_rotations_of_a_phone_are_upright(tmp_path: Path) -> None:
    plain = clip(tmp_path / "plain.mp4", 12)
    stored = decode(plain, 4)
    for degrees, quarters in ((90, -1), (180, 2), (270, 1)):
        path = tmp_path / f"{degrees}.mp4"
        path.write_bytes(plain.read_bytes())
        upright = decode(rotate(path, degrees), 4)
        assert np.abs(upright.astype(int) - np.rot90(stored, quarters, axes=(1, 2))).max() <= 2
