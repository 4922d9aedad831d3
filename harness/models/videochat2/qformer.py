"""VideoChat2's QFormer: transformers' InstructBLIP one, with the stochastic depth that the official code adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import InstructBlipVideoQFormerModel
from transformers.models.instructblipvideo.modeling_instructblipvideo import (
    InstructBlipVideoQFormerOutput,
    InstructBlipVideoQFormerSelfOutput,
)

if TYPE_CHECKING:
    from transformers import InstructBlipVideoQFormerConfig

BRANCHES = (InstructBlipVideoQFormerSelfOutput, InstructBlipVideoQFormerOutput)
"""What ends a residual branch: of attention, cross-attention, and the perceptrons of queries and of text."""


class DropPath(nn.Module):
    """Leaves a whole residual branch out of a row, with probability `rate`, while training; the others are scaled up
    so that the mean stays (stochastic depth, Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_B: Tensor) -> Tensor:
        """A branch's output, rows first."""
        if not self.training or self.rate == 0.0:
            return branch_B
        shape = (branch_B.shape[0], *[1] * (branch_B.dim() - 1))
        kept = torch.empty(shape, dtype=branch_B.dtype, device=branch_B.device).bernoulli_(1.0 - self.rate)
        return branch_B * kept / (1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


def drop_path_rates(layers: int, last: float) -> list[float]:
    """The rate of each layer: evenly from 0 to `last`."""
    return [float(rate) for rate in torch.linspace(0.0, last, layers, device="cpu")]


def make_qformer(config: InstructBlipVideoQFormerConfig, drop_path_rate: float) -> InstructBlipVideoQFormerModel:
    """The QFormer with stochastic depth behind the dropout of every branch. It adds no parameters."""
    qformer = InstructBlipVideoQFormerModel(config)
    layers: Any = qformer.encoder.layer
    for layer, rate in zip(layers, drop_path_rates(len(layers), drop_path_rate), strict=True):
        for branch in [module for module in layer.modules() if isinstance(module, BRANCHES)]:
            branch.dropout = nn.Sequential(branch.dropout, DropPath(rate))
    return qformer
