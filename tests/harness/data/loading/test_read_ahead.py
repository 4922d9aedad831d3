"""Loading processes work ahead by bytes: by no more than their share, and by no less than what is waited for."""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.data.loading import read_ahead
from harness.data.loading.read_ahead import ReadAhead, bytes_ahead

if TYPE_CHECKING:
    import pytest


def made(kilobytes: int) -> dict[str, list[torch.Tensor]]:
    return {"pixels": [torch.zeros(kilobytes << 10, dtype=torch.uint8)]}


def test_the_next_is_made_where_one_as_large_fits_or_none_is_ready() -> None:
    ahead = ReadAhead(2, 200 << 10)  # 100 KiB each
    assert ahead.fits(1)
    ahead.add(made(40))
    assert ahead.fits(1)
    ahead.add(made(50))
    assert not ahead.fits(1)  # 90 are ready, another 50 would be too much
    ahead.take(0)  # the other process's
    assert not ahead.fits(1)
    ahead.take(1)
    assert ahead.fits(1)
    ahead.add(made(900))
    assert not ahead.fits(1)
    ahead.take(3)
    ahead.take(5)
    assert ahead.fits(1)  # nothing is ready: however large, it is waited for
    ahead.add(made(900))
    ahead.close()
    assert ahead.fits(1)


def test_a_loading_process_is_forked_with_what_was_taken() -> None:
    """It waits until the training process has taken what it made, and goes on then."""
    ahead = ReadAhead(1, 1)
    order = np.frombuffer(mmap.mmap(-1, 16), np.int64)
    child = os.fork()
    if child == 0:
        ahead.add(made(1))
        order[0] = 1  # it is ready
        ahead.wait(0)
        os._exit(0 if order[1] == 1 else 1)
    while not order[0]:
        pass
    order[1] = 1
    ahead.take(0)
    assert os.waitpid(child, 0)[1] == 0


def test_half_of_the_shared_memory_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead.shutil, "disk_usage", lambda _: SimpleNamespace(total=64 << 20))
    assert bytes_ahead(4) == 8 << 20
    monkeypatch.setattr(read_ahead, "_SHARED", read_ahead.Path("/absent"))
    assert bytes_ahead(4) == read_ahead.MOST_BYTES
