"""Attention over packed rows: the kernels, and the name under which transformers finds them.

A packed batch is one row in which each sample's positions follow those of the sample before; attention stays within
a sample and is causal there. transformers carries `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and `max_length_k`
from the decoder's call to every layer's kernel. A model loaded with flash attention or flex attention computes packed
rows by its own kernel. One loaded with sdpa cannot: it is given the function registered here, which is transformers'
own sdpa for every call that is not packed.

Legend: T packed positions, L positions of one row, H query heads, h key heads, g query heads of a key head,
D head size.
"""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regate.errors import ConfigError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

NAME = "regate_packed_sdpa"
"""What `attn_implementation` of a decoder loaded with sdpa is while its rows are packed."""

_INSTALL = {
    "flash_attention_3": "the package flash_attn_interface (flash-attention 3) and a Hopper GPU",
    "flash_attention_2": "the package flash-attn (the extra `flash`) and a CUDA GPU",
    "varlen": "torch 2.10 or newer (torch.nn.attention.varlen) and a CUDA GPU",
}
_MODULE = {
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_2": "flash_attn",
    "varlen": "torch.nn.attention.varlen",
}


@dataclass(eq=False, slots=True)
class PackedRows:
    """What the registered function knows of a packed batch. It travels with the call into every layer, so that a
    layer that is recomputed in the backward pass meets the same rows.

    Attributes:
        kernel: name in `KERNELS`.
        lengths: positions of each row, in order.
        near_LL: for each row bool [L, L], where a query of a sliding layer sees a key; None if no window binds.
        read_n: int64, ascending, the packed positions whose queries are read; the others' results are 0 or what the
            kernel makes of them. None for all.
        read_counts: how many of them stand in each row.
        watch: told the last position's attention to all positions of each row, float32 or better T, mean over the
            heads, without gradient; None where nobody asks.
        calls: how often a layer came here.
    """

    kernel: str
    lengths: tuple[int, ...]
    near_LL: tuple[Tensor, ...] | None = None
    read_n: Tensor | None = None
    read_counts: tuple[int, ...] = ()
    watch: Callable[[Tensor], None] | None = None
    calls: int = 0


def choose_kernel(
    loaded: str, device: torch.device, dtype: torch.dtype, *, windowed: bool = False, dropout: float = 0.0
) -> str:
    """The kernel for packed rows.

    Args:
        loaded: `attn_implementation` that the model was loaded with.
        device, dtype: of the attention's inputs.
        windowed: a sliding window is shorter than some row: only masks on original positions are exact.
        dropout: of the attention weights.

    Returns:
        "flash_attention_3", "flash_attention_2", "varlen" (torch's own), "flex_attention" or "sdpa" (row by row); or
        the name that the model was loaded with, where that is another flash attention.

    Raises:
        UnsupportedModelError: the loaded kernel does not know packed rows.
    """
    if loaded.startswith("flash_attention"):
        if windowed:
            raise UnsupportedModelError(
                f"{loaded} measures a sliding window on packed rows, not on positions, and some row is longer than "
                'the window; load the model with attn_implementation="sdpa"'
            )
        return loaded
    if loaded == "flex_attention":
        return loaded
    if loaded not in ("sdpa", NAME):
        raise UnsupportedModelError(
            f'attention "{loaded}" does not compute packed rows: load the model with attn_implementation="sdpa", '
            '"flex_attention" or "flash_attention_2", or keep padded rows (attach(model, rows="padded"))'
        )
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and not windowed and not dropout:
        for kernel in _INSTALL:
            if missing(kernel) is None:
                return kernel
    return "sdpa"


def missing(kernel: str) -> str | None:
    """What a kernel needs that is not here, None if it can run."""
    if kernel not in _MODULE:
        return None
    try:
        installed = importlib.util.find_spec(_MODULE[kernel]) is not None
    except ModuleNotFoundError:
        installed = False
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    able = installed and major >= (9 if kernel == "flash_attention_3" else 8)
    return None if able else _INSTALL[kernel]


def check_kernel(kernel: str) -> None:
    """Refuse a kernel for packed rows that cannot run here.

    Raises:
        ConfigError: says what it needs.
    """
    if kernel not in KERNELS:
        raise ConfigError(f"no kernel for packed rows is called {kernel!r}: there are {', '.join(KERNELS)}")
    need = missing(kernel)
    if need is not None:
        raise ConfigError(f'kernel "{kernel}" needs {need}; kernel "sdpa" runs everywhere')


def register() -> str:
    """Make the function known to transformers under `NAME`, with sdpa's own masks."""
    from transformers import AttentionInterface, AttentionMaskInterface

    attention, masks = AttentionInterface(), AttentionMaskInterface()
    if NAME not in attention:
        AttentionInterface.register(NAME, partial(packed_attention, attention["sdpa"]))
        AttentionMaskInterface.register(NAME, masks["sdpa"])
    return NAME


