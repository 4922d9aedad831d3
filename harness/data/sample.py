"""Samples, questions and batches: what a data source gives and what a processor makes of it.

Legend: B rows, S expanded length, T frames, H and W pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from harness.data.loading.frames import FrameRule
    from harness.data.loading.pixels import ColourTable
    from regate.types import Grid, Layout


@dataclass(frozen=True, slots=True)
class Media:
    """A file that a sample refers to, with optional time bounds in seconds.

    `sha256` is that of the file when the data set was checked: a file that changed since is damaged. `max_tiles` is
    the most tiles that a picture is cut into, where its annotation says so.
    """

    kind: Literal["video", "image"]
    path: Path
    start: float | None = None
    end: float | None = None
    sha256: str | None = None
    max_tiles: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance. `<media:0>` in the text marks where the sample's first media stands, and so on."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One training conversation, the same in every epoch and on every machine.

    Attributes:
        id: stable 63-bit id, from the source's name and the record's own key.
        key: the record's own key, for messages.
        openings: for each question, the instruction to begin with where that question is asked first; empty where
            the system turn, if there is one, holds whatever the order. A question may be empty text behind its
            media tag: a caption, which no question asks for.
        spans: (turn index, first character, end character, class) of words that only the picture tells, where
            the source knows them; empty elsewhere. Used for analysis only, never for training.
    """

    id: int
    key: str
    media: tuple[Media, ...]
    turns: tuple[Turn, ...]
    spans: tuple[tuple[int, int, int, str], ...] = ()
    openings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingPolicy:
    """How a data source's samples are shown in training; none of it changes a sample's targets or their ordinals.

    Attributes:
        rule: which frames of a video (`harness.data.loading.frames`).
        shuffle_turns: another order of the pairs in each epoch.
        augment: a random crop and flip of the pictures.
        least: fewest frames of a video where the rule is `random`, whose number is drawn as well; None draws none.
    """

    rule: FrameRule = "spread"
    shuffle_turns: bool = False
    augment: bool = False
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out multiple-choice item, MVBench style.

    `options` are whole answers, `answer` is the index of the right one.
    """

    key: str
    ability: str
    media: tuple[Media, ...]
    text: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample in expanded length, before padding.

    Attributes:
        input_ids_S: int64; visual positions hold the processor's placeholder id.
        labels_S: int64, -100 where not supervised, not shifted.
        kind_S: uint8, `regate.types.Kind`, never PAD.
        ordinal_S: int64, canonical target ordinal, -1 elsewhere. A processor counts the targets as they stand;
            where the turns are shown in another order than the file's, `harness.data.loading.epoch_view` puts the
            file's
            back.
        pixels: what the vision tower reads (the adapter's own shape, normally T3HW), in bytes where `Batch.colours`
            says what they are to the model; None for a text-only encoding (the teacher's view).
        failed: the media could not be read at run time; every label is -100 then.
        unshuffled: the turns were to be shown in another order and are in that of the file.
        cut: how many targets stood beyond the processor's limit and are not in the row; None if nothing was cut.
        grids: what the visual positions show, in their order; None where the adapter does not say.
        extra: further tensors of the adapter.
    """

    sample_id: int
    input_ids_S: Tensor
    labels_S: Tensor
    kind_S: Tensor
    ordinal_S: Tensor
    pixels: Tensor | None = None
    failed: bool = False
    unshuffled: bool = False
    cut: int | None = None
    grids: tuple[Grid, ...] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: the model's inputs and the layout that the gate decides on.

    Attributes:
        sample_ids_B: int64.
        inputs: keyword arguments of the model: input_ids (BS), attention_mask (BS), pixel_values, ... Those that
            `colours` names are uint8; `model_inputs` has them as the model reads them.
        layout: stays on the CPU.
        failed: ids of the samples whose media could not be read.
        unshuffled: ids of the samples that were to be shown in another order and are in that of the file, since
            another order would have changed their targets (a conversation that is cut off).
        cut: the targets that were cut off, one number for each row of which the processor cut something.
        colours: of inputs that hold pixels in bytes, what each value is to the model.
    """

    sample_ids_B: Tensor
    inputs: dict[str, Any]
    layout: Layout
    failed: tuple[int, ...] = ()
    unshuffled: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()
    colours: Mapping[str, ColourTable] = field(default_factory=dict)

    @property
    def input_ids_BS(self) -> Tensor:
        ids: Tensor = self.inputs["input_ids"]
        return ids

    def model_inputs(self, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The model's keyword arguments, pixels normalised on the device where they are.

        Args:
            inputs: those of the batch on another device; None takes them as they are.
        """
        given = self.inputs if inputs is None else inputs
        return {**given, **{name: table.look_up(given[name]) for name, table in self.colours.items()}}

    def pin_memory(self) -> Batch:
        """The batch with its inputs in memory from which a GPU copies without waiting, as torch's loader asks for."""
        return replace(self, inputs={name: _pinned(value) for name, value in self.inputs.items()})


def _pinned(value: Any) -> Any:
    return value.pin_memory() if hasattr(value, "pin_memory") else value


def sample_id(source: str, key: str) -> int:
    """A stable 63-bit id: the first eight bytes of blake2b(source, key), sign bit cleared."""
    raw = hashlib.blake2b(f"{source}\x00{key}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big") >> 1
