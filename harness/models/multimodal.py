"""What the models of this package have in common: tokens of pictures among words, and a head above the decoder.

A family is two classes of transformers': `MultimodalDecoder` with `MultimodalPreTrained` is everything but the output
embedding, `MultimodalLM` with `MultimodalPreTrained` and `GenerationMixin` the whole model.

Legend: B rows, S expanded length, N clips, Q visual tokens of a clip, D hidden size, ... whatever stands before the
last dimension.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from transformers import Cache
    from transformers.modeling_outputs import BaseModelOutputWithPast

TIED: Final = {"lm_head.weight": "model.language_model.embed_tokens.weight"}


class MultimodalPreTrained(PreTrainedModel):  # type: ignore[misc]
    """The flags that transformers reads from both classes of a family."""

    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("video", "image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)


class MultimodalDecoder:
    """Vision side and decoder. A family adds the modules, of which `language_model` is the decoder, and says what its
    clips become."""

    visual_inputs: tuple[str, ...] = ("pixel_values",)
    """Names of the inputs that go in with the prompt's ids; pixel_values is one of them."""

    if TYPE_CHECKING:
        config: Any
        language_model: Any
        training: bool

        def get_input_embeddings(self) -> nn.Module: ...

        def get_video_features(self, pixel_values: Tensor, *args: Any, **visual: Any) -> Tensor:
            """Visual tokens [N, Q, D]."""

        def black_clip(self) -> dict[str, Any]:
            """Arguments of `get_video_features` for the smallest black clip."""

    def begin_rows(self, embeds_BSD: Tensor, visual: dict[str, Any]) -> Tensor:
        """A family's own change to the embeddings of the text; takes what belongs to it out of `visual`."""
        return embeds_BSD

    def merge(self, input_ids: Tensor, visual_places: Tensor | None = None, **visual: Any) -> Tensor:
        """Embeddings BSD with the visual tokens, in order, where the placeholders stand.

        Args:
            visual_places: int64, the placeholders in flattened `input_ids`, by whoever knows them: nothing then waits
                for an accelerator. None looks for them.

        A training batch of text alone calls the vision side on a black clip and adds nothing of it: the same modules
        run as for all others, so processes that share gradients or weights stay in step.

        Where a family has `tower_features` among its `visual_inputs`, they stand for the frames: what its
        frozen tower said of them before.

        Raises:
            ValueError: placeholders and visual tokens differ in number, or there are no frames for them.
        """
        if visual_places is None:
            placeholder_BS = input_ids == self.config.placeholder_token_id
            visual_places = placeholder_BS.flatten().nonzero().squeeze(1)
        # A placeholder may lie outside the vocabulary.
        known_BS = input_ids.flatten().index_fill(0, visual_places, 0).view_as(input_ids)
        embeds_BSD: Tensor = self.get_input_embeddings()(known_BS)
        embeds_BSD = self.begin_rows(embeds_BSD, visual)
        features = None
        if visual["pixel_values"] is not None or visual.get("tower_features") is not None:
            features = self.get_video_features(**visual)
        elif self.training and not visual_places.numel():
            return embeds_BSD + self.get_video_features(**self.black_clip()).sum() * 0.0
        return fill(embeds_BSD, visual_places, features)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        visual_places: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`inputs_embeds` stands for `input_ids` after the merge; exactly one of the two is given.

        Args:
            visual_places: as of `merge`.
            kwargs: `visual_inputs`, and what the decoder takes.
        """
        visual = {name: kwargs.pop(name, None) for name in self.visual_inputs}
        check_inputs(input_ids, inputs_embeds, visual["pixel_values"])
        if input_ids is not None:
            inputs_embeds = self.merge(input_ids, visual_places, **visual)
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class MultimodalLM:
    """The whole model. A family adds `model`, a `MultimodalDecoder`, and `lm_head`."""

    visual_inputs: tuple[str, ...] = ("pixel_values",)
    """As of the `MultimodalDecoder`."""
    after_prompt: dict[str, Any] = {}  # noqa: RUF012 - never changed; transformers evaluates annotations
    """What generation gives in place of `visual_inputs` once the prompt is in the cache."""
    _tied_weights_keys = TIED

    if TYPE_CHECKING:
        config: Any
        model: Any
        lm_head: nn.Module
        loss_function: Callable[..., Tensor]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.forward = _naming(MultimodalLM.forward, cls.visual_inputs)  # type: ignore[method-assign]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given (transformers' own shift and normalisation)."""
        visual = {name: kwargs.pop(name, None) for name in self.visual_inputs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **visual,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocabulary = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Frames go in once, with the prompt; the cache carries them afterwards."""
        visual = {name: kwargs.pop(name, None) for name in self.visual_inputs}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        whole = is_first_iteration or not kwargs.get("use_cache", True)
        return {**inputs, **(visual if whole else self.after_prompt)}


def _naming(forward: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """`forward` with further arguments in its signature: `generate` refuses and the Trainer drops what is not named
    there."""

    @functools.wraps(forward)
    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    known = inspect.signature(forward)
    *parameters, rest = known.parameters.values()
    further = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
    named.__signature__ = known.replace(parameters=[*parameters, *further, rest])  # type: ignore[attr-defined]
    return named


def check_inputs(input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None) -> None:
    """Exactly one of ids and embeddings, and frames with ids only.

    Raises:
        ValueError: says which.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    if input_ids is None and pixel_values is not None:
        raise ValueError("pixel_values need input_ids: the placeholders are found there")


def fill(embeds_BSD: Tensor, visual_places: Tensor, features: Tensor | None) -> Tensor:
    """The embeddings with the visual tokens, in order, where the placeholders stand.

    Args:
        visual_places: int64, the placeholders in flattened rows.
        features: visual tokens [..., D]; None where there are no frames.

    Raises:
        ValueError: placeholders and visual tokens differ in number, or there are no frames for them.
    """
    wanted = visual_places.numel()
    if features is None:
        if wanted:
            raise ValueError(f"{wanted} visual placeholders in input_ids but no pixel_values")
        return embeds_BSD
    given = features.shape[:-1].numel()
    if wanted != given:
        raise ValueError(f"{wanted} visual placeholders in input_ids but {given} visual tokens")
    rows_nD = features.flatten(0, -2).to(embeds_BSD.dtype)
    return embeds_BSD.flatten(0, 1).index_copy(0, visual_places, rows_nD).view_as(embeds_BSD)
