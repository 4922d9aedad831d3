"""Damaged media are found, named, and refused or left out; what is known is not read again."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from harness.common.errors import DataError
from harness.config.data import LlavaData, ShapesData
from harness.config.recipe import Paths
from harness.data import shapes
from harness.data.check import SCHEMA, Expected, probe
from harness.data.loading.video import probe_video
from harness.data.media_folders import MediaFolders
from harness.data.sources import check_data, make_data, open_data

if TYPE_CHECKING:
    from pathlib import Path

REFUSE = ShapesData(source="shapes", train_clips=20, test_clips=7, stage_clips=2)
EXCLUDE = REFUSE.model_copy(update={"damaged": "exclude"})
CLIP = "clips/train/000003.mp4"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_data(REFUSE, Paths(data=str(folder)), 0)
    return folder


@pytest.fixture
def world(pristine: Path, tmp_path: Path) -> tuple[Paths, Path]:
    """A copy of a made set that may be damaged, and its folder."""
    shutil.copytree(pristine, tmp_path / "data")
    paths = Paths(data=str(tmp_path / "data"))
    return paths, shapes.folder(REFUSE, tmp_path / "data", 0)


def _flip(path: Path) -> None:
    """Change one byte in the middle of the pictures, so that decoding raises nothing and no frame is lost."""
    whole = path.read_bytes()
    start, end = whole.index(b"mdat") + 200, whole.index(b"moov") - 8
    for place in range((start + end) // 2, end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        if probe_video(path) is None:
            return
    raise AssertionError("every flipped byte stopped the decoder")


def test_a_flipped_byte_that_decodes_is_found_by_its_hash(world: tuple[Paths, Path]) -> None:
    paths, root = world
    whole = open_data(EXCLUDE, paths, 0)
    assert whole.excluded == ()
    _flip(root / CLIP)
    with pytest.raises(DataError, match=rf"{CLIP}: its content changed") as caught:
        open_data(REFUSE, paths, 0)
    assert caught.value.exit_code == 4
    assert "harness data make" in (caught.value.hint or "")
    rest = open_data(EXCLUDE, paths, 0)
    assert [key for key, _ in rest.excluded] == ["000003/0", "000003/1", "000003/2"]
    assert all(CLIP in reason for _, reason in rest.excluded)
    assert {s.key for s in whole.samples} - {s.key for s in rest.samples} == {key for key, _ in rest.excluded}
    assert rest.fingerprint != whole.fingerprint
    assert open_data(EXCLUDE, paths, 0).fingerprint == rest.fingerprint


def test_empty_cut_and_deleted_files_are_named(world: tuple[Paths, Path]) -> None:
    paths, root = world
    names = [f"clips/train/{i:06d}.mp4" for i in range(12)]
    (root / names[0]).unlink()
    (root / names[1]).write_bytes(b"")
    for name in names[2:]:
        path = root / name
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError) as caught:
        open_data(REFUSE, paths, 0)
    message = str(caught.value)
    assert message.startswith("12 of 29 media files")
    assert f"{names[0]}: not there" in message
    assert message.count("\n") == 11
    assert message.endswith("and 2 more")
    report = check_data(REFUSE, paths, 0)
    assert [name for name, _ in report.damaged] == names


def test_damaged_held_out_clips_are_refused_in_any_case(world: tuple[Paths, Path]) -> None:
    paths, root = world
    (root / "clips/test/000001.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=r"held out:\n  clips/test/000001\.mp4"):
        open_data(EXCLUDE, paths, 0)


def test_known_files_are_not_read_again_and_fresh_reads_all(world: tuple[Paths, Path]) -> None:
    paths, root = world
    assert check_data(REFUSE, paths, 0).read == 29
    assert check_data(REFUSE, paths, 0).read == 0
    later = (root / CLIP).stat().st_mtime_ns + 10**9
    os.utime(root / CLIP, ns=(later, later))
    report = check_data(REFUSE, paths, 0)
    assert (report.read, report.damaged) == (1, ())
    assert check_data(REFUSE, paths, 0, fresh=True).read == 29


def test_damage_that_keeps_size_and_time_is_found_by_a_fresh_check(world: tuple[Paths, Path]) -> None:
    paths, root = world
    check_data(REFUSE, paths, 0)
    stat = (root / CLIP).stat()
    _flip(root / CLIP)
    os.utime(root / CLIP, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert check_data(REFUSE, paths, 0).damaged == ()
    assert [name for name, _ in check_data(REFUSE, paths, 0, fresh=True).damaged] == [CLIP]


def test_without_decoding_only_what_is_known_counts(world: tuple[Paths, Path]) -> None:
    paths, root = world
    (root / CLIP).write_bytes(b"x")
    assert len(open_data(REFUSE, paths, 0, decode=False).samples) == 60
    check_data(REFUSE, paths, 0)
    with pytest.raises(DataError, match=CLIP):
        open_data(REFUSE, paths, 0, decode=False)


def test_a_damaged_cache_is_made_anew(world: tuple[Paths, Path]) -> None:
    paths, _ = world
    cache = check_data(REFUSE, paths, 0).cache
    for content in ("{", "[]", '{"schema": 99, "files": {}}'):
        cache.write_text(content)
        assert check_data(REFUSE, paths, 0).read == 29
        assert json.loads(cache.read_text())["schema"] == SCHEMA
    assert not list(cache.parent.glob("*.tmp"))


def test_without_a_manifest_the_first_good_content_is_the_right_one(world: tuple[Paths, Path]) -> None:
    _, root = world
    cache = root / "cache.json"
    files = {CLIP: Expected("video")}
    assert probe(MediaFolders(root), files, cache).damaged == ()
    (root / CLIP).write_bytes((root / "clips/train/000004.mp4").read_bytes())
    ((name, reason),) = probe(MediaFolders(root), files, cache).damaged
    assert (name, reason) == (CLIP, "its content changed since it was first checked")


def test_progress_is_told(world: tuple[Paths, Path]) -> None:
    _, root = world
    told: list[int] = []
    files = {f"clips/train/{i:06d}.mp4": Expected("video") for i in range(5)}
    probe(MediaFolders(root), files, root / "cache.json", advance=told.append)
    assert told == [1, 2, 3, 4, 5]


def test_records_that_cannot_be_used_are_refused_or_left_out(world: tuple[Paths, Path]) -> None:
    paths, root = world
    records = json.loads((root / "train.json").read_bytes())[:4]
    records[1]["conversations"] = []
    (root.parent / "talk.json").write_text(json.dumps(records))
    data = LlavaData(source="llava", annotations=("talk.json",), media=root.name)
    with pytest.raises(DataError, match=r"1 of 4 records cannot be used:\n  talk\.json: record 1 \(000000/1\)"):
        open_data(data, paths, 0)
    rest = open_data(data.model_copy(update={"damaged": "exclude"}), paths, 0)
    assert len(rest.samples) == 3
    assert len(rest.excluded) == 1
    assert len(check_data(data, paths, 0).damaged) == 1


def test_annotations_without_a_record_are_no_good_data(world: tuple[Paths, Path]) -> None:
    """What a run refuses, the check names."""
    paths, root = world
    (root.parent / "talk.json").write_text("[]")
    data = LlavaData(source="llava", annotations=("talk.json",), media=root.name)
    ((name, reason),) = check_data(data, paths, 0).damaged
    assert (name, reason) == (str(root), "no usable sample in the annotations of data.source llava")
    with pytest.raises(DataError, match="no usable sample in the annotations"):
        open_data(data, paths, 0)
