"""A data set's samples as one file that is mapped into memory: opened in milliseconds, shared by all processes.

Layout, little-endian: "RGPACK01", the header's length and CRC-32 (uint32 each), the header (JSON, UTF-8); then, each
at a multiple of 64 bytes, ids (int64), ends of the rows (uint64), CRC-32 of each row and its id (uint32), further
arrays (modality, uint8; lengths, int64), and the rows' bytes. A row's CRC is compared when the row is read, so no
byte that changed is trained on.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.common.files import atomic_file, check_kind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

Bytes = bytes | bytearray | memoryview
_MAGIC: Final = b"RGPACK01"
_HEAD: Final = struct.Struct("<8sII")
_ALIGNED: Final = 64
_TYPES: Final = {"ids": "<i8", "ends": "<u8", "sums": "<u4", "modality": "|u1", "lengths": "<i8", "rows": "|u1"}
_OF_ROWS: Final = ("ids", "ends", "sums", "rows")
"""What the checksum of each row covers; other arrays have one of their own, compared when the file is opened."""


def row_sum(number: int, row: Bytes) -> int:
    """CRC-32 of a row's id and bytes."""
    return zlib.crc32(row, zlib.crc32(number.to_bytes(8, "little")))


def write(path: Path, arrays: dict[str, NDArray[Any]], rows: Iterable[Bytes], description: dict[str, Any]) -> None:
    """Write ids_M, ends_M, sums_M, further arrays and the rows' bytes, in one step.

    Args:
        rows: in their order, each alone or many together; their ends are in `arrays`.
        description: a plain value that goes with them.
    """
    parts = {name: arrays[name].astype(_TYPES[name]) for name in arrays}
    size = int(arrays["ends"][-1])
    sizes = {**{name: [len(part), part.nbytes] for name, part in parts.items()}, "rows": [size, size]}
    sums = {name: zlib.crc32(part.tobytes()) for name, part in parts.items() if name not in _OF_ROWS}
    header = json.dumps({"sizes": sizes, "sums": sums, "description": description}).encode()
    with atomic_file(path) as file:
        file.write(_HEAD.pack(_MAGIC, len(header), zlib.crc32(header)) + header)
        for part in parts.values():
            file.write(bytes(-file.tell() % _ALIGNED))
            file.write(part.data)
        file.write(bytes(-file.tell() % _ALIGNED))
        written = sum(file.write(row) for row in rows)
        assert written == size, (written, size)


def description_of(path: Path) -> dict[str, Any] | None:
    """What was written with the arrays; None where there is no whole file of this kind."""
    check_kind(path)
    try:
        with path.open("rb") as file:
            header = _header(file.read(_HEAD.size), file.read)
            size = path.stat().st_size
    except OSError:
        return None
    if header is None or _places(header)[1] != size:
        return None
    description: dict[str, Any] = header["description"]
    return description


def mapped(path: Path) -> tuple[dict[str, NDArray[Any]], mmap.mmap, int] | None:
    """The arrays, the file's bytes and the place in them where the rows begin; None where the file is not whole."""
    check_kind(path)
    try:
        with path.open("rb") as file:
            header = _header(file.read(_HEAD.size), file.read)
            if header is None:
                return None
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        return None
    places, size = _places(header)
    if size != len(whole):
        return None
    arrays = {
        name: np.frombuffer(whole, _TYPES[name], header["sizes"][name][0], places[name])
        for name in places
        if name != "rows"
    }
    if any(zlib.crc32(arrays[name].tobytes()) != checksum for name, checksum in header["sums"].items()):
        return None
    whole.madvise(mmap.MADV_RANDOM)  # reading ahead would fill each process with rows that it does not ask for
    return arrays, whole, places["rows"]


def _header(start: bytes, read: Any) -> dict[str, Any] | None:
    if len(start) != _HEAD.size:
        return None
    magic, length, checksum = _HEAD.unpack(start)
    raw = read(length) if magic == _MAGIC else b""
    if magic != _MAGIC or len(raw) != length or zlib.crc32(raw) != checksum:
        return None
    header: dict[str, Any] = {**json.loads(raw), "length": length}
    return header


def _places(header: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Where each array begins, and the size of the whole file."""
    places, end = {}, _HEAD.size + header["length"]
    for name in header["sizes"]:
        places[name] = end + -end % _ALIGNED
        end = places[name] + header["sizes"][name][1]
    return places, end
