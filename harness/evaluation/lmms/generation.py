"""Greedy generation: with transformers' cache where the model offers it, by whole forward passes where it does not.

Both write the same tokens: the likeliest one at each step, never the one that stands for media, up to the end marker
or a stop text. What a checkpoint's generation_config.json asks for (sampling, penalties) is left aside.

Legend: B rows, S expanded length, V vocabulary.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList

from harness.models.forward import inputs_on
from regate.types import IGNORE, Kind
from regate.wrapping import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from harness.data.sample import Batch, Encoded


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an answer ends, the end marker apart."""

    max_new_tokens: int
    until: tuple[str, ...]


@runtime_checkable
class Speaks(Protocol):
    """What generation needs of a processor beside the `Processor` protocol."""

    @property
    def end_id(self) -> int:
        """Closes the assistant's turn."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without markers."""
        ...


def generates(model: nn.Module) -> bool:
    """Whether the model has transformers' `generate`."""
    return isinstance(unwrap(model), GenerationMixin)


def generate(model: nn.Module, processor: Any, batch: Batch, limits: Limits) -> list[list[int]]:
    """Token ids of the answers, without the end marker, by transformers' `generate` with its cache.

    Args:
        processor: a `Processor` that `Speaks`.
        batch: right-padded prompts, as `Processor.collate` gives them.
    """
    inner: Any = unwrap(model)
    device = next(inner.parameters()).device
    inputs = inputs_on(padded_left(batch), batch, device)
    vocabulary = inner.get_output_embeddings().weight.shape[0]
    settings = GenerationConfig(
        max_new_tokens=limits.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=processor.end_id,
        pad_token_id=processor.end_id,
        suppress_tokens=_no_words(processor, vocabulary) or None,
    )
    length = batch.input_ids_BS.shape[1]
    stop = StoppingCriteriaList([_Said(processor, length, limits.until)] if limits.until else [])
    with _own_settings(inner, settings):
        ids_BS = inner.generate(**inputs, generation_config=settings, stopping_criteria=stop)
    return [_written(processor, row[length:], limits) for row in ids_BS.tolist()]


def _no_words(processor: Any, vocabulary: int) -> list[int]:
    """Ids that stand for media: `visual_ids` of a processor whose pictures and videos have one each, else its
    `placeholder_id`. Those outside the vocabulary cannot be written."""
    ids = getattr(processor, "visual_ids", (processor.placeholder_id,))
    return [token for token in ids if 0 <= token < vocabulary]


def padded_left(batch: Batch) -> dict[str, Any]:
    """The batch's inputs with the padding of every token tensor (B, S) moved to the front: what is written next then
    stands behind each row's last token. Positions follow the attention mask, so a row computes what it did."""
    mask_BS = batch.inputs["attention_mask"]
    length = mask_BS.shape[1]
    shift_B1 = (length - mask_BS.sum(dim=1, keepdim=True)) % length
    if not bool(shift_B1.any()):
        return batch.inputs
    place_BS = (torch.arange(length) - shift_B1) % length
    return {
        name: value.gather(1, place_BS) if isinstance(value, Tensor) and value.shape == mask_BS.shape else value
        for name, value in batch.inputs.items()
    }


@contextmanager
def _own_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """transformers fills what the settings leave open from the checkpoint's own; here there is nothing to fill in."""
    before = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = before


class _Said(StoppingCriteria):  # type: ignore[misc]
    """Ends a row whose answer holds a stop text."""

    def __init__(self, processor: Speaks, length: int, until: Sequence[str]) -> None:
        self.processor, self.length, self.until = processor, length, until

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        said = [self.processor.decode(row[self.length :]) for row in input_ids.tolist()]
        done = [any(stop in text for stop in self.until) for text in said]
        return torch.tensor(done, device=input_ids.device)


def _written(processor: Speaks, ids: list[int], limits: Limits) -> list[int]:
    """A row's own tokens: it is filled up with end markers while others are still written."""
    end = ids.index(processor.end_id) if processor.end_id in ids else len(ids)
    return ids[:end]


def generate_plainly(
    next_logits: Callable[[Sequence[Encoded]], Tensor], processor: Any, prompts: Sequence[Encoded], limits: Limits
) -> list[list[int]]:
    """Token ids of the answers, without the end marker. Each step runs the whole rows again: slower than a cache,
    but the one path that every adapter has.

    Args:
        next_logits: logits_BV behind the last token of each row.
    """
    rows = list(prompts)
    ids: list[list[int]] = [[] for _ in rows]
    live = list(range(len(rows)))
    for _ in range(limits.max_new_tokens):
        logits_BV = next_logits([rows[i] for i in live])
        logits_BV[:, _no_words(processor, logits_BV.shape[1])] = -math.inf
        still = []
        for i, token in zip(live, logits_BV.argmax(dim=-1).tolist(), strict=True):
            if token == processor.end_id:
                continue
            ids[i].append(token)
            rows[i] = grow(rows[i], token, target=False)
            if not any(stop in processor.decode(ids[i]) for stop in limits.until):
                still.append(i)
        live = still
        if not live:
            break
    return ids


def grow(row: Encoded, token: int, *, target: bool) -> Encoded:
    """The row with one more token: a word of the answer so far, or the target that stands for the next one."""

    def more(values_S: Tensor, value: int) -> Tensor:
        return torch.cat([values_S, values_S.new_tensor([value])])

    return replace(
        row,
        input_ids_S=more(row.input_ids_S, token),
        labels_S=more(row.labels_S, token if target else IGNORE),
        kind_S=more(row.kind_S, int(Kind.TARGET if target else Kind.PROMPT)),
        ordinal_S=more(row.ordinal_S, 0 if target else -1),
    )
