"""Files and folders that are whole or not there: filled under a temporary name beside the target, then renamed.

What every function here guarantees:

- A reader finds the old content or the new one, never a part of it; so does whoever comes after a kill.
- Content is on the disk before it gets its name (fsync), so a machine that goes down leaves no empty or torn file
  under the name either (`atomic_folder(durable=False)` alone does without).
- The temporary name holds the host's name and the process id, so processes that write the same target, also on
  several machines that share a disk, never write into each other's file; the last rename wins.
- A write that fails removes its temporary file and leaves the target as it was. One that is killed leaves the
  temporary file, which nothing reads; `atomic_folder` removes those of dead processes.

`regate.files` does the same for the stores of the library, which stands without this package; importing it here
would bring in torch, and its errors are those of stores.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from harness.common.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write_atomic(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file in one step; its folder is made where it is missing.

    Args:
        content: text is written as UTF-8.
        durable: return only when a machine that goes down cannot bring the old content back (the folder is synced
            too: some milliseconds). For what later writes build on, or what is dear to make again.
    """
    with atomic_file(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a plain value as JSON for people to read, in one step; see `write_atomic`.

    Raises:
        TypeError, ValueError: the value is not plain JSON, or holds NaN or an infinity.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n", durable=durable)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        what: the file in words, for the message.

    Raises:
        DataError: not there, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {what}: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: cannot be read as {what}: not a JSON object")
    return value


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A binary file to write to, which becomes `path` when the block ends without an error; see `write_atomic`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path, *, keep_existing: bool = False, durable: bool = True) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    Temporary folders that dead processes of this machine left for the same target are removed.

    Args:
        keep_existing: where another process has made `path` in the meantime, keep that one and drop this; for
            content that is the same whoever makes it. False replaces it: for a moment neither is there, but never a
            part of either.
        durable: force all that is in the folder to the disk before it gets its name, and the name after. Without
            it a machine that goes down may leave torn files: only for content that is held to its hashes when read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        if durable:
            sync_tree(temporary)
        if not keep_existing:
            replace_folder(temporary, path)
        elif not path.exists():
            _rename_unless_there(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(filled: Path, path: Path) -> None:
    """Give a folder beside `path` that name. What it holds is to be on the disk: see `sync_tree`.

    An older folder of that name is renamed before it is removed, so a kill leaves no part of it under its name; the
    new name is on the disk before the old content goes.
    """
    old = temporary_path(path.with_name(f"{path.name}.old"))
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    filled.replace(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _rename_unless_there(filled: Path, path: Path) -> None:
    try:
        filled.replace(path)
    except OSError as error:  # another process was faster by a moment
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def temporary_path(path: Path) -> Path:
    """Where this process writes what will be `path`: a hidden name beside it."""
    return path.with_name(f"{_prefix(path)}{os.getpid()}.tmp")


def sync_tree(folder: Path) -> None:
    """Force all files and folders below `folder`, and itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            sync(path)


def sync(path: Path) -> None:
    """Force a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder; its names are as safe there as they get.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _prefix(path: Path) -> str:
    return f".{path.name}.{os.uname().nodename}-"


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary folders for `path` of this machine's processes that are gone, and of this one."""
    for name in (path.name, f"{path.name}.old"):
        prefix = _prefix(path.with_name(name))
        for leftover in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
            owner = leftover.name[len(prefix) : -len(".tmp")]
            if owner.isdecimal() and (int(owner) == os.getpid() or not is_alive(int(owner))):
                shutil.rmtree(leftover)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
