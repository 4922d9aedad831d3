"""Things of different sizes dealt into bins that get equally many: samples into micro-batches, those to processes.

A step lasts as long as its slowest process. Others take Karmarkar and Karp's differencing for this (verl's sequence
balancing). With as many things in every bin, one of every block of neighbours by size goes to each, the largest to
the bin that has least so far; what is left is evened out by exchanges with the largest bin.

Legend: M things, K bins, P places of a bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXCHANGES: Final = 64
"""At most; each takes a fraction of a millisecond."""


def deal(sizes_M: NDArray[np.integer] | NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """int64 KP: the things of each bin. The largest bin is never larger than if they were dealt in turn, and they are
    dealt in turn where nothing is won: thing i to bin i modulo `bins`.

    The result depends on the sizes and their order alone.

    Args:
        sizes_M: as many as a multiple of `bins`.
    """
    assert len(sizes_M) % bins == 0, (len(sizes_M), bins)
    in_turn_KP = np.arange(len(sizes_M), dtype=np.int64).reshape(-1, bins).T
    if bins == 1 or len(sizes_M) == bins:
        return in_turn_KP
    sums_K = np.zeros(bins)
    dealt_PK = []
    for block_K in np.argsort(-sizes_M, kind="stable").reshape(-1, bins):
        place_K = np.empty(bins, np.int64)
        place_K[np.argsort(sums_K, kind="stable")] = block_K
        sums_K += sizes_M[place_K]
        dealt_PK.append(place_K)
    dealt_KP = _exchanged(np.stack(dealt_PK, axis=1), np.asarray(sizes_M, np.float64))
    better = sizes_M[dealt_KP].sum(axis=1).max() < sizes_M[in_turn_KP].sum(axis=1).max()
    return dealt_KP if better else in_turn_KP


def _exchanged(dealt_KP: NDArray[np.int64], sizes_M: NDArray[np.float64]) -> NDArray[np.int64]:
    """With things of the largest bin exchanged for smaller ones of another, as long as the larger of the two bins
    becomes smaller: the best exchange each time."""
    for _ in range(_EXCHANGES):
        sizes_KP = sizes_M[dealt_KP]
        sums_K = sizes_KP.sum(axis=1)
        largest = int(sums_K.argmax())
        less_PKP = sizes_KP[largest][:, None, None] - sizes_KP[None]
        after_PKP = np.maximum(sums_K[largest] - less_PKP, sums_K[:, None] + less_PKP)
        after_PKP[:, largest] = np.inf
        given, other, taken = np.unravel_index(int(after_PKP.argmin()), after_PKP.shape)
        if not after_PKP[given, other, taken] < sums_K[largest]:
            break
        dealt_KP[largest, given], dealt_KP[other, taken] = dealt_KP[other, taken], dealt_KP[largest, given]
    return dealt_KP


def imbalance(sums_K: NDArray[np.integer] | NDArray[np.floating]) -> float:
    """The largest part over the mean of all: how much longer a step lasts than if all were equal; 1 of nothing."""
    return float(sums_K.max() / sums_K.mean()) if sums_K.sum() > 0 else 1.0
