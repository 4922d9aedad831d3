"""CPU seconds of a training on a CPU, and how long it waited for one: wall time there depends on what else runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_TASKS = Path("/proc/self/task")


class CpuMeter:
    """CPU time of this process between `start` and `fields`, over all its threads. On a GPU, and where several
    processes train together, nothing is measured: wall time is the measure there."""

    def __init__(self, device: torch.device, processes: int) -> None:
        self._measures = device.type == "cpu" and processes == 1
        self._cpu = 0.0
        self._waited: dict[str, int] | None = None

    def start(self) -> None:
        if self._measures:
            self._cpu, self._waited = time.process_time(), _waited()

    def fields(self) -> dict[str, Any]:
        """What a step's ledger line holds of it: `cpu`, with `seconds` that threads computed, and `waited`, seconds
        that threads could have computed and had no core (None where the kernel does not say)."""
        if not self._measures:
            return {}
        seconds, after = time.process_time() - self._cpu, _waited()
        waited = None
        if self._waited is not None and after is not None:
            # Threads that ended since are left out; a thread that is new began at nothing.
            waited = sum(value - self._waited.get(task, 0) for task, value in after.items()) / 1e9
        return {"cpu": {"seconds": round(seconds, 6), "waited": None if waited is None else round(waited, 6)}}


def _waited() -> dict[str, int] | None:
    """Thread -> nanoseconds that it was runnable without running, as Linux counts them."""
    try:
        return {task.name: int((task / "schedstat").read_bytes().split()[1]) for task in _TASKS.iterdir()}
    except (OSError, ValueError, IndexError):
        return None


__all__ = ["CpuMeter"]
