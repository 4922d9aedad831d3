"""Imports of large libraries."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def uncollected() -> Iterator[None]:
    """Import within it: Python does not look for garbage meanwhile.

    What is imported stays, half a million objects of torch, transformers and lmms-eval. To look through them again
    and again while there are more and more takes a sixth of the CPU time of the import.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
