"""What the models of this package have in common: tokens of pictures among words, and a head above the decoder.

Legend: B rows, S expanded length, D hidden size, ... whatever stands before the last dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.modeling_outputs import BaseModelOutputWithPast


def check_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None) -> None:
    """Exactly one of ids and embeddings, and frames with ids only.

    Raises:
        ValueError: says which.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is None and pixel_values is not None:
        raise ValueError("pixel_values need input_ids: the placeholders are found there")


def fill(embeds_BSD: Tensor, placeholder_BS: Tensor, features: Tensor | None) -> Tensor:
    """The embeddings with the visual tokens, in order, where the placeholders stand.

    Args:
        features: visual tokens [..., D]; None where there are no frames.

    Raises:
        ValueError: placeholders and visual tokens differ in number, or there are no frames for them.
    """
    wanted = int(placeholder_BS.sum())
    if features is None:
        if wanted:
            raise ValueError(f"{wanted} visual placeholders in input_ids but no pixel_values")
        return embeds_BSD
    given = features.shape[:-1].numel()
    if wanted != given:
        raise ValueError(f"{wanted} visual placeholders in input_ids but {given} visual tokens")
    return embeds_BSD.masked_scatter(placeholder_BS[..., None], features.to(embeds_BSD.dtype))


def head(
    model: Any,
    outputs: BaseModelOutputWithPast,
    labels: Tensor | None,
    logits_to_keep: int | Tensor,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """Logits, and the loss where labels are given (transformers' own shift and normalisation).

    Args:
        model: has `lm_head`, `config.text_config` and transformers' `loss_function`.
    """
    logits = model.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
    loss = None
    if labels is not None:
        vocabulary = model.config.text_config.vocab_size
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
    return CausalLMOutputWithPast(
        loss=loss,
        logits=logits,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )
