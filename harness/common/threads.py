"""How torch's threads on the CPU wait for each other, and how many there are: settled before torch is loaded.

OpenMP's threads spin at every barrier. Where another process has one of the cores, each barrier then lasts until the
system takes the core from the spinning thread: a training of small steps takes several times as long. Threads that
sleep instead lose microseconds. Neither changes a number; how many threads there are changes the order of sums, so
that is left to the recipe (`devices.threads`) and to torch, except where the system grants fewer cores than it shows.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping

WAIT: Final = "OMP_WAIT_POLICY"
COUNT: Final = "OMP_NUM_THREADS"
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of computing in each period, and the period; `max` where there is no limit (cgroups 2)."""


def settle(environment: MutableMapping[str, str] | None = None, quota: Path = _QUOTA) -> None:
    """Have threads sleep at barriers, and no more of them than cores are granted. What is set already stays.

    Args:
        environment: of the process that will load torch; None for this one.
    """
    settled = os.environ if environment is None else environment
    settled.setdefault(WAIT, "PASSIVE")
    granted = granted_cores(quota)
    if granted is not None and granted < usable_cores():
        settled.setdefault(COUNT, str(granted))


def settings() -> dict[str, str | None]:
    """What this process computes under, for the record."""
    return {name: os.environ.get(name) for name in (WAIT, COUNT)}


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def granted_cores(quota: Path) -> int | None:
    """Whole cores' worth of computing that a container is granted, at least one; None where there is no limit."""
    try:
        limit, period = quota.read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(1, math.floor(int(limit) / int(period)))
