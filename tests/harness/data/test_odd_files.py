"""Named pipes and devices in the place of files: told at once, not waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.common.errors import DataError, RecipeError
from harness.common.files import odd_kind
from harness.config.load import load_recipe
from harness.data import records
from harness.data.check import _look
from harness.data.loading.errors import VideoError
from harness.data.loading.pictures import read_picture
from harness.data.loading.video import inspect_video

DEVICE = Path("/dev/zero")


@pytest.fixture(params=["a named pipe", "a device"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "odd"
    if request.param == "a device":
        path.symlink_to(DEVICE)
    else:
        os.mkfifo(path)
    return path, request.param


def test_annotations_and_media_are_files(odd: tuple[Path, str]) -> None:
    path, kind = odd
    assert odd_kind(path) == kind
    with pytest.raises(DataError, match=f"{path}: {kind}, not a file"):
        records.read_json(path)
    for read in (read_picture, inspect_video):
        with pytest.raises(VideoError, match=f"{path}: {kind}, not a file"):
            read(path)
    for medium in ("image", "video"):
        assert _look(path, medium, path.stat(), None).reason == f"{kind}, not a file"  # type: ignore[arg-type]


def test_recipes_are_files(odd: tuple[Path, str]) -> None:
    with pytest.raises(RecipeError, match="odd"):
        load_recipe(str(odd[0]))


def test_files_and_folders_are_not_odd(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [odd_kind(tmp_path / name) for name in ("file", ".", "absent")] == [None, None, None]
