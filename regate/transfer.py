"""Copies of host arrays to an accelerator that is not waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def on_device(value: Tensor, device: torch.device | str) -> Tensor:
    """`value` on `device`, without waiting for work that is queued there.

    A copy from pageable memory waits for the whole stream, `non_blocking` or not; one from pinned memory does not.
    """
    target = device if isinstance(device, str) else device.type
    if value.device.type == "cpu" and target.startswith("cuda"):
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
