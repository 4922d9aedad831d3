"""What data ask of a model family's processor, and the rows and batches that every processor makes alike.

Legend: B rows, S expanded length, H and W pixels, T frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch.nn.utils.rnn import pad_sequence

from harness.data.sample import Batch, Encoded
from regate.types import IGNORE, Kind, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from harness.data.loading.pixels import ColourTable
    from harness.data.sample import Sample


class Processor(Protocol):
    """Text and frames in, tensors out. Deterministic: the same sample always gives the same targets."""

    @property
    def fingerprint(self) -> str:
        """Hash of tokenizer, template, label rule, truncation and number of visual tokens."""
        ...

    @property
    def placeholder_id(self) -> int:
        """What stands at visual positions in `input_ids`; the teacher sees it masked."""
        ...

    @property
    def tokenizer(self) -> Any:
        """transformers' tokenizer, with which targets are shown as words."""
        ...

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """Template, tokens, labels, kinds. `frames` holds one uint8 T3HW tensor a media, as decoded;
        None gives the text-only encoding of the same expanded length (the teacher's view)."""
        ...

    def encode_prompt(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """Everything up to and including the marker that opens the assistant's turn, for generation."""
        ...

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Right-padded batch and its layout; pixels in bytes wherever the model's own values follow from them."""
        ...


@runtime_checkable
class ReadsSquares(Protocol):
    """A processor that reads the frames of a video as squares of one size, whatever their own: it makes the same bits
    of the squares as of the frames, so that whoever keeps frames may keep those."""

    def squares(self, frames_T3HW: Tensor) -> Tensor:
        """uint8 frames of a video as uint8 [T, 3, Z, Z]; squares of that size come back as they are."""
        ...

    def square_settings(self) -> dict[str, Any] | None:
        """All that decides them, as plain values; None where this processor reads frames otherwise."""
        ...


def make_row(sample: Sample, ids: Sequence[int], kinds: Sequence[int], **further: Any) -> Encoded:
    """The row of a sample: labels where the kind is TARGET, and the targets counted as they stand.

    Args:
        ids, kinds: token id and `Kind` of each position in expanded length.
        further: the other fields of `Encoded`.
    """
    ids_S = torch.tensor(ids, dtype=torch.int64)
    kind_S = torch.tensor(kinds, dtype=torch.uint8)
    target_S = kind_S == Kind.TARGET
    return Encoded(
        sample_id=sample.id,
        input_ids_S=ids_S,
        labels_S=torch.where(target_S, ids_S, IGNORE),
        kind_S=kind_S,
        ordinal_S=torch.where(target_S, target_S.long().cumsum(0) - 1, -1),
        **further,
    )


def pad_rows(
    rows: Sequence[Encoded],
    pad_id: int,
    further: Mapping[str, Any],
    colours: Mapping[str, ColourTable] | None = None,
) -> Batch:
    """Rows padded on the right to the longest one, with their layout.

    Args:
        pad_id: in `input_ids` behind the end of a row.
        further: the model's other inputs.
        colours: as of `Batch`, of those among `further` that hold pixels in bytes.

    Returns:
        A batch whose inputs are int64 input_ids and attention_mask [B, S], and `further`.
    """

    def padded(name: str, value: int) -> Tensor:
        return pad_sequence([getattr(row, name) for row in rows], batch_first=True, padding_value=value)

    kind_BS = padded("kind_S", int(Kind.PAD))
    input_ids_BS = padded("input_ids_S", pad_id)
    grids = [row.grids for row in rows if row.grids is not None]
    layout = Layout(
        grids=tuple(grids) if len(grids) == len(rows) else None,
        labels_BS=padded("labels_S", IGNORE),
        kind_BS=kind_BS,
        ordinal_BS=padded("ordinal_S", -1),
        tokens_BS=input_ids_BS,
    )
    return Batch(
        torch.tensor([row.sample_id for row in rows], dtype=torch.int64),
        {"input_ids": input_ids_BS, "attention_mask": (kind_BS != Kind.PAD).long(), **further},
        layout,
        failed=tuple(row.sample_id for row in rows if row.failed),
        cut=tuple(row.cut for row in rows if row.cut is not None),
        colours=dict(colours or {}),
    )


def refuse_missing_pixels(rows: Iterable[Encoded]) -> None:
    """A batch holds pixels for all rows with visual positions, or for none.

    Args:
        rows: of a batch in which a row has pixels.

    Raises:
        ValueError: naming the samples without.
    """
    lacking = [row.sample_id for row in rows if row.pixels is None and bool((row.kind_S == Kind.VISUAL).any())]
    if lacking:
        raise ValueError(f"a batch mixes rows with and without pixels; without: {lacking}")
