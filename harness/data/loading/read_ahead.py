"""How far loading processes work ahead of the training: so many bytes, however large a micro-batch is.

torch bounds the number of micro-batches that wait in shared memory, and those of long clips are a hundred times those
of a picture. Here a loading process makes its next one only when that fits beside those of its own that the training
has not taken, or when there are none: the one that the training waits for is always made.
"""

from __future__ import annotations

import mmap
import os
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import numpy as np

from harness.data.loading.workers import tensors_in

MOST_BYTES: Final = 10**9
"""Of all loading processes of one training process together."""
_SHARED: Final = Path("/dev/shm")
_LOOK_S: Final = 0.005


def bytes_ahead(processes: int) -> int:
    """What the loading processes of one training process may hold ready: half of the machine's shared memory is left
    to others.

    Args:
        processes: training processes that share it.
    """
    half = shutil.disk_usage(_SHARED).total // 2 if _SHARED.is_dir() else processes * MOST_BYTES
    return min(MOST_BYTES, half // processes)


class ReadAhead:
    """What the training process and its loading processes, which are forked from it, know of each other.

    Args:
        workers: loading processes; micro-batch i is made by process i modulo their number, as torch deals them.
        limit: bytes of all of them.
    """

    def __init__(self, workers: int, limit: int) -> None:
        self._each = limit // workers
        self._workers = workers
        # Anonymous pages that a fork shares: neither files nor semaphores, which may be short.
        self._taken_W = np.frombuffer(mmap.mmap(-1, 8 * workers), np.int64)
        self._owner = os.getpid()
        self._waiting: deque[int] = deque()
        self._made = 0

    def take(self, number: int) -> None:
        """In the training process: micro-batch `number`, counted from 0, was taken."""
        self._taken_W[number % self._workers] += 1

    def close(self) -> None:
        """In the training process: nothing more is taken, and nobody has to wait."""
        self._taken_W[:] = np.iinfo(np.int64).max

    def wait(self, worker: int) -> None:
        """In a loading process: until the next micro-batch may be made, or the training process is gone."""
        while not self.fits(worker) and os.getppid() == self._owner:
            time.sleep(_LOOK_S)

    def fits(self, worker: int) -> bool:
        """Whether one as large as the last fits beside those that were not taken; true where all were."""
        while self._waiting and self._made - len(self._waiting) < self._taken_W[worker]:
            self._waiting.popleft()
        return not self._waiting or sum(self._waiting) + self._waiting[-1] <= self._each

    def add(self, made: Any) -> None:
        """In a loading process: this one is ready."""
        self._made += 1
        self._waiting.append(sum(tensor.nbytes for tensor in tensors_in(made)))
