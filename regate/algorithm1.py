"""Algorithm 1 (section 3.4) as printed: layer by layer, sample by sample.

In layer l, for each sample b: the active rows are taken out of the hidden states; attention and MLP run on them
alone, so an elided position is neither query nor key; the results go back, and the residual carries every other row
on unchanged. The mask may differ from layer to layer.

This is the oracle of the tests and the `layerwise` execution; `regate.elision` is the fast path.

Legend: L layers, B rows, S expanded length, k active positions of one sample in one layer, D hidden size.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.errors import LayoutError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


def layer_forward(layer: nn.Module, active_BS: Tensor, hidden_BSD: Tensor, **inputs: Any) -> Tensor:
    """One layer of Algorithm 1.

    Args:
        layer: a decoder layer of transformers, unchanged.
        active_BS: bool, on any device.
        hidden_BSD: what the layer below gave.
        inputs: what the decoder stack passes to its layers for the whole sequence: rotary embeddings and mask.

    Returns:
        hidden_BSD, rows of elided positions untouched.

    Raises:
        UnsupportedModelError: an attention kernel whose mask is not a dense [B, 1, S, S] array.
    """
    out_BSD = hidden_BSD
    for b in range(hidden_BSD.shape[0]):  # for each sample
        rows_k = active_BS[b].nonzero().squeeze(1).to(hidden_BSD.device)  # I_b
        if rows_k.numel() == 0:
            continue
        own = {name: _of_sample(name, value, b, rows_k) for name, value in inputs.items()}
        # H[b, I] + Attention(H[b, I]), then + MLP: a pre-norm layer's own two residual branches.
        result = type(layer).forward(layer, hidden_BSD[b, rows_k].unsqueeze(0), **own)
        new_kD = (result[0] if isinstance(result, tuple) else result).squeeze(0)
        out_BSD = out_BSD.index_put((torch.tensor(b, device=rows_k.device), rows_k), new_kD)
    return out_BSD


@contextmanager
def layerwise(decoder: nn.Module, active_LBS: Tensor) -> Iterator[None]:
    """Run a decoder stack by Algorithm 1 while open: embeddings, rotary embeddings and final norm stay its own.

    Args:
        decoder: a decoder stack with `layers`.
        active_LBS: bool, one mask for each layer.
    """
    layers: Any = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has no `layers`: Algorithm 1 needs to reach each layer"
        )
    if len(layers) != active_LBS.shape[0]:
        raise LayoutError(f"{active_LBS.shape[0]} masks for {len(layers)} layers")
    try:
        for layer, active_BS in zip(layers, active_LBS, strict=True):
            layer.forward = partial(layer_forward, layer, active_BS)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _of_sample(name: str, value: Any, b: int, rows_k: Tensor) -> Any:
    """The part of a layer's input that belongs to the active rows of one sample."""
    if name == "attention_mask":
        return _mask_of_sample(value, b, rows_k)
    if name == "position_embeddings":  # cos and sin, [B or 1, S, d], or [3, B, S, d] (M-RoPE)
        return tuple(_pick(part, b, -3).index_select(-2, rows_k) for part in value)
    if name == "position_ids":  # only flash attention reads it, which is refused below
        return None
    if name in ("past_key_values", "use_cache", "cache_position"):
        return None
    return value


def _mask_of_sample(mask: Any, b: int, rows_k: Tensor) -> Tensor | None:
    """Queries and keys among the active rows; None (plain causal) stays None."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise UnsupportedModelError(
            "execution: layerwise reads a dense attention mask; load the model with "
            'attn_implementation="sdpa" or "eager"'
        )
    return _pick(mask, b, 0).index_select(-2, rows_k).index_select(-1, rows_k)


def _pick(value: Tensor, b: int, dim: int) -> Tensor:
    return value.narrow(dim, b if value.shape[dim] > 1 else 0, 1)
