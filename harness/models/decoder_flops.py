"""Floating-point operations of a training step, from shapes and counts alone (a multiply-add counts two).

The bound that a measured step is held against: what the decoder, the head and the fixed vision part must do for
the positions that a decision keeps, with causal attention computed only below the diagonal. Norms, embeddings and
element-wise work are left out (below 1 % at the sizes of the paper).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.models.adapter import DecoderShape


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Forward FLOPs of one micro-batch by part."""

    linear: float
    attention: float
    head: float
    adapters: float
    vision: float


def forward_flops(
    shape: DecoderShape, active_B: Sequence[float], scored: float, *, last_layer: float | None = None
) -> ForwardFlops:
    """Forward pass.

    Args:
        active_B: active positions of each row.
        scored: rows of the LM head.
        last_layer: positions for which the last layer computes queries, output and MLP; None for all.
    """
    attention_weights = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    mlp_weights = 3 * shape.hidden * shape.intermediate
    tokens = sum(active_B)
    pairs = sum(length * (length + 1) / 2 for length in active_B)
    unread = 0 if last_layer is None else tokens - last_layer
    read_weights = 2 * shape.hidden * shape.head_dim * shape.heads + mlp_weights
    return ForwardFlops(
        linear=2.0 * (shape.layers * (attention_weights + mlp_weights) * tokens - read_weights * unread),
        attention=4.0 * shape.layers * shape.heads * shape.head_dim * pairs,
        head=2.0 * shape.hidden * shape.vocabulary * scored,
        adapters=2.0 * shape.adapter_parameters * tokens,
        vision=shape.vision_flops * len(active_B),
    )


def step_flops(
    shape: DecoderShape,
    active_B: Sequence[float],
    scored: float,
    *,
    recomputed: int = 0,
    last_layer: float | None = None,
) -> float:
    """Forward and backward of one micro-batch.

    Backward costs one product for the input gradient and, where the weight is trained, one for the weight;
    attention costs 2.5 forwards (the scores are recomputed, as flash kernels do). Checkpointing adds one forward
    of `recomputed` layers; never of the last where that computes what is read alone (`last_layer`).
    """
    forward = forward_flops(shape, active_B, scored, last_layer=last_layer)
    linear_backward = 1.0 + shape.trainable_linear
    total = (
        (1.0 + linear_backward) * (forward.linear + forward.head)
        + 3.5 * forward.attention
        + 3.0 * forward.adapters
        + (1.0 + shape.vision_backward) * forward.vision
    )
    if last_layer is not None:
        recomputed = min(recomputed, shape.layers - 1)
    return total + recomputed_flops(shape, active_B, recomputed)


def recomputed_flops(shape: DecoderShape, active_B: Sequence[float], layers: int) -> float:
    """A second forward pass of so many layers over all active positions."""
    forward = forward_flops(shape, active_B, 0)
    return layers / shape.layers * (forward.linear + forward.attention + forward.adapters)
