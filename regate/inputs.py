"""The decoder stack's inputs on the active positions.

What the stack may be given: embeddings, rotary position ids of two or three dimensions, an attention mask of two or
four dimensions or one for each kind of layer, and the masks of visual positions that some families add. Anything
else that runs along the sequence is refused by name, so that nothing is left at its old place in silence.

Legend: B rows, S expanded length, K active length, T active positions of all rows, D hidden size.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.attention import NAME, PackedRows
from regate.errors import LayoutError, UnsupportedModelError
from regate.transfer import on_device

if TYPE_CHECKING:
    from regate.compaction import Compaction, Packing

_ALONG_ROWS = ("visual_pos_masks", "token_type_ids", "mm_token_type_ids")
"""Arguments [B, S] that are gathered as they are."""
_PASSED = ("deepstack_visual_embeds",)
"""Arguments in the order of the visual tokens, which all stay."""
_TOKEN_MIXERS = ("full_attention", "sliding_attention", "attention", None)
"""Kinds of layers in which a position meets others through its keys and nothing else."""


def embeddings(decoder: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """What enters the stack, BSD: given, or looked up from the token ids."""
    embeds_BSD = inputs.get("inputs_embeds")
    if embeds_BSD is None:
        lookup: Any = decoder.get_input_embeddings()  # type: ignore[operator]
        embeds_BSD = lookup(inputs["input_ids"])
    assert isinstance(embeds_BSD, Tensor)
    return embeds_BSD


def check_supported(decoder: nn.Module) -> None:
    """Refuse stacks in which leaving positions out is not Algorithm 1.

    Raises:
        UnsupportedModelError: names what is in the way.
    """
    name, config = type(decoder).__name__, getattr(decoder, "config", None)
    mixers = {*(getattr(config, "layer_types", None) or ())} - {*_TOKEN_MIXERS}
    if mixers:
        raise UnsupportedModelError(
            f"{name} has layers of kind {', '.join(sorted(mixers))}, whose state runs over every position: "
            "leaving positions out there is not Algorithm 1; use execution: loss_only"
        )
    if not any("rotary" in path for path, _ in decoder.named_modules()):
        raise UnsupportedModelError(
            f"{name} has no rotary position embedding: its positions follow the place in the row, which elision "
            "changes; use execution: loss_only"
        )


def check_packable(decoder: nn.Module) -> None:
    """Refuse stacks whose attention could not be told where a packed row's samples end.

    Raises:
        UnsupportedModelError: names what is in the way.
    """
    name = type(decoder).__name__
    accepts = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(decoder.forward).parameters.values())
    if not getattr(decoder, "_supports_attention_backend", False) or not accepts:
        why = "does not compute its attention through transformers' attention interface"
    elif not getattr(decoder.config, "is_causal", True):
        why = "is not causal"
    elif not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        why = "has no `layers`"
    else:
        return
    raise UnsupportedModelError(f'{name} {why}: keep padded rows (attach(model, rows="padded"))')


def check_rotary_axes(decoder: nn.Module, position_ids: Tensor | None) -> None:
    """Refuse an M-RoPE stack that got positions of one axis for a batch with pictures.

    Qwen2.5-VL falls back to them in silence when the processor's mm_token_type_ids are not passed on.
    """
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    if "mrope_section" in rope and (position_ids is None or position_ids.dim() != 3):
        raise LayoutError(
            f"{type(decoder).__name__} rotates by three axes but got positions of one: pass the processor's "
            "mm_token_type_ids (and the grids of the media) to the model"
        )


def compact_inputs(
    decoder: nn.Module, inputs: dict[str, Any], embeds_BSD: Tensor, compaction: Compaction, *, full: bool
) -> dict[str, Any]:
    """Keyword arguments for the stack on the active positions.

    Args:
        inputs: the stack's own arguments, by name.
        compaction: on the device of the embeddings.
        full: whether no compact row is padded.
    """
    out = _gathered(decoder, inputs, embeds_BSD, compaction)
    for name in _ALONG_ROWS:
        if isinstance(mask := out.get(name), Tensor) and mask.dtype == torch.bool:
            out[name] = mask & compaction.valid_BK
    out["position_ids"] = _positions(inputs.get("position_ids"), compaction, compaction.index_BK)
    out["attention_mask"] = compact_mask(decoder, inputs.get("attention_mask"), embeds_BSD, compaction)
    if full and compaction.shape[0] == 1 and kernel_of(decoder).startswith("flash"):
        # One row without padding: flash attention would take gaps in the positions for packed sequences and look for
        # their borders in every layer, waiting for the accelerator each time.
        rows = compaction.index_BK.shape[1]
        bounds = torch.tensor([0, rows], dtype=torch.int32, device=embeds_BSD.device)
        out |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": rows, "max_length_k": rows}
    return out


def packed_inputs(
    decoder: nn.Module, inputs: dict[str, Any], embeds_BSD: Tensor, packing: Packing, kernel: str
) -> dict[str, Any]:
    """Keyword arguments for the stack on the active positions of all rows as one row.

    The bounds of the rows travel to every layer's kernel. No mask is made: `CLOSED`, which stands in for one, keeps
    transformers from taking gaps in the positions for borders of packed sequences (and from waiting for the device
    to look for them); `without_mask` takes it away before it comes to a layer.

    Args:
        inputs: the stack's own arguments, by name.
        packing: on the device of the embeddings.
        kernel: from `regate.attention.choose_kernel`.

    Raises:
        UnsupportedModelError: the model made a mask of its own: its attention is more than causal.
    """
    mask = inputs.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} got an attention mask of its own making, which packed rows would lose; keep "
            'padded rows (attach(model, rows="padded"))'
        )
    out = _gathered(decoder, inputs, embeds_BSD, packing)
    out["position_ids"] = _positions(inputs.get("position_ids"), packing, packing.column_1T)
    return {**out, **kernel_inputs(decoder, packing, kernel)}


def kernel_inputs(decoder: nn.Module, packing: Packing, kernel: str) -> dict[str, Any]:
    """What tells a kernel the bounds of packed rows, and their mask.

    Args:
        packing: on the device of the embeddings.
        kernel: from `regate.attention.choose_kernel`.
    """
    out: dict[str, Any] = {"cu_seq_lens_q": packing.cu_seqlens, "cu_seq_lens_k": packing.cu_seqlens}
    out |= {"max_length_q": packing.longest, "max_length_k": packing.longest}
    window = window_of(decoder)
    window = window if window is not None and window < packing.shape[1] else None
    if kernel == "flex_attention":
        out["attention_mask"] = _block_masks(decoder, packing, window)
        return out
    out["attention_mask"] = torch.empty(CLOSED, dtype=torch.bool, device=packing.flat_T.device)
    if kernel_of(decoder) != NAME:  # loaded with a kernel that knows the bounds
        return out
    near_LL = None if window is None else tuple(_near(place_L, window) for place_L in _places(packing))
    out["packed_rows"] = PackedRows(kernel, packing.lengths, near_LL)
    return out


CLOSED = (1, 1, 0, 0)
"""Shape of the array that stands in for the mask of packed rows. transformers passes an array of four dimensions on
as it is; a kernel that would read this one fails, and does not compute something else."""


def without_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward-pre-hook of each layer: what stands in for the mask of packed rows becomes None."""
    if not any(_stands_in(value) for value in (*args, *kwargs.values())):
        return None
    return (
        tuple(None if _stands_in(value) else value for value in args),
        {name: None if _stands_in(value) else value for name, value in kwargs.items()},
    )


