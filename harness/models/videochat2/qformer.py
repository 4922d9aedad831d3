"""VideoChat2's QFormer: transformers' InstructBLIP one, with the stochastic depth that the official code adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import InstructBlipVideoQFormerModel
from transformers.models.instructblipvideo.modeling_instructblipvideo import (
    InstructBlipVideoQFormerOutput,
    InstructBlipVideoQFormerSelfOutput,
)

from harness.models.drop_path import DropPath, drop_path_rates

if TYPE_CHECKING:
    from transformers import InstructBlipVideoQFormerConfig

BRANCHES = (InstructBlipVideoQFormerSelfOutput, InstructBlipVideoQFormerOutput)
"""What ends a residual branch: of attention, cross-attention, and the perceptrons of queries and of text."""


def make_qformer(config: InstructBlipVideoQFormerConfig, drop_path_rate: float) -> InstructBlipVideoQFormerModel:
    """The QFormer with stochastic depth behind the dropout of every branch. It adds no parameters."""
    qformer = InstructBlipVideoQFormerModel(config)
    layers: Any = qformer.encoder.layer
    for layer, rate in zip(layers, drop_path_rates(len(layers), drop_path_rate), strict=True):
        for branch in [module for module in layer.modules() if isinstance(module, BRANCHES)]:
            branch.dropout = nn.Sequential(branch.dropout, DropPath(rate))
    return qformer
