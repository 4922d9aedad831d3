"""What `harness.common.files` promises, also to a process that is killed at the worst moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.common import files
from harness.common.errors import DataError
from harness.common.files import atomic_file, atomic_folder, read_json, temporary_path, write_atomic, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DIES_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from harness.common.files import atomic_folder, write_atomic
renames = int(sys.argv[2])
whole = Path.replace
def replace(self, target):
    global renames
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    renames -= 1
    return whole(self, target)
Path.replace = replace
target = Path(sys.argv[1])
"""


def dies(tmp_path: Path, code: str, *, renames: int = 0) -> int:
    """Run code on `target` in a process that is killed when it renames for the time after `renames`; its id."""
    command = [sys.executable, "-c", DIES_AT_RENAME + code, str(tmp_path / "target"), str(renames)]
    process = subprocess.Popen(command)
    assert process.wait() == -signal.SIGKILL
    return process.pid


@settings(max_examples=40)
@given(content=st.binary() | st.text())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: bytes | str) -> None:
    path = tmp_path_factory.mktemp("files") / "below" / "file"
    for _ in range(2):
        write_atomic(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
        assert list(path.parent.iterdir()) == [path]


@settings(max_examples=40)
@given(value=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("files") / "file.json"
    write_json(path, value, durable=True)
    assert read_json(path, "a file") == value


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": object()}])
def test_what_is_not_json_leaves_the_old_file(tmp_path: Path, value: dict[str, Any]) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})
    with pytest.raises((TypeError, ValueError)):
        write_json(path, value)
    assert read_json(path, "a file") == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\ufeff{}"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"file\.json: cannot be read as the inputs"):
        read_json(path, "the inputs")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "target"
    write_atomic(path, "old")
    pid = dies(tmp_path, "write_atomic(target, 'new')")
    assert path.read_text() == "old"
    left = [one for one in tmp_path.iterdir() if one != path]
    assert [one.read_text() for one in left] == ["new"]
    assert str(pid) in left[0].name
    write_atomic(path, "newer")
    assert path.read_text() == "newer"


def test_writers_of_one_file_never_mix(tmp_path: Path) -> None:
    """A reader beside four processes that write the same file finds one of their contents, whole, every time."""
    path = tmp_path / "file"
    code = (
        "import sys; from pathlib import Path; from harness.common.files import write_atomic\n"
        "for _ in range(40): write_atomic(Path(sys.argv[1]), sys.argv[2] * 50000)"
    )
    write_atomic(path, "0" * 50000)
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "abcd"]
    read = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_text()
        assert len(content) == 50000
        assert len(set(content)) == 1
        read.add(content[0])
    assert [writer.returncode for writer in writers] == [0] * 4
    assert len(read) > 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is synced and renamed, in order."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def note_rename(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name} {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    return done


def test_content_is_on_the_disk_before_the_name_and_the_name_before_a_durable_write_returns(
    tmp_path: Path, calls: list[str]
) -> None:
    path = tmp_path / "file"
    temporary = temporary_path(path).name
    write_atomic(path, "a")
    assert calls == [f"sync {temporary}", f"rename {temporary} file"]
    calls.clear()
    write_atomic(path, "b", durable=True)
    assert calls == [f"sync {temporary}", f"rename {temporary} file", f"sync {tmp_path.name}"]


def test_a_folder_is_on_the_disk_before_its_name(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "folder"
    fill_with("a")(path)
    temporary = temporary_path(path).name
    assert calls[:3] == ["sync content", f"sync {temporary}", f"rename {temporary} folder"]
    assert calls[-1] == f"sync {tmp_path.name}"
    calls.clear()
    with atomic_folder(tmp_path / "quick", keep_existing=True, durable=False) as folder:
        (folder / "content").write_text("a")
    assert calls == [f"rename {temporary_path(tmp_path / 'quick').name} quick"]


def fill_with(text: str, *, keep_existing: bool = False) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        with atomic_folder(path, keep_existing=keep_existing) as folder:
            (folder / "content").write_text(text)

    return fill


def test_a_folder_replaces_or_keeps_the_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "below" / "folder"
    for text, keep_existing, expected in (("a", True, "a"), ("b", False, "b"), ("c", True, "b")):
        fill_with(text, keep_existing=keep_existing)(path)
        assert (path / "content").read_text() == expected
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("keep_existing", [False, True])
def test_a_folder_that_fails_leaves_what_was_there(tmp_path: Path, keep_existing: bool) -> None:
    path = tmp_path / "folder"

    def fail() -> None:
        with atomic_folder(path, keep_existing=keep_existing) as folder:
            (folder / "half").touch()
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert list(tmp_path.iterdir()) == []
    fill_with("old")(path)
    with pytest.raises(OSError, match="No space"):
        fail()
    assert [one.name for one in path.iterdir()] == ["content"]
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_that_make_the_same_folder_the_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it gets its name between the look and the rename."""
    path = tmp_path / "folder"
    fill_with("first")(path)
    with atomic_folder(path, keep_existing=True) as folder:
        (folder / "content").write_text("second")
        monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.undo()
    assert (path / "content").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


FILL = "with atomic_folder(target) as folder:\n    (folder / 'content').write_text('new')"


def test_a_kill_before_the_rename_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "target"
    fill_with("old")(path)
    dies(tmp_path, FILL)
    assert (path / "content").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    fill_with("newer")(path)
    assert (path / "content").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path], "what the killed process left is removed"


def test_a_kill_between_the_two_renames_leaves_no_part_of_either(tmp_path: Path) -> None:
    path = tmp_path / "target"
    fill_with("old")(path)
    dies(tmp_path, FILL, renames=1)
    assert not path.exists()
    fill_with("newer")(path)
    assert (path / "content").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


def test_what_others_are_filling_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder of a process that lives, and that of any process of another machine."""
    path = tmp_path / "folder"
    name = temporary_path(path).name
    host = os.uname().nodename
    alive = tmp_path / name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    elsewhere = tmp_path / name.replace(host, f"{host}-2").replace(f"-{os.getpid()}.", "-999999999.")
    dead = tmp_path / name.replace(f"-{os.getpid()}.", "-999999999.")
    for one in (alive, elsewhere, dead):
        one.mkdir()
    fill_with("a")(path)
    assert sorted(tmp_path.iterdir()) == sorted([path, alive, elsewhere])


def test_folders_that_cannot_be_synced_are_tolerated_and_other_faults_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", refuse)
    number = 22
    write_json(tmp_path / "file", {}, durable=True)
    number = 5
    with pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "file", {}, durable=True)
    assert json.loads((tmp_path / "file").read_text()) == {}
