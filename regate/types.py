"""What flows between the parts of the gate.

Legend of the tensor suffixes, used in every file: B rows, S expanded length (visual tokens included),
K active length, N scored targets of the batch, V vocabulary, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Final

import torch
from torch import Tensor

from regate.errors import LayoutError

IGNORE: Final = -100
"""Label of a position that is not supervised, as in torch's cross entropy."""


class Kind(IntEnum):
    """What a position of a training sequence is; every position has exactly one kind."""

    PAD = 0
    SPECIAL = 1
    VISUAL = 2
    PROMPT = 3
    TARGET = 4


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Positions by kind and by what the step did with them. They add up, and `check` says so.

    positions = B x S as laid out; valid = special + visual + prompt + target (not padding);
    active = positions that the decoder computes; scored = targets that enter the loss.
    """

    positions: int = 0
    valid: int = 0
    visual: int = 0
    special: int = 0
    prompt: int = 0
    target: int = 0
    active: int = 0
    scored: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def check(self) -> None:
        assert self.valid == self.visual + self.special + self.prompt + self.target, self
        assert self.scored <= self.target <= self.valid <= self.positions, self
        assert self.active <= self.valid, self


@dataclass(frozen=True, slots=True)
class Grid:
    """What a run of a row's visual positions shows: cells of a clip, frame by frame and row by row.

    Attributes:
        elidable: False for visual positions that are no cells (a learned line break): they always stay.
    """

    frames: int
    rows: int
    columns: int
    elidable: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.rows, self.columns

    @property
    def cells(self) -> int:
        return self.frames * self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Blocks:
    """Cells that are averaged. Places are those of a flattened B x S array; all int64.

    Attributes:
        member_m, block_m: place of each cell, and the number of its block.
        first_b, size_b: of each block the place where its mean stands, and how many cells it has.
    """

    member_m: Tensor
    block_m: Tensor
    first_b: Tensor
    size_b: Tensor


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip whose cells are chosen by what they show. Places are those of a flattened B x S array.

    Attributes:
        shape: frames, rows, columns.
        place_n: int64, of its cells.
        apart_n: bool, cells that stay as they are: a target stands right behind.
        kept: how many cells stay, whatever they show.
    """

    shape: tuple[int, int, int]
    place_n: Tensor
    apart_n: Tensor
    kept: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice that waits for the embeddings (`regate.content`).

    Attributes:
        how: its rule, of `regate.content.RULES`.
        keep: the part of the cells that stays.
        visual_BS: bool, all visual positions.
    """

    how: str
    keep: float
    clips: tuple[Clip, ...]
    visual_BS: Tensor


@dataclass(frozen=True, slots=True)
class VisualKept:
    """The visual positions that a sparse step keeps (`regate.visual`).

    Attributes:
        kept_BS: bool, visual positions that stay; with a choice as many of each clip as it will keep.
        kept_v: int64, their numbers among the batch's visual positions, row by row.
        blocks: what is averaged; None where cells are left out alone.
        choice: what the embeddings decide, or the attention; None where all is known before the forward pass.
        from_layer: the layer above which the others leave; None for the first.
    """

    kept_BS: Tensor
    kept_v: Tensor
    blocks: Blocks | None = None
    choice: Choice | None = None
    from_layer: float | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Which position of a batch is what, in expanded length, before the forward pass.

    Attributes:
        labels_BS: int64, the target's token id at its own position, IGNORE elsewhere (not shifted).
        kind_BS: uint8, a `Kind` for every position.
        ordinal_BS: int64, j for the sample's j-th target in canonical order (the order of the data file,
            whatever order the turns were shown in), -1 where there is no target.
        tokens_BS: int64, the token id of every text position; only `candidates: text` reads it.
        grids: of each row, what its visual positions show, in their order; only visual elision reads it.
    """

    labels_BS: Tensor
    kind_BS: Tensor
    ordinal_BS: Tensor
    tokens_BS: Tensor | None = None
    grids: tuple[tuple[Grid, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.labels_BS.shape == self.kind_BS.shape == self.ordinal_BS.shape:
            raise LayoutError(
                f"labels {tuple(self.labels_BS.shape)}, kinds {tuple(self.kind_BS.shape)} and ordinals "
                f"{tuple(self.ordinal_BS.shape)} must have one shape [B, S]"
            )

    @property
    def target_BS(self) -> Tensor:
        return self.kind_BS == Kind.TARGET

    @property
    def valid_BS(self) -> Tensor:
        return self.kind_BS != Kind.PAD

    def to(self, device: torch.device | str) -> Layout:
        tokens_BS = None if self.tokens_BS is None else self.tokens_BS.to(device)
        labels_BS, kind_BS, ordinal_BS = (x_BS.to(device) for x_BS in (self.labels_BS, self.kind_BS, self.ordinal_BS))
        return Layout(labels_BS, kind_BS, ordinal_BS, tokens_BS, self.grids)


@dataclass(frozen=True, slots=True)
class LayerKeep:
    """Each layer but the first and the last computes a part of the active positions (`regate.depth.layer_masks`).

    Attributes:
        keep: the part.
        seed: of the draws.
    """

    keep: float
    seed: int


@dataclass(frozen=True, slots=True)
class Level:
    """From layer `first` on the decoder computes these positions and no others.

    Attributes:
        first: a number of layers (int), or a part of them (float).
        active_BS: bool.
    """

    first: float
    active_BS: Tensor


@dataclass(frozen=True, slots=True)
class PredictorRows:
    """Which rows of a decoder's output predict a scored token, counted over the batch.

    DDP and fully_shard move every tensor that a model is called with to the device, where the number of a mask's true
    entries is not known without waiting for it. They leave this as it is.

    Attributes:
        place_N: int64, ascending; on the CPU where its mask was.
        shape: B and S.
    """

    place_N: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, predictor_BS: Tensor) -> PredictorRows:
        rows, length = predictor_BS.shape
        return cls(predictor_BS.flatten().nonzero().squeeze(1), (rows, length))


@dataclass(frozen=True, slots=True)
class Decision:
    """What a step computes: made before the forward pass, on the layout's device (normally the CPU).

    Attributes:
        active_BS: bool, positions that the decoder computes: in all its layers, or, with `levels`, in its last ones.
            Where cells stay by what they show (`visual.choice`) it says how many of each clip, and not yet which.
        targets_BS: bool, scored targets, at their own position.
        sample_ids_B: int64, stable sample ids.
        layout: the layout it was made from.
        keep_ratio: p(t) of Eq. 4 at `step`.
        counts: token counts of this batch.
        step: optimizer step.
        weighted: some of the N losses do not train: `Gate.weights` says which. False in the default path,
            where each of the N losses is that of a scored target. True for `candidates: text` (the losses of
            prompt tokens only feed Eq. 2) and where the targets are chosen after the forward pass.
        observed_BS: bool, prompt tokens whose loss is computed for Eq. 2 alone; None for none.
        levels: where the positions differ by layer: the lower levels, the first one from layer 0 on, each holding the
            next; the last is that of `active_BS`. Empty for one mask in every layer, as in the paper.
        deep: the first layer (or part of the layers) that computes the predictors of the losses alone; None for none.
        visual: the visual positions that stay; None where all of them do.
        layer_keep: what single layers leave out; None for nothing.
    """

    active_BS: Tensor
    targets_BS: Tensor
    sample_ids_B: Tensor
    layout: Layout
    keep_ratio: float
    counts: TokenCounts
    step: int
    weighted: bool = False
    observed_BS: Tensor | None = None
    levels: tuple[Level, ...] = ()
    deep: float | None = None
    visual: VisualKept | None = None
    layer_keep: LayerKeep | None = None

    @property
    def sparse(self) -> bool:
        """Whether the schedule's step is a sparse one: of targets, of visual positions, or of layers."""
        return self.keep_ratio < 1.0 or self.visual is not None or self.layer_keep is not None

    @property
    def losses_BS(self) -> Tensor:
        """bool, the tokens whose loss is computed, at their own position: N true entries."""
        return self.targets_BS if self.observed_BS is None else self.targets_BS | self.observed_BS

    @property
    def predictor_BS(self) -> Tensor:
        """bool, the positions whose output predicts one of the N tokens: losses_BS shifted left by one."""
        return torch.nn.functional.pad(self.losses_BS[:, 1:], (0, 1), value=False)

    @property
    def predictor_rows(self) -> PredictorRows:
        """The same positions by their numbers: what a model within DDP or fully_shard does not wait for."""
        return PredictorRows.of(self.predictor_BS)

    @property
    def targets_N(self) -> Tensor:
        """int64, ids of the N tokens, row by row, in the order of `predictor_BS`'s true entries."""
        if self.observed_BS is None:
            return self.layout.labels_BS[self.targets_BS]
        assert self.layout.tokens_BS is not None
        return self.layout.tokens_BS[self.losses_BS]

    @property
    def labels_BS(self) -> Tensor:
        """int64, labels with IGNORE at every target that is not scored: for a model that computes its own loss."""
        return torch.where(self.targets_BS, self.layout.labels_BS, IGNORE)

    @property
    def elides(self) -> bool:
        """Whether any valid position is left out of the decoder."""
        return self.counts.active < self.counts.valid

    def to(self, device: torch.device | str) -> Decision:
        return replace(
            self,
            active_BS=self.active_BS.to(device),
            targets_BS=self.targets_BS.to(device),
            sample_ids_B=self.sample_ids_B.to(device),
            layout=self.layout.to(device),
            observed_BS=None if self.observed_BS is None else self.observed_BS.to(device),
            levels=tuple(replace(level, active_BS=level.active_BS.to(device)) for level in self.levels),
        )


def layout_from_labels(
    labels_BS: Tensor,
    attention_mask_BS: Tensor,
    *,
    visual_BS: Tensor | None = None,
    special_BS: Tensor | None = None,
    input_ids_BS: Tensor | None = None,
    grids: tuple[tuple[Grid, ...], ...] | None = None,
) -> Layout:
    """The layout of a batch in the usual transformers form.

    A label at a row's first valid position is not a target: no position predicts it (transformers' own shift
    drops it too); it counts as prompt.

    Args:
        labels_BS: int64, -100 where not supervised, not shifted.
        attention_mask_BS: 0 on padding, left or right.
        visual_BS: bool, positions that hold visual features.
        special_BS: bool, template markers.
        input_ids_BS: int64, kept for `candidates: text`.
        grids: of each row, what its visual positions show, in their order; for visual elision.

    Raises:
        LayoutError: a supervised position is padding or visual, or shapes differ.
    """
    valid_BS = attention_mask_BS.bool()
    masks = {
        "attention_mask": valid_BS,
        "visual": visual_BS,
        "special": special_BS,
        "input_ids": input_ids_BS,
    }
    for name, mask_BS in masks.items():
        if mask_BS is not None and mask_BS.shape != labels_BS.shape:
            raise LayoutError(f"{name} has shape {tuple(mask_BS.shape)}, labels have {tuple(labels_BS.shape)}")
    first_BS = valid_BS & (valid_BS.cumsum(dim=1) == 1)
    target_BS = (labels_BS != IGNORE) & ~first_BS
    for name, mask_BS in (("padding", ~valid_BS), ("visual", visual_BS)):
        if mask_BS is not None and bool((target_BS & mask_BS.bool()).any()):
            row = int((target_BS & mask_BS.bool()).any(dim=1).nonzero()[0])
            raise LayoutError(f"row {row}: a {name} position has a label; set its label to {IGNORE}")
    kind_BS = torch.full_like(labels_BS, Kind.PROMPT, dtype=torch.uint8)
    if special_BS is not None:
        kind_BS[special_BS.bool()] = Kind.SPECIAL
    if visual_BS is not None:
        kind_BS[visual_BS.bool()] = Kind.VISUAL
    kind_BS[target_BS] = Kind.TARGET
    kind_BS[~valid_BS] = Kind.PAD
    ordinal_BS = torch.where(target_BS, target_BS.long().cumsum(dim=1) - 1, -1)
    return Layout(torch.where(target_BS, labels_BS, IGNORE), kind_BS, ordinal_BS, input_ids_BS, grids)
