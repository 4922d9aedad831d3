"""Another multimodal model as the teacher that sees the pictures: its losses, target by target of the student's.

It reads each conversation by its own processor, template and tokenizer. A loss belongs to a target of the student
only where both models cut the answers into the same pieces; where they do not, the pass is refused by name.

Legend: B rows, S expanded length, N targets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import torch

import regate
from harness.common.errors import EnvironmentProblem
from harness.config.model import TinyModel
from harness.data.loading.batches import encode_with_media
from harness.models import adapter_for
from harness.models.checkpoint_files import fingerprint, weight_files
from harness.models.other_vlm import folder_of_vlm, recipe_of_vlm
from harness.models.tiny.checkpoint import TinyCheckpoint
from regate import process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from harness.config.recipe import Recipe
    from harness.data.sample import Batch, Sample
    from harness.data.sources import DataSet
    from harness.models.adapter import Evaluated
    from harness.training.run import Prepared
    from regate.types import Layout

LOOKED_AT: Final = 256
"""Conversations whose pieces are compared before any loss is computed; all others as they are read."""
_MARKS: Final = " \u0120\u2581"
"""Signs of a space before a piece: GPT-2's and SentencePiece's."""
_MARKER: Final = "<marker>"


@dataclass(slots=True)
class Pieces:
    """Token ids as pieces of text that can be compared between tokenizers: without the signs of spaces and of inner
    pieces, in lower case; every marker of a template is alike."""

    tokenizer: Any
    _known: dict[int, str] = field(default_factory=dict)
    _markers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._markers = frozenset(self.tokenizer.all_special_ids) | frozenset(self.tokenizer.added_tokens_decoder)

    def of(self, ids: Sequence[int]) -> list[str]:
        return [self._known[token] if token in self._known else self._read(token) for token in ids]

    def _read(self, token: int) -> str:
        if token in self._markers:
            piece = _MARKER
        else:
            piece = str(self.tokenizer.convert_ids_to_tokens(token)).strip(_MARKS).removeprefix("##").casefold()
        self._known[token] = piece
        return piece


def picture_teacher(recipe: Recipe, data: DataSet) -> Evaluated:
    """The model that `gate.reference.pictures` names.

    Raises:
        EnvironmentProblem: its folder holds none that is known.
    """
    other = recipe_of_vlm(recipe)
    return TinyCheckpoint(folder_of_vlm(recipe)) if isinstance(other.model, TinyModel) else adapter_for(other, data)


def facts_of_vlm(run: Prepared) -> dict[str, str]:
    """What its losses depend on beside the data: a fingerprint of its weights, and of its tokenizer and template."""
    processor = picture_teacher(run.recipe, run.data).processor()
    return {
        "weights": fingerprint(weight_files(folder_of_vlm(run.recipe))),
        "processor": processor.fingerprint,
    }


def losses_of_vlm(run: Prepared) -> Callable[[Any], Tensor]:
    """Its loss at every target of a batch, with nothing elided: float32 N, nats, row by row.

    The batches must be those of `harness.data.loading.batches.picture_batches` for this process, in their order; some
    may be left out.

    Raises:
        EnvironmentProblem: a conversation's answers are cut into other pieces; it is named.
    """
    data, rows = run.data, run.recipe.train.micro_batch
    teacher = picture_teacher(run.recipe, data)
    processor, own = teacher.processor(), run.adapter.processor()
    pieces, own_pieces = Pieces(processor.tokenizer), Pieces(own.tokenizer)
    where = f"gate.reference.pictures: {folder_of_vlm(run.recipe)}"

    def check(samples: Sequence[Sample], theirs: Layout, ours: Layout) -> None:
        for row, sample in enumerate(samples):
            cut, expected = (
                known.of(layout.labels_BS[row][layout.target_BS[row]].tolist())
                for known, layout in ((pieces, theirs), (own_pieces, ours))
            )
            if cut != expected:
                raise EnvironmentProblem(
                    f"{where} cuts the answers of {sample.key} into other tokens than the student: "
                    f"{_first_difference(cut, expected)}",
                    hint="name a model with the student's tokenizer and answer markers, or give true: the student's "
                    "own starting weights",
                )

    for first in range(0, min(LOOKED_AT, len(data.samples)), rows):
        samples = [data.samples[place] for place in range(first, min(first + rows, len(data.samples)))]
        theirs, ours = (
            by.collate([by.encode(sample, None) for sample in samples]).layout for by in (processor, own)
        )
        check(samples, theirs, ours)

    model = teacher.load(folder_of_vlm(run.recipe)).eval()
    scored = regate.ScoredLM(model.to("cuda" if torch.cuda.is_available() else "cpu"))
    firsts: Iterator[int] = islice(range(0, len(data.samples), rows), process.rank(), None, process.world())

    def losses(batch: Batch) -> Tensor:
        ids = batch.sample_ids_B.tolist()
        first = next(place for place in firsts if data.samples[place].id == ids[0])
        samples = [data.samples[place] for place in range(first, first + len(ids))]
        seen = processor.collate([encode_with_media(sample, data, processor) for sample in samples])
        check(samples, seen.layout, batch.layout)
        decision = regate.DenseGate().decide(seen.layout, seen.sample_ids_B, step=0)
        logits_NV, targets_N = teacher.forward(scored, seen, decision)
        return regate.token_loss(logits_NV, targets_N)

    return losses


def _first_difference(cut: Sequence[str], expected: Sequence[str]) -> str:
    """Where two rows of pieces part, in words."""
    shorter = min(len(cut), len(expected))
    place = next((i for i in range(shorter) if cut[i] != expected[i]), shorter)
    found, wanted = (" ".join(pieces[place : place + 4]) or "nothing" for pieces in (cut, expected))
    return f"{found!r} where the student has {wanted!r} ({len(cut)} and {len(expected)} targets)"


__all__ = ["LOOKED_AT", "Pieces", "facts_of_vlm", "losses_of_vlm", "picture_teacher"]
