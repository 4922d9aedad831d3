"""The options of an item show the model the same clip: its vision tower reads it once.

Legend: B rows of the batch, C different clips among them, ... whatever follows the first dimension.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


@contextmanager
def one_tower_pass(model: nn.Module, clip_B: Sequence[int]) -> Iterator[None]:
    """Within this block, modules called `vision_tower` or `vision` compute one row for each different clip.

    The output is repeated for the rows that share it, so nothing else sees a difference. A tower whose input is not
    laid out row by row, equal for the rows of a clip, is left alone: that is looked at, not assumed.

    Args:
        clip_B: for each row of the batch, which clip it shows, counted from 0 in order of appearance.
    """
    if len(set(clip_B)) == len(clip_B):
        yield
        return
    first_C = torch.tensor([list(clip_B).index(clip) for clip in range(max(clip_B) + 1)])
    shared = _Shared(torch.tensor(clip_B), first_C)
    hooks = []
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("vision_tower", "vision"):
            hooks.append(module.register_forward_pre_hook(shared.before, with_kwargs=True))
            hooks.append(module.register_forward_hook(shared.after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Shared:
    """The two hooks of a tower; `_active` tells the second what the first one did."""

    def __init__(self, clip_B: Tensor, first_C: Tensor) -> None:
        self.clip_B, self.first_C = clip_B, first_C
        self._active = False

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._active = bool(inputs) and all(self._shares(value) for value in inputs)
        if not self._active:
            return None
        picked = [_map(value, self._pick) for value in args], {k: _map(v, self._pick) for k, v in kwargs.items()}
        return tuple(picked[0]), picked[1]

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return _map(output, self._repeat) if self._active else output

    def _shares(self, value: Tensor) -> bool:
        if value.dim() == 0 or value.shape[0] == 0 or value.shape[0] % len(self.clip_B):
            return False
        return torch.equal(self._repeat(self._pick(value)), value)

    def _pick(self, value: Tensor) -> Tensor:
        return _by_row(value, len(self.clip_B))[self.first_C.to(value.device)].flatten(0, 1)

    def _repeat(self, value: Tensor) -> Tensor:
        return _by_row(value, len(self.first_C))[self.clip_B.to(value.device)].flatten(0, 1)


def _by_row(value: Tensor, rows: int) -> Tensor:
    """The first dimension split into rows and what belongs to each."""
    return value.reshape(rows, -1, *value.shape[1:])


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` on a tensor, or on the tensors of a tuple or a transformers output."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)(**{name: _map(part, change) for name, part in value.items()})
    if isinstance(value, tuple | list):
        return type(value)(_map(part, change) for part in value)
    return value
