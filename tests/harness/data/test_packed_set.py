"""A data set packed once: opened as it is, made again when anything that it is made from changed, never trained on
where it is damaged."""

from __future__ import annotations

import json
import os
import pickle
import random
import time
from typing import TYPE_CHECKING

import pytest

from harness.common.errors import DataError
from harness.common.progress import Progress
from harness.config.data import LlavaData, ShapesData
from harness.config.recipe import Paths
from harness.data.sources import DataSet, check_data, llava, make_data, open_data, packed_set
from tests.harness.worlds.clips import clip

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.data import Data

DATA = LlavaData(source="llava", annotations=("a.json",), media="media", frames=4, damaged="exclude")


def _records(count: int) -> list[dict[str, object]]:
    talk = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "This."}]
    return [{"id": f"r{i}", "video": f"{i % 3}.mp4", "conversations": talk} for i in range(count)]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for number in range(3):
        clip(tmp_path / "media" / f"{number}.mp4", 5)
    (tmp_path / "a.json").write_text(json.dumps([*_records(20), {"id": "odd"}]))
    time.sleep(0.02)  # the clock of files lags: what is written in the same moment is not packed
    return Paths(data=str(tmp_path))


def _packed(paths: Paths, data: Data = DATA) -> Path:
    return packed_set.path_of(data, paths, None)


def _as_values(data: DataSet) -> list[object]:
    return [list(data.samples), data.questions, data.excluded, data.fingerprint, data.notes, data.root, data.subset]


def test_what_is_opened_is_what_was_read(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_data(DATA, paths, 0)
    assert _packed(paths).is_file()
    monkeypatch.setattr(llava, "read_llava", lambda *_: pytest.fail("the annotations are read again"))
    again = open_data(DATA, paths, 0)
    assert _as_values(again) == _as_values(first)
    assert len(again.samples) == 20
    assert len(again.excluded) == 1
    assert _as_values(open_data(DATA, paths, 0, decode=False)) == _as_values(first)
    assert list(pickle.loads(pickle.dumps(again.samples))) == list(first.samples)


def test_questions_come_back(tmp_path: Path) -> None:
    shapes = ShapesData(source="shapes", train_clips=4, test_clips=7, stage_clips=2)
    paths = Paths(data=str(tmp_path))
    make_data(shapes, paths, 0)
    time.sleep(0.02)
    first, again = open_data(shapes, paths, 0), open_data(shapes, paths, 0)
    assert packed_set.path_of(shapes, paths, 0).is_file()
    assert len(first.questions) > 0
    assert _as_values(first) == _as_values(again)


def test_it_is_made_again_when_what_it_is_made_from_changes(paths: Paths, tmp_path: Path) -> None:
    first = open_data(DATA, paths, 0)
    file = tmp_path / "a.json"
    before = file.stat()
    file.write_text(file.read_text().replace("This.", "That."))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # of the same size and time
    changed = open_data(DATA, paths, 0)
    assert changed.samples[0].turns[-1].text == "That."
    assert changed.fingerprint != first.fingerprint
    open_data(DATA, paths, 0)
    (tmp_path / "media" / "1.mp4").write_bytes(b"junk")
    assert len(open_data(DATA, paths, 0).samples) == 13
    (tmp_path / "media" / "2.mp4").unlink()
    assert len(open_data(DATA, paths, 0).samples) == 7
    clip(tmp_path / "media" / "2.mp4", 5)
    assert len(open_data(DATA, paths, 0).samples) == 13


def test_a_plan_does_not_spare_the_media_their_check(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "media" / "0.mp4").write_bytes(b"junk")
    assert len(open_data(DATA, paths, 0, decode=False).samples) == 20
    assert _packed(paths).is_file()
    assert len(open_data(DATA, paths, 0).samples) == 13
    assert len(open_data(DATA, paths, 0, decode=False).samples) == 13
    assert check_data(DATA, paths, 0).damaged[-1][0] == "0.mp4"


def test_many_files_are_looked_at_by_their_folders(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_set, "_MOST_FILES", 2)
    assert len(open_data(DATA, paths, 0).samples) == 20
    assert len(open_data(DATA, paths, 0).samples) == 20
    (tmp_path / "media" / "1.mp4").rename(tmp_path / "media" / "gone.mp4")
    assert len(open_data(DATA, paths, 0).samples) == 13


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_file_is_made_again_or_named(paths: Paths, seed: int) -> None:
    """Cut, or one byte changed, anywhere: the samples are those of the annotations, or an error names the file."""
    whole = _as_values(open_data(DATA, paths, 0))  # read out of the file before it is damaged
    path, rng = _packed(paths), random.Random(seed)
    raw = bytearray(path.read_bytes())
    place = rng.randrange(len(raw))
    if seed % 5:
        raw[place] ^= 1 << rng.randrange(8)
    path.write_bytes(raw if seed % 5 else raw[:place])
    opened = open_data(DATA, paths, 0)
    message = ""
    try:
        assert list(opened.samples) == whole[0]
    except DataError as error:
        message = str(error)
    if message:
        assert str(path) in message
        assert not path.exists()
    assert _as_values(open_data(DATA, paths, 0)) == whole


def test_a_folder_that_cannot_be_written_is_told_of_and_data_are_read(
    paths: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".packed").write_text("a file stands where the folder should be")
    for _ in range(2):
        assert len(open_data(DATA, paths, 0, progress=Progress()).samples) == 20
        assert "the data cannot be packed (File exists); every command reads them anew" in capsys.readouterr().err


def test_one_command_at_a_time_packs_and_the_others_need_not_wait(paths: Paths) -> None:
    path = _packed(paths)
    with packed_set.locked(path, wait=False, progress=None) as first:
        assert first
        with packed_set.locked(path, wait=False, progress=None) as second:
            assert not second
        assert len(open_data(DATA, paths, 0, decode=False).samples) == 20
        assert not path.exists()
    assert len(open_data(DATA, paths, 0, decode=False).samples) == 20
    assert path.exists()


def test_samples_left_out_share_the_bytes(paths: Paths) -> None:
    opened = open_data(DATA, paths, 0)
    part = opened.samples.taken([3, 1, 7])  # type: ignore[attr-defined]
    assert list(part) == [opened.samples[place] for place in (1, 3, 7)]
    assert part._bytes is opened.samples._bytes  # type: ignore[attr-defined]
