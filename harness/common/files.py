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
import stat
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.common.hashing import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

SEAL: Final = "seal"
"""Key of an object's own digest."""
_SEAL_BYTES: Final = 100
"""What a seal takes at the end of a file."""


def write_atomic(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file in one step; its folder is made where it is missing.

    Args:
        content: text is written as UTF-8.
        durable: return only when a machine that goes down cannot bring the old content back (the folder is synced
            too: some milliseconds). For what later writes build on, or what is dear to make again.
    """
    with atomic_file(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any, *, durable: bool = False, sealed: bool = False) -> None:
    """Write a plain value as JSON for people to read, in one step; see `write_atomic`.

    Args:
        sealed: an object gets its own digest as "seal", by which `read_json` sees that a byte has changed.

    Raises:
        TypeError, ValueError: the value is not plain JSON, or holds NaN or an infinity.
    """
    text = json.dumps(seal(value) if sealed else value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n", durable=durable)


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object with its own digest as its last entry, in place of one that it has."""
    plain = json.loads(json.dumps({key: item for key, item in value.items() if key != SEAL}))  # as it will be read
    return {**plain, SEAL: digest(plain)}


def read_json(
    path: Path,
    what: str,
    *,
    schema: int | None = None,
    shape: Mapping[str, Any] | None = None,
    hint: str | None = None,
) -> dict[str, Any]:
    """A JSON object from a file, without its seal where it has one.

    Args:
        what: the file in words, for the message.
        schema: the version that its "schema" must give; None does not look.
        shape: what must be in it, see `problems_of`.
        hint: what to do where it cannot be read.

    Raises:
        DataError: not there, no file, not a JSON object, not what was sealed, of another version or of another shape.
    """
    check_kind(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as {what}: {error}", hint=hint) from error
    changed = isinstance(value, dict) and _seal_broken(value)
    problems = problems_of(value, shape or {}, "")
    if changed:
        problems = ["it is not as it was written (checksum)"]
    elif isinstance(value, dict) and schema is not None and value.get("schema") != schema:
        problems = [f"schema {value.get('schema')!r}, this version reads {schema}"]
    if problems:
        raise DataError(f"{path}: cannot be read as {what}: {'; '.join(problems)}", hint=hint)
    content: dict[str, Any] = value
    return content


def _seal_broken(value: dict[str, Any]) -> bool:
    """Whether an object is not what was sealed; its seal is taken out. One without a seal, of an earlier version, is
    taken as it is, unless its last entry is the digest of the others: that is a seal whose name was damaged."""
    last = next(reversed(value), SEAL)
    if SEAL in value:
        stored = value.pop(SEAL)
        return bool(last != SEAL or stored != digest(value))
    return value[last] == digest({key: item for key, item in value.items() if key != last}) if value else False


def odd_kind(path: Path) -> str | None:
    """What a path is that is neither a file nor a folder: reading it might wait for ever, or never end. None for a
    file, a folder, and where nothing is."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    named = next((name for test, name in kinds if test(mode)), "a device")
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else named


def check_kind(path: Path) -> None:
    """Raises DataError where a path is neither a file nor a folder, see `odd_kind`."""
    odd = odd_kind(path)
    if odd is not None:
        raise DataError(f"{path}: {odd}, not a file", hint="take it away, and give the command again")


def check_kinds_below(folder: Path) -> None:
    """`check_kind` of everything in a folder and its folders, so that whatever is read or written there later does
    not wait for ever. What goes away meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        for name in names:
            check_kind(folder / parent / name)


def is_file(path: Path | str) -> bool:
    """Whether a file is there. A name that no file can have (too long, with a null) is none, and no error."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib's raises for such names


def is_folder(path: Path | str) -> bool:
    """As `is_file`, of a folder."""
    return os.path.isdir(path)  # noqa: PTH112 - as above


def folder_bytes(folder: Path) -> int:
    """What the files below a folder hold together; 0 where it is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def unusable_folder(path: Path) -> str | None:
    """Why nothing can be written below a folder, which need not be there yet; None where it can.

    A folder that is there and refuses is only seen by the rights of its entry: a full or broken disk is not.
    """
    place = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
    if not is_folder(place):
        return f"{place} is {odd_kind(place) or ('a file' if is_file(place) else 'a link to nothing')}, not a folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


def has_file(path: Path) -> bool:
    """Whether a file of ours is there.

    Raises:
        DataError: a pipe, a socket or a device stands in its place, which is not the same as nothing.
    """
    check_kind(path)
    return is_file(path)


def is_sealed(path: Path) -> bool:
    """Whether a file of ours says by a digest what was written; those of earlier versions do not."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _SEAL_BYTES))
        return f'"{SEAL}":'.encode() in file.read()


def problems_of(value: Any, shape: Mapping[str, Any], prefix: str) -> list[str]:
    """What of a shape a value lacks, in words.

    Args:
        shape: of each key that must be there, its type, a union of types, or a nested shape.
        prefix: of the keys, for the message.
    """
    if not isinstance(value, dict):
        return [f"{prefix.rstrip('.') or 'it'} is not an object"]
    problems: list[str] = []
    for key, kind in shape.items():
        if key not in value:
            problems.append(f"{prefix}{key} is missing")
        elif isinstance(kind, dict):
            problems += problems_of(value[key], kind, f"{prefix}{key}.")
        elif not isinstance(value[key], kind):
            name = getattr(kind, "__name__", str(kind))
            problems.append(f"{prefix}{key} is {type(value[key]).__name__}, not {name}")
    return problems


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A binary file to write to, which becomes `path` when the block ends without an error; see `write_atomic`."""
    with atomic_path(path, durable=durable) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def atomic_path(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A name beside `path` to make a file under, which becomes `path` when the block ends without an error; see
    `write_atomic`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        sync(temporary)
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
