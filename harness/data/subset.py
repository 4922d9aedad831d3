"""A part of a data set, the same on every machine and in any order of its files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from harness.common.errors import DataError

if TYPE_CHECKING:
    from harness.config.data import Subset
    from harness.data.packed import Rows


def take(rows: Rows, subset: Subset) -> tuple[Rows, str]:
    """The rows that `subset` asks for, and what they are in words, for the plan and the record.

    Rows are taken in the order of the hash of (seed, sample id) as long as they fit: a subset of pairs ends before
    the sample that would exceed it.

    Raises:
        DataError: there are fewer than that.
    """
    draw_M = np.fromiter((_draw(subset.seed, number) for number in rows.ids), np.uint64, len(rows))
    order_M = np.argsort(draw_M, kind="stable")
    size_M = rows.pairs[order_M] if subset.unit == "pairs" else np.ones(len(rows), np.int64)
    total_M = np.cumsum(size_M)
    there = int(total_M[-1]) if len(rows) else 0
    if there < subset.size:
        raise DataError(
            f"data.subset asks for {subset.size:,} {subset.unit}, and the annotations hold {there:,}",
            hint="bring more of the source sets, or write data.subset=null to take all of them",
        )
    count = int(np.searchsorted(total_M, subset.size, side="right"))
    chosen = rows.taken(np.sort(order_M[:count]).tolist())
    taken = int(total_M[count - 1]) if count else 0
    of_pairs = "" if subset.unit == "samples" else f" with {taken:,} of {there:,} pairs"
    return chosen, f"{count:,} of {len(rows):,} samples{of_pairs}, drawn by seed {subset.seed}"


def _draw(seed: int, number: int) -> int:
    raw = hashlib.blake2b(f"{seed}\x00{number}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big")
