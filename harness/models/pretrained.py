"""What adapters have in common whose language model is a published one: its teacher, its shape, its conversations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from transformers import AutoModelForCausalLM

from harness.common.errors import EnvironmentProblem
from harness.common.hashing import digest
from harness.models.adapter import DecoderShape
from harness.models.device import computes_bfloat16
from regate.types import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sample import Encoded, Sample
    from harness.data.sources import DataSet

_TOLD: Final = 5
"""Samples that are named."""


class Conversations(Protocol):
    """A processor that cuts long conversations."""

    @property
    def max_length(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def check(self, sample: Sample) -> None: ...

    def tokens(self, sample: Sample) -> int: ...

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded: ...


def require(recipe: Recipe, lines: Sequence[str]) -> None:
    """Raises:
    EnvironmentProblem: there are lines, one for each file that is missing."""
    if lines:
        told = "\n".join(f"  {line}" for line in lines)
        raise EnvironmentProblem(f"{recipe.name}: weights are missing\n{told}")


def teacher_folder(recipe: Recipe, own: Path) -> Path:
    """The student's own language model, or what `gate.reference.model` names below paths.weights."""
    other = recipe.gate.reference.model if recipe.gate is not None else None
    return own if other is None else Path(recipe.paths.weights) / other


def load_teacher(recipe: Recipe, folder: Path) -> nn.Module:
    """A language model alone, frozen; in bfloat16 where it is to compute in it."""
    gate = recipe.gate
    half = gate is not None and gate.reference.dtype == "bfloat16" and computes_bfloat16()
    dtype = torch.bfloat16 if half else torch.float32
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval().requires_grad_(False)


def decoder_shape(text: Any, **more: Any) -> DecoderShape:
    """Sizes of a language model's configuration; `more` are the fields that are not its own."""
    return DecoderShape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        **more,
    )


def look_at_conversations(name: str, data: DataSet, processor: Conversations, progress: Progress) -> None:
    """Encode what may be too long, and let the processor look at the rest; tell what will be cut.

    Raises:
        DataError: a conversation cannot be used; its sample is named.
    """
    limit = processor.max_length
    cut: list[str] = []
    lost: list[str] = []
    with progress.task(f"look at conversations {name}", len(data.samples)) as advance:
        for done, sample in enumerate(data.samples, start=1):
            processor.check(sample)
            if _may_be_long(sample, limit) and processor.tokens(sample) > limit:
                trains = bool((processor.encode(sample, None).kind_S == Kind.TARGET).any())
                (cut if trains else lost).append(sample.key)
            if done % 1000 == 0 or done == len(data.samples):
                advance(done)
    total = len(data.samples)
    if cut:
        progress.say(
            f"{len(cut)} of {total} samples are longer than model.max_length {limit} tokens and are cut there: "
            f"{some(cut)}"
        )
    if lost:
        progress.say(
            f"{len(lost)} of {total} samples have no answer within model.max_length {limit} tokens and train "
            f"nothing: {some(lost)}"
        )


def looked_at(recipe: Recipe, data: DataSet, processor: Conversations, weights: str) -> Path:
    """What says that these data were looked at with this processor and these weights; runs share it."""
    seen = digest({"data": data.fingerprint, "processor": processor.fingerprint, "weights": weights})
    return Path(recipe.paths.stores) / f"looked-at-{seen[:16]}.json"


def note(marker: Path) -> None:
    """The look was taken to its end, so it is not repeated."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text('{"schema": 1}\n')


def some(keys: Sequence[str]) -> str:
    """The first few, and how many more."""
    return ", ".join(keys[:_TOLD]) + (f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else "")


def _may_be_long(sample: Sample, limit: int) -> bool:
    """A token of words is at least one byte; the template adds a few to every turn."""
    written = sum(len(turn.text.encode()) + 16 for turn in sample.turns) + 64
    return written > limit
