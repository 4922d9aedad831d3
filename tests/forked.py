"""Processes that run a function of a test, beside each other.

They are forked from a server that has imported everything and started no thread: what a spawned process imports again
takes longer than most of what is tested.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from tests.waiting import HUNG_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerContext

IMPORTED = (
    "accelerate",
    "harness.models.videollama2.adapter",
    "harness.training.loop",
    "tests.regate.tiny",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip",
)


def context() -> ForkServerContext:
    """The server of this session starts with the first process."""
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(list(IMPORTED))
    return chosen


def run(target: Callable[..., None], world: int, *arguments: Any) -> list[int | None]:
    """Run `target(rank, world, *arguments)` in `world` processes.

    When one fails, the others are ended: they would wait for it.

    Returns:
        Their exit codes, by rank; negative where a signal ended one.
    """
    started = [context().Process(target=target, args=(rank, world, *arguments)) for rank in range(world)]
    for child in started:
        child.start()
    gives_up = time.monotonic() + HUNG_S
    while any(child.is_alive() for child in started):
        wait([child.sentinel for child in started if child.is_alive()], timeout=HUNG_S)
        if any(child.exitcode not in (None, 0) for child in started) or time.monotonic() > gives_up:
            break
    for child in started:
        child.kill()
        child.join()
    return [child.exitcode for child in started]
