"""The decoder stack's inputs on the active positions.

What the stack may be given: embeddings, rotary position ids of two or three dimensions, an attention mask of two or
four dimensions or one for each kind of layer, and the masks of visual positions that some families add. Anything
else that runs along the sequence is refused by name, so that nothing is left at its old place in silence.

Legend: B rows, S expanded length, K active length, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.errors import LayoutError, UnsupportedModelError

if TYPE_CHECKING:
    from regate.compaction import Compaction

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
    _refuse_generation(decoder, inputs)
    length = compaction.shape[1]
    out: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in _ALONG_ROWS and value is not None:
            gathered = compaction.gather(value)
            out[name] = gathered & compaction.valid_BK if gathered.dtype == torch.bool else gathered
        elif name in _PASSED or not _runs_along(value, length):
            out[name] = value
        elif name not in ("input_ids", "inputs_embeds", "position_ids", "attention_mask", "cache_position"):
            raise UnsupportedModelError(
                f"{type(decoder).__name__} got {name} of shape {tuple(value.shape)}, which runs along the "
                "sequence and which regate does not know how to gather; use execution: loss_only"
            )
    out.pop("input_ids", None)
    out.pop("cache_position", None)
    out["inputs_embeds"] = compaction.gather(embeds_BSD)
    out["position_ids"] = _positions(inputs.get("position_ids"), compaction)
    out["attention_mask"] = compact_mask(decoder, inputs.get("attention_mask"), embeds_BSD, compaction)
    out["past_key_values"], out["use_cache"] = None, False
    if full and compaction.shape[0] == 1 and _kernel(decoder).startswith("flash"):
        # One row without padding: flash attention would take gaps in the positions for packed sequences and look for
        # their borders in every layer, waiting for the accelerator each time.
        rows = compaction.index_BK.shape[1]
        bounds = torch.tensor([0, rows], dtype=torch.int32, device=embeds_BSD.device)
        out |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": rows, "max_length_k": rows}
    return out


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
    window = _window(decoder)
    if window is not None and window < compaction.shape[1]:
        return _windowed(decoder, open_BK & compaction.valid_BK, window, embeds_BSD.dtype, compaction)
    if _kernel(decoder).startswith("flash"):
        return (open_BK & compaction.valid_BK).long()  # it unpads the rows
    # Padding stands last, where no active position looks: left open, the mask is all ones, and kernels that have a
    # causal path of their own take it in place of a dense mask.
    return (open_BK | ~compaction.valid_BK).long()


def _positions(position_ids: Tensor | None, compaction: Compaction) -> Tensor:
    """The original positions: [B, K], or [3 or 4, B, K] for M-RoPE."""
    if position_ids is None:
        return compaction.index_BK
    return compaction.gather(position_ids, dim=position_ids.dim() - 1)


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
    kernel = _kernel(decoder)
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
    masks = {kind: _as_kernel_reads(mask[:, None], kernel, dtype) for kind, mask in kinds.items()}
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


def _window(decoder: nn.Module) -> int | None:
    """The sliding window of some layer, None without."""
    config: Any = decoder.config
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return int(window)


def _kernel(decoder: nn.Module) -> str:
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
