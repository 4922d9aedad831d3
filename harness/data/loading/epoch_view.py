"""A sample as one epoch shows it: its frames, the order of its pairs, its crop.

Every random choice is drawn from (seed, epoch, sample id) and from nothing else, so it does not depend on loading
processes, ranks or resuming. No choice changes the sample's targets: where the pairs stand in another order than in
the file, the ordinals of the targets are put back to that of the file, by which the stores are laid out.

Legend: S expanded length, N targets, T frames, H and W pixels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from harness.data.loading.augment import augmented
from harness.data.loading.video import read_frames
from harness.data.sample import Sample, Turn
from regate.types import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from harness.data.processor import Processor
    from harness.data.sample import Encoded, SamplingPolicy

_TAG: Final = re.compile(r"\A<media:0>\n?")
_TURNS, _FRAMES, _AUGMENT = range(3)
"""What a number is drawn for: each has a stream of its own, so that one switch never changes another's choice."""


@dataclass(frozen=True, slots=True)
class EpochView:
    """The pass over the data in which a sample is shown."""

    seed: int
    epoch: int

    def rng(self, sample: Sample, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, sample.id, purpose])


def clips(sample: Sample, sampling: SamplingPolicy, view: EpochView, *, frames: int, size: int) -> list[Tensor]:
    """The decoded pictures of each medium: uint8 T3HW, of the file's size, or [T, 3, size, size] where augmented.

    Raises:
        VideoError: a file cannot be read.
    """
    decoded: list[Tensor] = []
    frames_rng = view.rng(sample, _FRAMES) if sampling.rule == "random" else None
    crop_rng = view.rng(sample, _AUGMENT) if sampling.augment else None
    for media in sample.media:
        count = frames
        if frames_rng is not None and sampling.least is not None and media.kind == "video":
            count = int(frames_rng.integers(sampling.least, frames + 1))
        clip = read_frames(media, frames=count, rule=sampling.rule, rng=frames_rng)
        decoded.append(clip if crop_rng is None else augmented(clip, size, crop_rng))
    return decoded


def order_of(sample: Sample, sampling: SamplingPolicy, view: EpochView) -> tuple[int, ...]:
    """The places in the file of the pairs in the order they are shown; empty where that is always the file's."""
    if not sampling.shuffle_turns:
        return ()
    return tuple(view.rng(sample, _TURNS).permutation(len(_pairs(sample))).tolist())


def arranged(sample: Sample, order: Sequence[int]) -> Sample:
    """The sample with these of its pairs, in this order. The medium's tag goes to the first question, and the
    instruction is that of the pair shown first, as in VideoChat2's loader, which looks for it after its shuffle."""
    assert not sample.spans, "spans name turns of the file's order"
    pairs = _pairs(sample)
    tagged = _TAG.match(pairs[0][0].text)
    shown = [(_TAG.sub("", question.text), answer) for question, answer in pairs]
    turns = [turn for turn in sample.turns if turn.role == "system"]
    if sample.openings:
        opening = sample.openings[order[0]]
        turns = [Turn("system", opening)] if opening else []
    for place, pair in enumerate(order):
        question, answer = shown[pair]
        if place == 0 and tagged:
            question = f"<media:0>\n{question}" if question else "<media:0>"
        turns += [Turn("user", question), answer]
    openings = tuple(sample.openings[pair] for pair in order) if sample.openings else ()
    return replace(sample, turns=tuple(turns), openings=openings)


def encode(sample: Sample, order: Sequence[int], processor: Processor, frames: Sequence[Tensor] | None) -> Encoded:
    """The row of the sample with its pairs in `order`; an empty one is that of the file.

    It is in the order of the file, and `unshuffled` says so, where another would change a target: where the
    conversation is cut off, or where an answer that nobody asks for is tokenized differently behind another answer.
    """
    if list(order) == sorted(order):
        return processor.encode(sample, frames)
    filed = processor.encode(sample, None)
    shown = processor.encode(arranged(sample, order), frames)
    sizes = [_targets(processor.encode(arranged(sample, [pair]), None)).numel() for pair in range(len(order))]
    ordinal_S = _ordinals(filed, shown, order, sizes)
    if ordinal_S is None:
        return replace(processor.encode(sample, frames), unshuffled=True)
    return replace(shown, ordinal_S=ordinal_S)


def _ordinals(filed: Encoded, shown: Encoded, order: Sequence[int], sizes: Sequence[int]) -> Tensor | None:
    """The file's ordinal of each target that is shown, -1 elsewhere; None where these are not the file's targets.

    Args:
        sizes: number of targets of each pair's answer, in the order of the file.
    """
    filed_N, shown_N = _targets(filed), _targets(shown)
    edges = list(pairwise(np.cumsum([0, *sizes]).tolist()))
    place_N = torch.cat([torch.arange(*edges[pair]) for pair in order])
    if not len(place_N) == len(filed_N) == len(shown_N) or not torch.equal(filed_N[place_N], shown_N):
        return None
    ordinal_S = torch.full_like(shown.ordinal_S, -1)
    ordinal_S[shown.kind_S == Kind.TARGET] = place_N
    return ordinal_S


def _targets(row: Encoded) -> Tensor:
    return row.labels_S[row.kind_S == Kind.TARGET]


def _pairs(sample: Sample) -> list[tuple[Turn, Turn]]:
    """Questions with their answers."""
    turns = [turn for turn in sample.turns if turn.role != "system"]
    return list(zip(turns[::2], turns[1::2], strict=True))
