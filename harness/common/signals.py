"""Orderly stops: a scheduler's SIGTERM or the user's Ctrl-C end a run at the next safe point, or with cleaning up."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PASSED_ON: Final = signal.SIGUSR1
"""What a request to stop is passed on as, to the processes that a command has started. SIGTERM would say less:
torch's agent sends it, too, when one of them has failed."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a stop was requested. A second Ctrl-C stops at once."""
    requested = False

    def request(number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT, PASSED_ON)}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """A scheduler's SIGTERM is handled like Ctrl-C, with cleaning up, instead of ending the process at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
