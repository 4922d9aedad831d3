"""Small files of the stores: written aside and renamed, opened with their size checked."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np

from regate.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_CHECKSUM = "crc32"
_PIECE = 1 << 20
"""Values that are written at a time."""


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object with its own checksum, by which `read_json` sees that a byte has changed."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    plain: dict[str, Any] = json.loads(json.dumps(value))  # as it will be read
    try:
        with aside.open("w") as file:
            json.dump({**plain, _CHECKSUM: _crc(plain)}, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: Path, what: str, schema: int = 1, keys: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The object in a JSON file, without its checksum where it has one.

    Args:
        keys: what must be in it, each with its type or a union of types.

    Raises:
        StoreError: it is missing, not JSON, of another schema, not as it was written, or lacks one of `keys`.
    """
    _check_kind(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing: {path.parent} is not a {what}, or its making was cut short") from None
    except (ValueError, RecursionError, OSError) as error:
        raise StoreError(f"{path} is damaged ({error}); make the {what} again") from None
    if not isinstance(value, dict) or value.get("schema") != schema or value.get("kind") != what:
        actual = value.get("schema") if isinstance(value, dict) else None
        raise StoreError(f"{path} does not describe a {what} of schema {schema} (schema {actual}); make it again")
    if _CHECKSUM in value and value.pop(_CHECKSUM) != _crc(value):
        raise StoreError(f"{path} is damaged (checksum differs); make the {what} again")
    for key, kind in (keys or {}).items():
        if not isinstance(value.get(key), kind):
            raise StoreError(f"{path} is damaged ({key} is {value.get(key)!r}); make the {what} again")
    return value


def _check_kind(path: Path) -> None:
    """Raises StoreError where a pipe, socket or device stands, which may be read for ever."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise StoreError(f"{path} is a pipe, socket or device, not a file; take it away")


def _crc(value: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def make_array(path: Path, size: int, dtype: str, value: float) -> None:
    """A flat .npy file of one value, written without holding it in memory.

    Every byte is written, not only mapped: a map of a file with holes ends the process (SIGBUS) where the disk fills
    while a value is stored in it, today or in a week.
    """
    piece = np.full(min(size, _PIECE), value, np.dtype(dtype))
    header = {"descr": np.lib.format.dtype_to_descr(piece.dtype), "fortran_order": False, "shape": (size,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, size, _PIECE):
            file.write(piece[: size - start].tobytes())


def open_array(path: Path, shape: tuple[int, ...], dtype: str, *, writable: bool = False) -> NDArray[Any]:
    """A memory map of an .npy file.

    Raises:
        StoreError: the file is missing, cut short, or of another shape or type.
    """
    _check_kind(path)
    try:
        array = np.load(path, mmap_mode="r+" if writable else "r")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; make the store again") from None
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, TokenError) as error:
        raise StoreError(
            f"{path} is truncated or damaged ({error}); delete {path.parent} and make it again"
        ) from None
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise StoreError(
            f"{path} holds {array.dtype} {array.shape}, its manifest says {np.dtype(dtype)} {shape}; "
            f"delete {path.parent} and make it again"
        )
    out: NDArray[Any] = array
    return out


def make_folder(path: Path, fill: Callable[[Path], None]) -> bool:
    """Make a folder in one step, or find that another process has: True if it was made here.

    `fill` writes the contents of a folder beside `path`, which is then renamed.
    """
    if (path / "manifest.json").exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        fill(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    try:
        aside.rename(path)
    except OSError:
        shutil.rmtree(aside)
        if not (path / "manifest.json").exists():
            raise StoreError(f"{path} exists and is not a store; choose another folder") from None
        return False
    return True
