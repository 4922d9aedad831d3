"""Counts where a step would wait for an accelerator, on the CPU.

Arrays that would be on the device are marked, and so is whatever an operation makes of them. An operation that reads
a marked array's values on the host (a scalar, a list, a shape that depends on values) would wait for all queued work.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
"""Operations of aten whose result needs values on the host."""
MODULES = tuple(
    f"regate.{name}" for name in ("attention", "compaction", "elision", "gate", "head", "inputs", "last_layer")
)


class HostWaits(TorchDispatchMode):
    """`names`: one entry for each wait so far."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._marked = WeakTensorKeyDictionary()

    def mark(self, *values: Tensor) -> None:
        for value in values:
            self._marked[value] = True

    def unmark(self, value: Tensor) -> Tensor:
        """A copy that is on the host."""
        self._marked.pop(value, None)
        return value

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._marked

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_device = any(self.holds(leaf) for leaf in tree_leaves((args, kwargs)))
        name = function._schema.name.removeprefix("aten::")
        if on_device and (name in READS or (name.startswith("index") and _by_mask(args))):
            self.names.append(name)
        if on_device and name == "index" and any(not self.holds(index) for index in _indices(args)):
            self.names.append("host index")
        out = function(*args, **kwargs)
        if on_device:
            self.mark(*(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)))
        return out


def _by_mask(args: Any) -> bool:
    """Whether an index is a mask: its true entries have to be counted first."""
    return any(index.dtype in (torch.bool, torch.uint8) for index in _indices(args))


def _indices(args: Any) -> list[Tensor]:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return [index for index in indices if isinstance(index, Tensor)]


@contextmanager
def counting(patch: pytest.MonkeyPatch) -> Iterator[HostWaits]:
    """Counts while open. What `regate` copies to the device is marked; copies back are waits."""
    waits = HostWaits()

    def to_device(value: Tensor, device: Any) -> Tensor:
        copy = value.clone()
        waits.mark(copy)
        return copy

    for name in MODULES:
        module = importlib.import_module(name)
        if hasattr(module, "on_device"):
            patch.setattr(module, "on_device", to_device)
    for name in ("tolist", "cpu", "numpy"):
        patch.setattr(Tensor, name, _counted(waits, name, getattr(Tensor, name)))
    with waits:
        yield waits


def _counted(waits: HostWaits, name: str, method: Any) -> Any:
    def counted(value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if waits.holds(value):
            waits.names.append(name)
        return method(value, *args, **kwargs)

    return counted
