"""Which positions compete for the budget, and where each stands in the stores.

A store holds one value for each candidate of a sample, in canonical order: its targets by ordinal, then, for
`candidates: text`, its prompt tokens in the order of the row.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regate.errors import LayoutError
from regate.types import Kind, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from regate import config


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of a batch.

    Attributes:
        mask_BS: bool.
        slot_BS: int64, place in the sample's canonical order, -1 where there is no candidate.
        tokens_BS: int64, token id at candidates; read nowhere else.
        count_B: int64.
    """

    mask_BS: Tensor
    slot_BS: Tensor
    tokens_BS: Tensor
    count_B: Tensor


def target_candidates(layout: Layout) -> Candidates:
    """The supervised answer tokens (section 3.1)."""
    mask_BS = layout.target_BS
    slot_BS = torch.where(mask_BS, layout.ordinal_BS, -1)
    return Candidates(mask_BS, slot_BS, layout.labels_BS, mask_BS.sum(dim=1))


def text_candidates(layout: Layout) -> Candidates:
    """Answer and prompt tokens ("all valid text tokens", sections 2.2 and 3.3).

    A prompt token at a row's first valid position is not a candidate: nothing predicts it, so it has no loss.
    """
    if layout.tokens_BS is None:
        raise LayoutError(
            "candidates: text needs the token ids of the prompt: give the layout tokens_BS "
            "(layout_from_labels(..., input_ids_BS=...))"
        )
    valid_BS = layout.valid_BS
    first_BS = valid_BS & (valid_BS.cumsum(dim=1) == 1)
    target_BS = layout.target_BS
    prompt_BS = (layout.kind_BS == Kind.PROMPT) & ~first_BS
    after_targets_BS = target_BS.sum(dim=1, keepdim=True) + prompt_BS.cumsum(dim=1) - 1
    slot_BS = torch.where(target_BS, layout.ordinal_BS, torch.where(prompt_BS, after_targets_BS, -1))
    mask_BS = target_BS | prompt_BS
    return Candidates(mask_BS, slot_BS, layout.tokens_BS, mask_BS.sum(dim=1))


_CANDIDATES: Mapping[config.Candidates, Callable[[Layout], Candidates]] = {
    "targets": target_candidates,
    "text": text_candidates,
}


def candidates_of(layout: Layout, which: config.Candidates = "targets") -> Candidates:
    """The candidates of a batch.

    Raises:
        LayoutError: a target without a position that predicts it, or ordinals that are not 0 .. N-1.
    """
    if layout.labels_BS.device.type != "cpu":
        raise LayoutError(
            f"the layout is on {layout.labels_BS.device}; keep it on the CPU, so that deciding never waits "
            "for the accelerator"
        )
    valid_BS, target_BS = layout.valid_BS, layout.target_BS
    before_BS = torch.nn.functional.pad(valid_BS[:, :-1], (1, 0), value=False)
    orphan_B = (target_BS & ~before_BS).any(dim=1)
    if bool(orphan_B.any()):
        row = int(orphan_B.nonzero()[0])
        raise LayoutError(f"row {row}: a target stands first in its row, so no position predicts it")
    candidates = _CANDIDATES[which](layout)
    length = candidates.slot_BS.shape[1]
    seen_BS = torch.zeros(candidates.slot_BS.shape[0], length + 1, dtype=torch.bool)
    seen_BS.scatter_(1, candidates.slot_BS.clamp(-1, length - 1) + 1, True)
    wrong_B = (seen_BS[:, 1:].cumprod(dim=1).sum(dim=1) != candidates.count_B) | (
        candidates.mask_BS & ((candidates.slot_BS < 0) | (candidates.slot_BS >= length))
    ).any(dim=1)
    if bool(wrong_B.any()):
        row = int(wrong_B.nonzero()[0])
        count = int(candidates.count_B[row])
        raise LayoutError(f"row {row}: the ordinals of its {count} targets are not 0, 1, 2, ...")
    return candidates


def target_checksum(ids: Tensor) -> int:
    """crc32 of token ids as little-endian int64, in canonical order: the identity of a sample's candidates."""
    return zlib.crc32(ids.to(torch.int64).contiguous().numpy().astype("<i8", copy=False).tobytes())


def in_order(candidates: Candidates, value_BS: Tensor) -> list[Tensor]:
    """The values at each row's candidates, in canonical order: B tensors of count_B[b] entries."""
    slot_BS = candidates.slot_BS
    order_BS = torch.where(candidates.mask_BS, slot_BS, slot_BS.shape[1]).argsort(dim=1, stable=True)
    sorted_BS = value_BS.gather(1, order_BS)
    return [row[:count] for row, count in zip(sorted_BS, candidates.count_B.tolist(), strict=True)]


def store_keys(layout: Layout, which: config.Candidates = "targets") -> tuple[list[int], list[int]]:
    """Number of candidates and checksum of each row: what a store's index is made from.

    With "targets" this is the number of targets and `target_checksum` of their ids by ordinal.
    """
    candidates = candidates_of(layout, which)
    checksums = [target_checksum(ids) for ids in in_order(candidates, candidates.tokens_BS)]
    return candidates.count_B.tolist(), checksums
