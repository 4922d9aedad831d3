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


@dataclass(frozen=True, slots=True)
class LayerSpan:
    """Neighbouring layers that compute alike, over all rows of a micro-batch.

    Attributes:
        layers: how many they are.
        keys: positions that offer keys and values.
        computed: positions with queries, output and MLP.
        pairs: of a query and a key that the attention meets.
    """

    layers: float
    keys: float
    computed: float
    pairs: float


def layered_flops(shape: DecoderShape, spans: Sequence[LayerSpan], scored: float, *, rows: float) -> ForwardFlops:
    """Forward pass of a decoder whose layers differ; adapters count in the proportion of the weights beside them."""
    key_weights = 2 * shape.hidden * shape.head_dim * shape.kv_heads
    read_weights = 2 * shape.hidden * shape.head_dim * shape.heads + 3 * shape.hidden * shape.intermediate
    linear = sum(span.layers * (key_weights * span.keys + read_weights * span.computed) for span in spans)
    adapters = shape.adapter_parameters / (shape.layers * (key_weights + read_weights))
    return ForwardFlops(
        linear=2.0 * linear,
        attention=4.0 * shape.heads * shape.head_dim * sum(span.layers * span.pairs for span in spans),
        head=2.0 * shape.hidden * shape.vocabulary * scored,
        adapters=2.0 * adapters * linear,
        vision=shape.vision_flops * rows,
    )


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
    spans: Sequence[LayerSpan] | None = None,
) -> float:
    """Forward and backward of one micro-batch.

    Backward costs one product for the input gradient and, where the weight is trained, one for the weight;
    attention costs 2.5 forwards (the scores are recomputed, as flash kernels do). Checkpointing adds one forward
    of `recomputed` layers; never of the last where that computes what is read alone (`last_layer`). `spans` stand for
    `active_B` where the layers differ; a layer that is recomputed then counts as the mean of those that are.
    """
    if spans is None:
        forward = forward_flops(shape, active_B, scored, last_layer=last_layer)
    else:
        forward = layered_flops(shape, spans, scored, rows=len(active_B))
    linear_backward = 1.0 + shape.trainable_linear
    total = (
        (1.0 + linear_backward) * (forward.linear + forward.head)
        + 3.5 * forward.attention
        + 3.0 * forward.adapters
        + (1.0 + shape.vision_backward) * forward.vision
    )
    if last_layer is not None:
        recomputed = min(recomputed, shape.layers - 1)
    if spans is None:
        return total + recomputed_flops(shape, active_B, recomputed)
    lower = spans if last_layer is None else spans[:-1]  # the last layer is a span of its own
    again = layered_flops(shape, lower, 0, rows=0)
    layers = sum(span.layers for span in lower)
    return total + recomputed / layers * (again.linear + again.attention + again.adapters)


def pass_flops(
    shape: DecoderShape,
    active_B: Sequence[float],
    scored: float,
    *,
    last_layer: float | None = None,
    spans: Sequence[LayerSpan] | None = None,
) -> float:
    """A forward pass of one micro-batch that nothing is learnt through; arguments as `step_flops`."""
    if spans is None:
        forward = forward_flops(shape, active_B, scored, last_layer=last_layer)
    else:
        forward = layered_flops(shape, spans, scored, rows=len(active_B))
    return forward.linear + forward.attention + forward.head + forward.adapters + forward.vision


def recomputed_flops(shape: DecoderShape, active_B: Sequence[float], layers: int) -> float:
    """A second forward pass of so many layers over all active positions."""
    forward = forward_flops(shape, active_B, 0)
    return layers / shape.layers * (forward.linear + forward.attention + forward.adapters)