def packed_attention(
    unpacked: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> Any:
    """Causal attention within each row of a packed batch, in the signature of transformers' attention functions.

    Args:
        unpacked: what computes a call without `packed_rows`.
        query: [1, H, T, D].
        key, value: [1, h, T, D].
        attention_mask: not read.
        packed_rows: of this batch.
        kwargs: as transformers passes them; `cu_seq_lens_q` and `max_length_q` among them.

    Returns:
        [1, T, H, D], and None in place of weights.
    """
    if packed_rows is None:
        return unpacked(module, query, key, value, attention_mask, **kwargs)
    for name in ("softcap", "position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(f"{type(module).__name__}: packed rows do not know attention with {name}")
    if not (kwargs.get("is_causal") is not False and getattr(module, "is_causal", True)):
        raise UnsupportedModelError(f"{type(module).__name__} is not causal: its rows cannot be packed")
    packed_rows.calls += 1
    if packed_rows.watch is not None:
        packed_rows.watch(_last_attention(query, key, packed_rows, kwargs))
    return KERNELS[packed_rows.kernel](query, key, value, packed_rows, kwargs), None


@torch.no_grad()
def _last_attention(query: Tensor, key: Tensor, rows: PackedRows, kwargs: Mapping[str, Any]) -> Tensor:
    """How much the last position of each row attends to each of its positions: T, the mean over the heads."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out = []
    for stop, length in zip(accumulate(rows.lengths), rows.lengths, strict=True):
        key_hLD = key[0, :, stop - length : stop].to(dtype)
        query_hgD = query[0, :, stop - 1].to(dtype).view(key.shape[1], -1, query.shape[-1])
        out.append((scale * query_hgD @ key_hLD.mT).softmax(dim=-1).mean(dim=(0, 1)))
    return torch.cat(out)


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, kwargs: Mapping[str, Any]) -> Tensor:
    """torch's scaled_dot_product_attention for one row after the other: no positions of two rows ever meet."""
    if rows.read_n is not None:
        return _read_queries(query, key, value, rows, rows.read_n, kwargs)
    masks: tuple[Tensor | None, ...] = (None,) * len(rows.lengths)
    if kwargs.get("sliding_window") is not None and rows.near_LL is not None:
        masks = rows.near_LL
    lengths = list(rows.lengths)
    queries, keys, values = (torch.split(part, lengths, dim=2) for part in (query, key, value))
    out = [
        scaled_dot_product_attention(
            row_query,
            row_key,
            row_value,
            attn_mask=mask,
            dropout_p=kwargs.get("dropout") or 0.0,
            is_causal=mask is None,
            scale=kwargs.get("scaling"),
            enable_gqa=query.shape[1] != key.shape[1],
        ).transpose(1, 2)
        for row_query, row_key, row_value, mask in zip(queries, keys, values, masks, strict=True)
    ]
    return torch.cat(out, dim=1)


def _read_queries(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, read_n: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """`_row_by_row` for some of the queries; 0 for the others. Legend: q read queries of one row."""
    windowed = kwargs.get("sliding_window") is not None and rows.near_LL is not None
    starts = [0, *accumulate(rows.lengths)]
    places = torch.split(read_n, list(rows.read_counts))
    out = []
    for index, (places_q, start, stop) in enumerate(zip(places, starts[:-1], starts[1:], strict=True)):
        if not places_q.numel():
            continue
        inside_q = places_q - start
        if windowed:
            assert rows.near_LL is not None
            mask_qL = rows.near_LL[index][inside_q]
        else:
            mask_qL = torch.arange(stop - start, device=query.device)[None, :] <= inside_q[:, None]
        out.append(
            scaled_dot_product_attention(
                query.index_select(2, places_q),
                key[:, :, start:stop],
                value[:, :, start:stop],
                attn_mask=mask_qL,
                dropout_p=kwargs.get("dropout") or 0.0,
                scale=kwargs.get("scaling"),
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        )
    whole = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3], dtype=value.dtype)
    return whole.index_copy(1, read_n, torch.cat(out, dim=1)) if out else whole


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, kwargs: Mapping[str, Any]) -> Tensor:
    """torch.nn.attention.varlen: one kernel for all rows."""
    from torch.nn.attention import varlen

    function: Any = varlen.varlen_attn
    bounds, longest = kwargs["cu_seq_lens_q"], kwargs["max_length_q"]
    out: Tensor = function(
        *_as_kernels_read(query, key, value),
        bounds,
        bounds,
        longest,
        longest,
        scale=kwargs.get("scaling"),
        **_causal_keywords(function, grouped=query.shape[1] != key.shape[1]),
    )
    return out[None]


@cache
def _causal_keywords(function: Any, *, grouped: bool) -> dict[str, Any]:
    """How this version of torch is told that attention is causal and that heads share keys."""
    parameters = inspect.signature(function).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    if grouped:
        if "enable_gqa" not in parameters:
            raise UnsupportedModelError(
                "torch.nn.attention.varlen of this torch does not know grouped key heads; use torch 2.12 or newer, "
                'flash-attn, or kernel="sdpa"'
            )
        causal["enable_gqa"] = True
    return causal


def _flash_2(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, kwargs: Mapping[str, Any]) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return _flash(flash_attn_varlen_func, query, key, value, kwargs, dropout_p=kwargs.get("dropout") or 0.0)


def _flash_3(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, kwargs: Mapping[str, Any]) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    return _flash(flash_attn_varlen_func, query, key, value, kwargs)


def _flash(
    function: Any, query: Tensor, key: Tensor, value: Tensor, kwargs: Mapping[str, Any], **more: Any
) -> Tensor:
    bounds, longest = kwargs["cu_seq_lens_q"], kwargs["max_length_q"]
    out = function(
        *_as_kernels_read(query, key, value),
        cu_seqlens_q=bounds,
        cu_seqlens_k=bounds,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=kwargs.get("scaling"),
        causal=True,
        **more,
    )
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first[None]


def _as_kernels_read(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T, heads, D] each, in half precision: under autocast, rotary embeddings leave queries and keys in float32."""
    dtype = value.dtype
    if torch.is_autocast_enabled(value.device.type):
        dtype = torch.get_autocast_dtype(value.device.type)
    query, key, value = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    return query, key, value


KERNELS: Mapping[str, Callable[[Tensor, Tensor, Tensor, PackedRows, Mapping[str, Any]], Tensor]] = {
    "sdpa": _row_by_row,
    "varlen": _torch_varlen,
    "flash_attention_2": _flash_2,
    "flash_attention_3": _flash_3,
}
