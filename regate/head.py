"""The LM head on the rows that predict a scored target, and on no others.

Legend: B rows, S expanded length, N scored targets, V vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.errors import LayoutError, UnsupportedModelError
from regate.transfer import on_device
from regate.types import PredictorRows
from regate.wrapping import text_config, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def forward(self, *, predictor_BS: Tensor | PredictorRows, **inputs: Any) -> Tensor:
        """Logits of the scored targets.

        Args:
            predictor_BS: bool, `Decision.predictor_BS`, or `Decision.predictor_rows`. On the CPU it is not waited
                for; DDP and fully_shard move a mask to the device, and not the rows.
            inputs: what the model takes, without labels.

        Returns:
            logits_NV, in the model's type, in row order of `predictor_BS`.
        """
        inner: Any = unwrap(self.model)
        if self._takes_cache:
            inputs.setdefault("use_cache", False)
        hidden_BSD: Tensor = inner.base_model(**inputs).last_hidden_state
        logits_NV: Tensor = inner.get_output_embeddings()(_rows(hidden_BSD, predictor_BS))
        if self._softcap is not None:
            logits_NV = torch.tanh(logits_NV / self._softcap) * self._softcap
        return logits_NV


@contextmanager
def scored_rows(model: nn.Module, predictor_BS: Tensor) -> Iterator[None]:
    """While open, the model's own forward pass computes logits on the predictor rows only: [N, V].

    For loops that must call the model as it is wrapped (the transformers Trainer). Whatever the model does to its
    logits afterwards (soft-capping, scaling) it does to these.

    Args:
        model: any transformers model with output embeddings, under any wrapper; call it without labels.
        predictor_BS: bool, `Decision.predictor_BS`.

    Raises:
        UnsupportedModelError: the forward pass did not call the output embeddings as a module.
        LayoutError: it called them on another number of positions.
    """
    inner: Any = unwrap(model)
    used = []

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BSD = args[0]
        used.append(True)
        return (_rows(hidden_BSD, predictor_BS), *args[1:])

    handle = inner.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
    if not used:
        raise UnsupportedModelError(
            f"{type(inner).__name__} does not call its output embeddings as a module, so its logits cannot be "
            "limited to the scored rows; use ScoredLM"
        )


def _rows(hidden_BSD: Tensor, predictor_BS: Tensor | PredictorRows) -> Tensor:
    rows = predictor_BS if isinstance(predictor_BS, PredictorRows) else PredictorRows.of(predictor_BS)
    if hidden_BSD.shape[:2] != rows.shape:
        raise LayoutError(
            f"the model computed {tuple(hidden_BSD.shape[:2])} positions, the layout has "
            f"{rows.shape}: the layout must be in expanded length, visual tokens included"
        )
    return hidden_BSD.flatten(0, 1).index_select(0, on_device(rows.place_N, hidden_BSD.device))


def _softcap(model: nn.Module) -> float | None:
    """The cap of tanh soft-capping, None without; refuses other transforms by name."""
    places = (model, getattr(model, "config", None), text_config(model))
    for name in _REFUSED:
        for place in places:
            value = getattr(place, name, None)
            if isinstance(value, int | float) and value != 1:
                raise UnsupportedModelError(
                    f"{type(model).__name__} changes its logits after the head ({name} = {value}): regate would "
                    "train on other logits than the model's own; call the model itself inside regate.scored_rows"
                )
    values = (getattr(place, "final_logit_softcapping", None) for place in places)
    caps = {float(cap) for cap in values if cap}
    if len(caps) > 1:
        raise UnsupportedModelError(f"{type(model).__name__} has several final_logit_softcapping values: {caps}")
    return caps.pop() if caps else None
