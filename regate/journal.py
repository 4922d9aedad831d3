"""The journal of one process and one epoch: student losses as they are observed, appended, folded later.

A file is a run of records. A record is a header of six little-endian uint32 words (magic, step, rows, flags words
reserved 0, bytes of the body, crc32 of the body) and a body: sample ids (int64 each), the number of candidates of
each sample (uint32 each), one bit for each candidate saying whether it was observed, and the float16 losses of
those that were. The step in the header is what a resumed run cuts at, so the state to save is the same on every
process, and a record cut short by a kill is found by its length or its checksum.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from regate.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedRandom
    from pathlib import Path

    from numpy.typing import NDArray

MAGIC = 0x314A4752  # "RGJ1"
_HEADER = struct.Struct("<6I")


@dataclass(frozen=True, slots=True)
class Record:
    """One `observe`: what a micro-batch's samples lost.

    Attributes:
        step: optimizer step.
        ids_b: int64, samples.
        counts_b: uint32, candidates of each sample.
        seen: bool, one for each candidate, sample by sample.
        losses: float16, one for each true entry of `seen`.
    """

    step: int
    ids_b: NDArray[Any]
    counts_b: NDArray[Any]
    seen: NDArray[Any]
    losses: NDArray[Any]


def pack(record: Record) -> bytes:
    body = b"".join(
        (
            record.ids_b.astype("<i8").tobytes(),
            record.counts_b.astype("<u4").tobytes(),
            np.packbits(record.seen).tobytes(),
            record.losses.astype("<f2").tobytes(),
        )
    )
    header = _HEADER.pack(MAGIC, record.step, record.ids_b.size, 0, len(body), zlib.crc32(body))
    return header + body


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Each whole record with the byte where it ends, up to the first that is cut short."""
    with path.open("rb") as file:
        end = 0
        while True:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            magic, step, rows, _, length, crc = _HEADER.unpack(header)
            body = file.read(length)
            if magic != MAGIC or len(body) < length or zlib.crc32(body) != crc:
                return
            end += _HEADER.size + length
            yield end, _unpack(step, rows, body)


def _unpack(step: int, rows: int, body: bytes) -> Record:
    ids_b = np.frombuffer(body, "<i8", rows)
    counts_b = np.frombuffer(body, "<u4", rows, 8 * rows)
    total = int(counts_b.sum())
    bits = np.frombuffer(body, np.uint8, (total + 7) // 8, 12 * rows)
    seen = np.unpackbits(bits, count=total).astype(bool)
    losses = np.frombuffer(body, "<f2", -1, 12 * rows + bits.size)
    return Record(step, ids_b, counts_b, seen, losses)


def cut(path: Path, step: int, expected: int | None) -> int:
    """Cut a journal to the records before `step`; its length then.

    Args:
        expected: the length that the checkpoint noted, where it did.

    Raises:
        StoreError: records before `step` are missing or damaged.
    """
    end = 0
    if path.exists():
        for stop, record in records(path):
            if record.step >= step:
                break
            end = stop
    if expected is not None and end != expected:
        raise StoreError(
            f"{path} has {end} whole bytes of the steps before {step}, the checkpoint noted {expected}: the "
            "journal is damaged; resume from an earlier checkpoint, or start the run again"
        )
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(end)
    return end


def open_end(path: Path) -> BufferedRandom:
    """The file opened for appending."""
    path.touch()
    file = path.open("r+b")
    file.seek(0, 2)
    return file
