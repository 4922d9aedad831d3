"""Absolute and `../` names of media: read below the folders that a recipe allows by name, refused elsewhere."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from harness.common.errors import DataError, RecipeError
from harness.config.data import Annotation, LlavaData, VideoChat2Data
from harness.config.load import load_paths, load_recipe
from harness.config.recipe import Paths
from harness.data.formats import read_llava, read_videochat2
from harness.data.media_folders import MediaFolders, media_roots
from harness.data.records import RecordError
from harness.data.sources import check_data, missing_data, open_data
from harness.records.record import _places
from tests.harness.worlds.clips import clip

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.data import Data


@pytest.fixture
def folders(tmp_path: Path) -> MediaFolders:
    """`media` beside `disk`, in which `disk/deep` has a name of its own."""
    for place in ("media/sub", "disk/deep", "disk2", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
    roots = {"disk": str(tmp_path / "disk"), "deep": str(tmp_path / "disk" / "deep") + "/"}
    return MediaFolders(tmp_path / "media", media_roots(roots))


@pytest.mark.parametrize(
    ("written", "stored", "below"),
    [
        ("a.mp4", "a.mp4", "media/a.mp4"),
        ("sub/a..b.mp4", "sub/a..b.mp4", "media/sub/a..b.mp4"),
        ("12:30.mp4", "12:30.mp4", "media/12:30.mp4"),
        ("{}/disk/a.mp4", "/disk/a.mp4", "disk/a.mp4"),
        ("{}/disk/x/a.mp4", "/disk/x/a.mp4", "disk/x/a.mp4"),
        ("{}/disk/deep/a.mp4", "/deep/a.mp4", "disk/deep/a.mp4"),
        ("{}//disk/./deep/../b.mp4", "/disk/b.mp4", "disk/b.mp4"),
        ("/{}/disk/frames/", "/disk/frames", "disk/frames"),
        ("../disk/a.mp4", "/disk/a.mp4", "disk/a.mp4"),
        ("sub/../../disk/deep/a.mp4", "/deep/a.mp4", "disk/deep/a.mp4"),
    ],
)
def test_names_below_allowed_folders_are_known_by_the_folders_name(
    folders: MediaFolders, tmp_path: Path, written: str, stored: str, below: str
) -> None:
    name = folders.stored_name(written.format(tmp_path))
    assert name == stored
    assert folders.path(name) == tmp_path / below


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{}/elsewhere/a.mp4", "paths.media_roots.NAME="),
        ("{}/disk2/a.mp4", "paths.media_roots.NAME="),
        ("../a.mp4", "paths.media_roots.NAME="),
        ("../media2/../../../a.mp4", "disk is "),
        ("{}/disk", "it is the folder paths.media_roots.disk itself"),
        ("{}/disk/deep/../../media/sub/a.mp4", "name it relative to that folder: sub/a.mp4"),
        ("sub/../a.mp4", "name it relative to that folder: a.mp4"),
        ("~/a.mp4", "~ stands for no folder here"),
        ("C:\\a.mp4", "write paths with / and no drive"),
        ("c:/a.mp4", "write paths with / and no drive"),
        ("\\\\host\\share\\a.mp4", "write paths with / and no drive"),
        ("https://host/a.mp4", "it is an address"),
        ("file:///a.mp4", "it is an address"),
        ("s3://bucket/a.mp4", "it is an address"),
    ],
)
def test_other_names_are_refused_with_what_to_do(
    folders: MediaFolders, tmp_path: Path, written: str, words: str
) -> None:
    with pytest.raises(RecordError, match="is no path below the folder of media: ") as caught:
        folders.stored_name(written.format(tmp_path))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_links_are_not_followed_when_names_are_compared(folders: MediaFolders, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "disk" / "out").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "elsewhere" / "x").mkdir()
    linked = MediaFolders(folders.root, media_roots({"link": str(tmp_path / "link")}))
    assert linked.stored_name(f"{tmp_path}/link/a.mp4") == "/link/a.mp4"
    with pytest.raises(RecordError, match=r"paths\.media_roots\.NAME="):
        linked.stored_name(f"{tmp_path}/elsewhere/a.mp4")
    assert folders.stored_name(f"{tmp_path}/disk/out/a.mp4") == "/disk/out/a.mp4"
    # The system opens elsewhere/a.mp4 for this one, and the text says disk/a.mp4.
    with pytest.raises(RecordError, match=r"its \.\. follows a link"):
        folders.stored_name(f"{tmp_path}/disk/out/../a.mp4")


def test_a_prefix_of_the_annotation_is_where_relative_names_start(folders: MediaFolders, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    names = ["a.mp4", "../../disk/a.mp4", f"{tmp_path}/disk/deep/a.mp4", "../a.mp4"]
    path.write_text(json.dumps([{"video": name, "QA": [{"q": "?", "a": "!"}]} for name in names]))
    rows = read_videochat2(path, "sub", folders=folders)
    assert [row.key for row in rows[:3]] == ["a.mp4", "/disk/a.mp4", "/deep/a.mp4"]
    assert [row.media[0].name for row in rows[:3]] == ["sub/a.mp4", "/disk/a.mp4", "/deep/a.mp4"]  # type: ignore[union-attr]
    assert "is no path below" in rows[3].reason  # type: ignore[union-attr]


def test_every_form_of_llava_knows_the_folders(folders: MediaFolders, tmp_path: Path) -> None:
    name = f"{tmp_path}/disk/a.mp4"
    talk = [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": "!"}]
    spoken = [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "!"}]
    parts = [{"type": "video", "video": name}, {"type": "text", "text": "?"}]
    records = [
        {"id": 1, "video": name, "conversations": talk},
        {"id": 2, "videos": [name], "messages": spoken},
        {"id": 3, "messages": [{"role": "user", "content": parts}, spoken[1]]},
        {"q": "?", "a": "!", "video_id": name.removesuffix(".mp4")},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    rows = read_llava(path, lambda video: f"{video}.mp4", folders=folders)
    assert [row.media[0].name for row in rows] == ["/disk/a.mp4"] * 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("roots", "words"),
    [
        ("{a/b: disk}", "a name has letters, digits, _ and -"),
        ("{'': disk}", "a name has letters, digits, _ and -"),
        ("{..: disk}", "a name has letters, digits, _ and -"),
        ("{a: ''}", "a names no folder"),
        ("{a: ~/disk}", "a names no folder"),
        ('{a: "di\\0sk"}', "a names no folder"),
        ("{a: disk, b: ./disk/}", "a and b are both"),
        ("{a: 7}", r"paths\.media_roots\.a wants a text"),
        ("{a: disk, a: disk2}", "a is given twice"),
        ("disk", r"paths\.media_roots wants keys"),
    ],
)
def test_roots_that_cannot_be_are_told_in_one_line(roots: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe("tiny_baseline", [f"paths.media_roots={roots}"])
    assert str(caught.value).splitlines()[-1].startswith("1 mistake"), str(caught.value)


def test_roots_are_set_from_the_command_line_and_are_no_part_of_a_run(tmp_path: Path) -> None:
    plain = load_recipe("tiny_baseline")
    recipe = load_recipe("tiny_baseline", [f"paths.media_roots.disk={tmp_path}", "paths.media_roots.b=rel"])
    assert recipe.paths.media_roots == {"disk": str(tmp_path), "b": "rel"}
    assert recipe.run_id == plain.run_id
    assert load_paths([f"paths.media_roots.disk={tmp_path}"]).media_roots == {"disk": str(tmp_path)}
    assert _places(recipe)[str(tmp_path)] == "<media_roots.disk>"


def _world(base: Path) -> tuple[list[Data], Paths]:
    """One clip in the folder of media and one on a disk of its own, named by whole and by `../` paths."""
    clip(base / "data" / "media" / "a.mp4", 5)
    clip(base / "disk" / "b.mp4", 6)
    names = ["a.mp4", f"{base}/disk/b.mp4"]
    talk = [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": "!"}]
    records = [{"id": i, "video": name, "conversations": talk} for i, name in enumerate(names)]
    (base / "data" / "a.json").write_text(json.dumps(records))
    names[1] = "../../disk/b.mp4"
    qa: list[Any] = [{"video": name, "QA": [{"q": "?", "a": "!"}]} for name in names]
    (base / "data" / "b.json").write_text(json.dumps([*qa, {**qa[1], "start": 0.1, "end": 0.3}]))
    files = (Annotation(file="b.json"),)
    return [
        LlavaData(source="llava", annotations=("a.json",), media="media", frames=4),
        VideoChat2Data(source="videochat2_it", annotations=files, media="media", frames=4),
    ], Paths(data=str(base / "data"), media_roots={"disk": str(base / "disk")})


def test_the_same_data_in_two_places_are_one_data_set(tmp_path: Path) -> None:
    fingerprints = []
    for place in ("one", "two/deeper"):
        sections, paths = _world(tmp_path / place)
        opened = [open_data(data, paths, 0) for data in sections]
        fingerprints.append([data.fingerprint for data in opened])
        media = {media.path for data in opened for sample in data.samples for media in sample.media}
        assert media == {tmp_path / place / "data/media/a.mp4", tmp_path / place / "disk/b.mp4"}
        with pytest.raises(DataError, match="is no path below the folder of media"):
            open_data(sections[0], paths.model_copy(update={"media_roots": {}}), 0)
    assert fingerprints[0] == fingerprints[1]


def test_what_is_missing_or_damaged_in_an_allowed_folder_is_named(tmp_path: Path) -> None:
    (data, _), paths = _world(tmp_path)
    clip_b = tmp_path / "disk" / "b.mp4"
    os.rename(clip_b, tmp_path / "disk" / "B.mp4")  # noqa: PTH104
    (name, reason), *rest = check_data(data, paths, 0).damaged
    assert not rest
    assert name == "/disk/b.mp4"
    assert reason.startswith("not there; a file of this name in other capitals is")
    clip_b.write_bytes(b"junk")
    assert [name for name, _ in check_data(data, paths, 0).damaged] == ["/disk/b.mp4"]
    gone = Paths(data=paths.data, media_roots={"disk": str(tmp_path / "gone")})
    assert missing_data(data, gone, 0) == [f"{tmp_path / 'gone'}: no folder, named by paths.media_roots.disk"]
    with pytest.raises(DataError, match=r"named by paths\.media_roots\.disk"):
        open_data(data, gone, 0)
