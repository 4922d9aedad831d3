"""A layer on the positions whose output is read, and on no others.

After the last layer a position's state meets no other position any more, so only those that predict a scored target
need its queries, its attention output and its MLP; all active positions need its keys and values. Exact, with elision
and without. In a layer further down the same limit is not exact: `regate.depth`.

Legend: T packed positions, n read ones, D hidden size.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


class LayerLimit:
    """Hooks on the token-wise modules of a decoder layer: `mlp`, and in its attention `q_proj` and `o_proj`. While
    `read_n` is set they compute those positions alone; the residual carries every other one on unchanged.

    Attributes:
        read_n: int64, the packed positions to compute, on the decoder's device; None for all.

    Raises:
        UnsupportedModelError: the layer has no `mlp`, or one that routes tokens to experts.
    """

    def __init__(self, layer: nn.Module, *, instead: str) -> None:
        mlp, attention = getattr(layer, "mlp", None), getattr(layer, "self_attn", None)
        if not isinstance(mlp, nn.Module) or hasattr(mlp, "experts"):
            raise UnsupportedModelError(
                f"{type(layer).__name__} has no plain `mlp`: it cannot be limited to the positions that are read; "
                f"{instead}"
            )
        self.read_n: Tensor | None = None
        self._total = 0
        projections = (getattr(attention, name, None) for name in ("q_proj", "o_proj"))
        modules = [mlp, *(module for module in projections if isinstance(module, nn.Module))]
        self._handles = [module.register_forward_pre_hook(self._pick) for module in modules]
        self._handles += [module.register_forward_hook(self._put) for module in modules]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _pick(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.read_n is None:
            return None
        self._total = args[0].shape[1]
        return (args[0].index_select(1, self.read_n), *args[1:])

    def _put(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.read_n is None:
            return None
        whole_1TD = torch.zeros(1, self._total, output.shape[2], dtype=output.dtype, device=output.device)
        return whole_1TD.index_copy(1, self.read_n, output)


class LastLayer:
    """The limit on a decoder's last layer.

    Args:
        decoder: a stack with `layers`.

    Raises:
        UnsupportedModelError: as `LayerLimit`.
    """

    def __init__(self, decoder: nn.Module) -> None:
        layers: Any = decoder.layers
        self._layer: Any = layers[-1]
        self._limit = LayerLimit(self._layer, instead='use attach(..., outputs="active")')

    @contextmanager
    def only(self, read_n: Tensor) -> Iterator[None]:
        """Limit the layer while open.

        Args:
            read_n: int64, the packed positions that are read, on the decoder's device.
        """
        # Recomputing the last layer would save no memory: its backward pass is the first to run.
        recomputed = getattr(self._layer, "gradient_checkpointing", False)
        self._limit.read_n = read_n
        try:
            if recomputed:
                self._layer.gradient_checkpointing = False
            yield
        finally:
            self._limit.read_n = None
            if recomputed:
                self._layer.gradient_checkpointing = True

    def remove(self) -> None:
        self._limit.remove()
