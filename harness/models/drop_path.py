"""Stochastic depth, as the towers of InternVL and the QFormer of VideoChat2 are trained.

Legend: B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
