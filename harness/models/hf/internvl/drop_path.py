"""Stochastic depth of InternVL's tower, which its official training has and transformers' model lacks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.models.drop_path import DropPath, drop_path_rates


def add_drop_path(tower: Any, last: float) -> None:
    """Leave branches of the tower's layers out for some pictures (tiles, frames) while it is trained. Nothing is
    added to its parameters, and a saved checkpoint knows nothing of it.

    The official code drops a branch behind its layer scale; a product with 0 or 1 / (1 - rate) may stand before it.

    Args:
        tower: `InternVLVisionModel`.
        last: rate of the last layer; it grows evenly from 0 at the first.
    """
    layers = tower.encoder.layer
    for layer, rate in zip(layers, drop_path_rates(len(layers), last), strict=True):
        for branch in (layer.attention, layer.mlp):
            branch.register_forward_hook(DroppedBranch(rate))


class DroppedBranch:
    """A forward hook: the branch's output without that of the pictures that it is left out for."""

    def __init__(self, rate: float) -> None:
        self.path = DropPath(rate)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.path.train(module.training)
        if isinstance(output, Tensor):
            return self.path(output)
        return (self.path(output[0]), *output[1:])
