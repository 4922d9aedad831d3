"""Which of several processes this is; one process where torch.distributed is not in use."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def in_use() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank(group: Any = None) -> int:
    return int(dist.get_rank(group)) if in_use() else 0


def world(group: Any = None) -> int:
    return int(dist.get_world_size(group)) if in_use() else 1


def barrier(group: Any = None) -> None:
    if in_use():
        dist.barrier(group)
