"""Families whose language model is a published one: their adapter's common part, and what it is made of.

Legend: N scored targets, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Protocol, TypeVar

import torch
from transformers import AutoModelForCausalLM

from harness.common.errors import DataError, EnvironmentProblem
from harness.common.hashing import digest
from harness.config.weight_files import missing_weights
from harness.data.conversion import RefusedSamples, reason
from harness.data.processor import Processor
from harness.models.checkpoint_files import fingerprint, weight_files
from harness.models.device import computes_bfloat16
from harness.models.forward import scored_forward
from regate.types import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch, Sample
    from harness.data.sources import DataSet
    from harness.models.adapter import DecoderShape, ParameterGroup
    from harness.models.artifacts import Toy
    from regate.types import Decision

_NAMED: Final = 5
"""Samples that are named."""


class PretrainedFiles(Protocol):
    """Where a model's files are."""

    @property
    def language_model(self) -> Path:
        """Folder of the language model that the student started from, with its tokenizer."""
        ...

    def weights(self) -> list[Path]:
        """Every file of weights, in a fixed order."""
        ...


class LengthLimited(Processor, Protocol):
    """A processor that cuts long conversations."""

    @property
    def max_length(self) -> int: ...

    def check(self, sample: Sample) -> None:
        """What can be said of a conversation without a tokenizer; DataError where it cannot be used."""
        ...

    def tokens(self, sample: Sample) -> int:
        """What `max_length` limits, before anything is cut."""
        ...


Files = TypeVar("Files", bound=PretrainedFiles)


class PretrainedAdapter(ABC, Generic[Files]):
    """Weights of the user, or the family's own classes at toy size with weights made here.

    A subclass says where the files are, and how the model is built, saved and measured. What it gets: which files are
    missing, the check of all conversations before anything is computed, the fingerprints, and the teacher.

    Args:
        data: the opened data set; without it the model can be loaded but a toy one not made.
    """

    frame_rule: FrameRule
    toy: ClassVar[Toy | None] = None
    tells_places: ClassVar[bool] = False
    """Whether the model is one of this package's classes; see `scored_forward`."""

    @property
    def tells_grids(self) -> bool:
        """Not unless a family says so."""
        return False

    def __init__(self, recipe: Recipe, data: DataSet | None) -> None:
        self.recipe = recipe
        self.data = data
        self.files = self.locate()

    @abstractmethod
    def locate(self) -> Files:
        """Where the recipe's files are. Nothing is read."""

    @abstractmethod
    def processor(self) -> LengthLimited: ...

    @abstractmethod
    def student(self) -> nn.Module: ...

    @abstractmethod
    def outline(self) -> nn.Module: ...

    def shard_units(self, student: nn.Module) -> Sequence[nn.Module]:
        """None: clips of different lengths, or pictures and videos, go through the vision side one by one."""
        del student
        return ()

    def parameter_groups(self, student: nn.Module) -> Sequence[ParameterGroup]:
        """None by default: all that is trained shares one learning rate."""
        del student
        return ()

    @abstractmethod
    def shape(self) -> DecoderShape: ...

    @abstractmethod
    def save(self, model: nn.Module, directory: Path) -> None: ...

    @abstractmethod
    def load(self, directory: Path) -> nn.Module: ...

    def announce_files(self, progress: Progress) -> None:
        """What the user is told of the files once they are all there; nothing by default."""

    def announce_conversations(self, data: DataSet, progress: Progress) -> None:
        """What the user is told of the conversations beside `check_lengths`. Nothing by default."""

    @property
    def name(self) -> str:
        return self.recipe.model.adapter

    @property
    def generated(self) -> bool:
        """Whether the weights are made here."""
        return self.recipe.model.generated

    def missing(self) -> list[str]:
        if self.generated:
            return self._toy().folder(self.recipe).missing()
        return missing_weights(self.recipe)

    def require(self) -> None:
        """Raises:
        EnvironmentProblem: naming the files that are missing."""
        lines = self.missing()
        if lines:
            named = "\n".join(f"  {line}" for line in lines)
            raise EnvironmentProblem(f"{self.recipe.name}: weights are missing\n{named}")

    def needs_check(self) -> bool:
        if self.generated or self.data is None or self.missing():
            return False
        return not self._marker(self.data).exists()

    def prepare(self, progress: Progress) -> None:
        """Make a toy model's files, and check every conversation before anything is computed.

        Raises:
            EnvironmentProblem: weights are missing, or those of something else.
            RefusedSamples: conversations cannot be encoded; each of them is named.
        """
        if self.generated:
            if self.data is None:
                raise EnvironmentProblem("the toy model is made from the data", hint="run `harness prepare`")
            self._toy().make(self.recipe, self.data, progress)
        self.require()
        if not self.generated:
            self.announce_files(progress)
        if self.data is not None:
            check_lengths(self.recipe.name, self.data, self.processor(), progress)
            self.announce_conversations(self.data, progress)
            if not self.generated:
                mark_checked(self._marker(self.data))

    @property
    def weights_fingerprint(self) -> str:
        return fingerprint(self.files.weights())

    @property
    def teacher_fingerprint(self) -> str:
        return fingerprint(self.teacher_files())

    def weight_files(self) -> list[Path]:
        return self.files.weights()

    def teacher_files(self) -> list[Path]:
        return weight_files(self._teacher_folder())

    def teacher(self) -> nn.Module:
        """The language model alone, without what was trained beside it."""
        self.require()
        return load_teacher(self.recipe, self._teacher_folder())

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision, tells_places=self.tells_places)

    def _teacher_folder(self) -> Path:
        """The student's own language model, or what `gate.reference.model` names below paths.weights."""
        gate = self.recipe.gate
        other = None if gate is None else gate.reference.model
        return self.files.language_model if other is None else Path(self.recipe.paths.weights) / other

    def _toy(self) -> Toy:
        assert self.toy is not None
        return self.toy

    def _marker(self, data: DataSet) -> Path:
        return lengths_checked_marker(self.recipe, data, self.processor(), self.weights_fingerprint)


