"""Copies of host arrays to an accelerator that is not waited for: `regate.transfer` for rooms that know the method's
types alone. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`, without waiting for work that is queued there: a copy from memory that is not pinned
    does."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
