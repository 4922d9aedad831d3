"""The LM head on the rows that predict a scored target, and on no others.

Legend: B rows, S expanded length, N scored targets, V vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from regate.errors import LayoutError, UnsupportedModelError
from regate.wrapping import text_config, unwrap

_REFUSED = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier", "logits_multiplier")
"""Attributes by which transformers models scale their logits; the sense (times or over) differs by family."""


class ScoredLM(nn.Module):
    """A causal or multimodal LM that computes logits only where a scored target is predicted.

    One wrapper around the whole model, so that the hooks of data-parallel and sharding wrappers around it fire. The
    model may be wrapped by peft. Final soft-capping is applied as the model does it.

    Args:
        model: a transformers model with `base_model` and `get_output_embeddings()`.

    Raises:
        UnsupportedModelError: the model scales its logits after the head, or has no head.
    """

    wraps_language_model = True  # `regate.wrapping.unwrap` looks below

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        inner: Any = unwrap(model)
        if not hasattr(inner, "base_model") or inner.get_output_embeddings() is None:
            raise UnsupportedModelError(f"{type(inner).__name__} has no base_model and output embeddings to split at")
        self._softcap = _softcap(inner)
        parameters = inspect.signature(inner.base_model.forward).parameters
        self._takes_cache = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def forward(self, *, predictor_BS: Tensor, **inputs: Any) -> Tensor:
        """Logits of the scored targets.

        Args:
            predictor_BS: bool, `Decision.predictor_BS`. On the CPU it is not waited for.
            inputs: what the model takes, without labels.

        Returns:
            logits_NV, in the model's type, in row order of `predictor_BS`.
        """
        inner: Any = unwrap(self.model)
        if self._takes_cache:
            inputs.setdefault("use_cache", False)
        hidden_BSD: Tensor = inner.base_model(**inputs).last_hidden_state
        if hidden_BSD.shape[:2] != predictor_BS.shape:
            raise LayoutError(
                f"the model computed {tuple(hidden_BSD.shape[:2])} positions, the layout has "
                f"{tuple(predictor_BS.shape)}: the layout must be in expanded length, visual tokens included"
            )
        place_N = predictor_BS.flatten().nonzero().squeeze(1).to(hidden_BSD.device, non_blocking=True)
        logits_NV: Tensor = inner.get_output_embeddings()(hidden_BSD.flatten(0, 1).index_select(0, place_N))
        if self._softcap is not None:
            logits_NV = torch.tanh(logits_NV / self._softcap) * self._softcap
        return logits_NV


def _softcap(model: nn.Module) -> float | None:
    """The cap of tanh soft-capping, None without; refuses other transforms by name."""
    places = (model, getattr(model, "config", None), text_config(model))
    for name in _REFUSED:
        for place in places:
            value = getattr(place, name, None)
            if isinstance(value, int | float) and value != 1:
                raise UnsupportedModelError(
                    f"{type(model).__name__} changes its logits after the head ({name} = {value}): regate would "
                    "train on other logits than the model's own; let the model compute them and use causal_token_loss"
                )
    found = (getattr(place, "final_logit_softcapping", None) for place in places)
    caps = {float(cap) for cap in found if cap}
    if len(caps) > 1:
        raise UnsupportedModelError(f"{type(model).__name__} has several final_logit_softcapping values: {caps}")
    return caps.pop() if caps else None