def _stands_in(value: Any) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == CLOSED


def _gathered(
    decoder: nn.Module, inputs: dict[str, Any], embeds_BSD: Tensor, arrangement: Compaction | Packing
) -> dict[str, Any]:
    """The arguments that need no more than gathering: all but positions and mask."""
    _refuse_generation(decoder, inputs)
    out: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in _ALONG_ROWS and value is not None:
            out[name] = arrangement.gather(value)
        elif name in _PASSED or not _runs_along(value, arrangement.shape[1]):
            out[name] = value
        elif name not in ("input_ids", "inputs_embeds", "position_ids", "attention_mask", "cache_position"):
            raise UnsupportedModelError(
                f"{type(decoder).__name__} got {name} of shape {tuple(value.shape)}, which runs along the "
                "sequence and which regate does not know how to gather; use execution: loss_only"
            )
    out.pop("input_ids", None)
    out.pop("cache_position", None)
    out["inputs_embeds"] = arrangement.gather(embeds_BSD)
    out["past_key_values"], out["use_cache"] = None, False
    return out


def _places(packing: Packing) -> tuple[Tensor, ...]:
    """Original places of each row's positions, in its row."""
    return torch.split(packing.column_1T[0], list(packing.lengths))


def _near(place_L: Tensor, window: int) -> Tensor:
    """bool [L, L], keys that a query of a sliding layer sees: before it, and near by original place."""
    return (place_L[:, None] - place_L[None, :] < window).tril()


def _block_masks(decoder: nn.Module, packing: Packing, window: int | None) -> Any:
    """flex attention's masks: within a row, causal, and for sliding layers near by original place."""
    from torch.nn.attention.flex_attention import create_block_mask

    device, total = packing.flat_T.device, packing.flat_T.shape[0]
    rows = torch.arange(len(packing.lengths))
    row_T = on_device(rows.repeat_interleave(torch.tensor(packing.lengths), output_size=total), device)
    place_T = packing.column_1T[0]

    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (row_T[query] == row_T[key]) & (key <= query)

    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert window is not None
        return causal(batch, head, query, key) & (place_T[query] - place_T[key] < window)

    def made(mask: Any) -> Any:
        return create_block_mask(mask, None, None, total, total, device=device)

    if window is None:
        return made(causal)
    return _by_kind(decoder, {"full_attention": made(causal), "sliding_attention": made(near)})