def load_teacher(recipe: Recipe, folder: Path) -> nn.Module:
    """A language model, frozen; in bfloat16 where the recipe asks for it and the GPU computes in it."""
    gate = recipe.gate
    half = gate is not None and gate.reference.dtype == "bfloat16" and computes_bfloat16()
    dtype = torch.bfloat16 if half else torch.float32
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    return model.eval().requires_grad_(False)


def check_lengths(name: str, data: DataSet, processor: LengthLimited, progress: Progress) -> None:
    """Encode what may be too long, and let the processor check the rest; say what will be cut.

    Raises:
        RefusedSamples: conversations cannot be used; each of them is named.
    """
    limit = processor.max_length
    cut: list[str] = []
    lost: list[str] = []
    refused: list[tuple[str, str]] = []
    with progress.task(f"check conversations {name}", len(data.samples)) as advance:
        for done, sample in enumerate(data.samples, start=1):
            try:
                processor.check(sample)
                if _may_be_long(sample, limit) and processor.tokens(sample) > limit:
                    trains = bool((processor.encode(sample, None).kind_S == Kind.TARGET).any())
                    (cut if trains else lost).append(sample.key)
            except DataError as error:
                refused.append((sample.key, reason(sample.key, error)))
            if done % 1000 == 0 or done == len(data.samples):
                advance(done)
    total = len(data.samples)
    if refused:
        raise RefusedSamples(tuple(refused), total)
    if cut:
        progress.say(
            f"{len(cut)} of {total} samples are longer than model.max_length {limit} tokens and are cut there: "
            f"{first_few(cut)}"
        )
    if lost:
        progress.say(
            f"{len(lost)} of {total} samples have no answer within model.max_length {limit} tokens and train "
            f"nothing: {first_few(lost)}"
        )


def lengths_checked_marker(recipe: Recipe, data: DataSet, processor: Processor, weights: str) -> Path:
    """The file that says that these data were checked with this processor and these weights; runs share it."""
    key = digest({"data": data.fingerprint, "processor": processor.fingerprint, "weights": weights})
    return Path(recipe.paths.stores) / f"looked-at-{key[:16]}.json"


def mark_checked(marker: Path) -> None:
    """The check came to its end, so it is not repeated."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text('{"schema": 1}\n')


def first_few(keys: Sequence[str]) -> str:
    """The first few, and how many more."""
    return ", ".join(keys[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _may_be_long(sample: Sample, limit: int) -> bool:
    """A token of words is at least one byte; the template adds a few to every turn."""
    most = sum(len(turn.text.encode()) + 16 for turn in sample.turns) + 64
    return most > limit
