"""Finding the transformers model, its decoder stack and its head below the usual wrappers."""

from __future__ import annotations

from typing import Any

from torch import nn

from regate.errors import UnsupportedModelError


def unwrap(model: Any) -> nn.Module:
    """The transformers model below ScoredLM, data-parallel wrappers, torch.compile and peft.

    Raises:
        UnsupportedModelError: a peft method that changes the sequence (prompt tuning and its kin).
    """
    while (inner := _below(model)) is not None:
        model = inner
    assert isinstance(model, nn.Module)
    return model


def _below(model: Any) -> Any:
    """One wrapper less, or None where there is none."""
    if getattr(model, "peft_config", None) and hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"{type(model.active_peft_config).__name__} adds virtual tokens to the sequence, so the gate's "
                "layout does not describe it; use LoRA or full fine-tuning"
            )
        return model.get_base_model()
    if getattr(model, "wraps_language_model", False):
        return model.model
    for name in ("_orig_mod", "module"):
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    return None


def decoder_of(model: nn.Module) -> nn.Module:
    """The decoder stack: what `get_decoder()` of the transformers model gives.

    Raises:
        UnsupportedModelError: the model has none.
    """
    inner: Any = unwrap(model)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    if not isinstance(decoder, nn.Module):
        raise UnsupportedModelError(
            f"{type(inner).__name__} has no get_decoder(): elision needs a decoder stack that takes inputs_embeds, "
            "position_ids and attention_mask"
        )
    return decoder


def text_config(model: nn.Module) -> Any:
    """The decoder's configuration, whether it is the model's own or nested in it."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def final_norm(decoder: nn.Module) -> nn.Module | None:
    """The norm after the last layer, under the names that decoders give it."""
    for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f"):
        norm = getattr(decoder, name, None)
        if isinstance(norm, nn.Module):
            return norm
    return None