def compact_mask(decoder: nn.Module, mask: Any, embeds_BSD: Tensor, compaction: Compaction) -> Any:
    """An explicit mask among the active positions, never None.

    Without one, transformers 5 reads gaps in the positions as borders of packed sequences and cuts the attention at
    each of them.
    """
    if isinstance(mask, dict):
        return {kind: compact_mask(decoder, of_kind, embeds_BSD, compaction) for kind, of_kind in mask.items()}
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return _gather_4d(mask, compaction)
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} got an attention mask of type {type(mask).__name__}; elision knows masks "
            "of two and four dimensions"
        )
    open_BK = torch.ones_like(compaction.valid_BK) if mask is None else compaction.gather(mask).bool()
    window = window_of(decoder)
    if window is not None and window < compaction.shape[1]:
        return _windowed(decoder, open_BK & compaction.valid_BK, window, embeds_BSD.dtype, compaction)
    if kernel_of(decoder).startswith("flash"):
        return (open_BK & compaction.valid_BK).long()  # it unpads the rows
    # Padding stands last, where no active position looks: left open, the mask is all ones, and kernels that have a
    # causal path of their own take it in place of a dense mask.
    return (open_BK | ~compaction.valid_BK).long()


def _positions(position_ids: Tensor | None, arrangement: Compaction | Packing, places: Tensor) -> Tensor:
    """The original positions: [B, K] or [1, T], with three or four before it for M-RoPE."""
    if position_ids is None:
        return places
    return arrangement.gather(position_ids, dim=position_ids.dim() - 1)


def _gather_4d(mask: Tensor, compaction: Compaction) -> Tensor:
    """[B, 1 or heads, S, S] among the active positions; keys that are padding are closed."""
    rows, width = compaction.index_BK.shape
    mask = mask.expand(rows, *mask.shape[1:])
    query = compaction.index_BK[:, None, :, None].expand(rows, mask.shape[1], width, mask.shape[3])
    key = compaction.index_BK[:, None, None, :].expand(rows, mask.shape[1], width, width)
    picked = mask.gather(2, query).gather(3, key)
    closed = ~compaction.valid_BK[:, None, None, :]
    if picked.dtype == torch.bool:
        return picked & ~closed
    return picked.masked_fill(closed, torch.finfo(picked.dtype).min)


def _windowed(decoder: nn.Module, valid_BK: Tensor, window: int, dtype: torch.dtype, compaction: Compaction) -> Any:
    """Masks whose sliding window is measured on original positions, as Algorithm 1's is.

    transformers measures it on the index in whatever it is given, so a compact row would see further back.
    """
    kernel = kernel_of(decoder)
    if kernel not in ("sdpa", "eager"):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} has a sliding window of {window} and rows of {compaction.shape[1]}: "
            f"{kernel} measures "
            'the window on the compact rows, not on positions; load the model with attn_implementation="sdpa"'
        )
    place_BK = compaction.index_BK
    width = place_BK.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=place_BK.device).tril()
    near = place_BK[:, :, None] - place_BK[:, None, :] < window
    full = causal & valid_BK[:, None, :]
    kinds = {"full_attention": full, "sliding_attention": full & near}
    return _by_kind(
        decoder, {kind: _as_kernel_reads(mask[:, None], kernel, dtype) for kind, mask in kinds.items()}
    )


def _by_kind(decoder: nn.Module, masks: dict[str, Any]) -> Any:
    """Masks by kind of layer, or the only one for stacks that take no dict."""
    present = {*(getattr(decoder.config, "layer_types", None) or ("sliding_attention",))}
    if len(present) == 1 and not _takes_dict(decoder):
        return masks[present.pop()]
    return masks


def _as_kernel_reads(mask: Tensor, kernel: str, dtype: torch.dtype) -> Tensor:
    if kernel == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _takes_dict(decoder: nn.Module) -> bool:
    """Whether the stack picks a mask for each layer from a dict: those that name their layers' kinds do."""
    return getattr(decoder.config, "layer_types", None) is not None


def window_of(decoder: nn.Module) -> int | None:
    """The sliding window of some layer, None without."""
    config: Any = decoder.config
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return int(window)


def kernel_of(decoder: nn.Module) -> str:
    return str(getattr(decoder.config, "_attn_implementation", "eager"))


def _runs_along(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and length in value.shape[:3]


def _refuse_generation(decoder: nn.Module, inputs: dict[str, Any]) -> None:
    cache = inputs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise UnsupportedModelError(
            f"{type(decoder).__name__} got a filled cache: elision is for training steps only"
        )
    for name in ("output_hidden_states", "output_attentions"):
        if inputs.get(name) or getattr(decoder.config, name, False):
            raise UnsupportedModelError(
                f"{name} inside `with elide(...)`: inner layers hold the active positions only"
            )
