"""What the decoder computes in a sparse step, where that differs by layer. No torch.

Legend: N samples.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.models.decoder_flops import ForwardFlops, LayerSpan, layered_flops
from regate.config import GateConfig, layer_index

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.models.adapter import DecoderShape

    Numbers = NDArray[np.int64] | NDArray[np.float64]


def differs_by_layer(gate: GateConfig | None) -> bool:
    if gate is None:
        return False
    by_picture = gate.visual is not None and gate.visual.from_layer is not None
    by_layer = bool(gate.from_layer) or gate.deep is not None or gate.layer_keep is not None
    return by_layer or bool(gate.keep_below) or by_picture


def visual_part(gate: GateConfig | None) -> float:
    """The part of the visual positions that a sparse step computes, in its last layers."""
    return 1.0 if gate is None or gate.visual is None else gate.visual.keep


def sparse_forward(
    gate: GateConfig,
    shape: DecoderShape,
    other_N: Numbers,
    target_N: Numbers,
    scored_N: Numbers,
    *,
    gone_N: Numbers | None = None,
    last_limited: bool = False,
    first_layers: int | None = None,
) -> ForwardFlops:
    """Forward pass of samples in a sparse step. The predictors of selected targets count as evenly spread among them.

    Args:
        other_N: positions before the targets, without those that the last layer does not compute.
        target_N, scored_N: targets, and those that are selected.
        gone_N: visual positions that the last layer does not compute; below `visual.from_layer` they are.
        first_layers: count so many of the layers, from the first on; None for all.
        last_limited: the last layer computes what is read alone, as packed rows do.
    """
    layers = shape.layers
    words_of = _words_by_layer(gate, layers, target_N, scored_N)
    deep = layers if gate.deep is None else layer_index(gate.deep, layers, "deep")
    end_of_all = layers if first_layers is None else first_layers
    whole = np.issubdtype(target_N.dtype, np.integer)
    leave = 0
    if gate.visual is not None and gate.visual.from_layer is not None:
        leave = layer_index(gate.visual.from_layer, layers, "visual.from_layer")
    bounds = sorted({min(bound, end_of_all) for bound in (*words_of, leave, deep, 1, layers - 1, layers)})
    spans = []
    for start, end in pairwise(bounds):
        words_N = words_of[max(first for first in words_of if first <= start)]
        rows_N = other_N + words_N
        if start < leave and gone_N is not None:
            rows_N = rows_N + gone_N
        if gate.layer_keep is not None and 0 < start < layers - 1:
            part_N = np.asarray(gate.layer_keep * rows_N, dtype=np.float64)
            rows_N = np.ceil(part_N) if whole else part_N
        if start >= deep:
            computed, pairs = scored_N.sum(), (scored_N * (rows_N - words_N / 2)).sum()
        else:
            alone = last_limited and start == layers - 1
            computed, pairs = (scored_N if alone else rows_N).sum(), (rows_N * (rows_N + 1) / 2).sum()
        spans.append(LayerSpan(end - start, float(rows_N.sum()), float(computed), float(pairs)))
    return layered_flops(shape, spans, float(scored_N.sum()), rows=len(other_N))


def _words_by_layer(gate: GateConfig, layers: int, target_N: Numbers, scored_N: Numbers) -> dict[int, Numbers]:
    """Answer words that are computed, by the layer from which on they are."""
    if not gate.elides:
        return {0: target_N}
    if not gate.keep_below:
        return {0: target_N, layer_index(gate.from_layer or 0, layers, "from_layer"): scored_N}
    whole = np.issubdtype(target_N.dtype, np.integer)
    words: dict[int, Numbers] = {}
    first = 0
    for level in gate.keep_below:
        kept_N = level.keep * target_N
        words[first] = np.maximum(scored_N, np.floor(kept_N).astype(np.int64) if whole else kept_N)
        first = layer_index(level.layer, layers, "keep_below")
    return {**words, first: scored_N}
