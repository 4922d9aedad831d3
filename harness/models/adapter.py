"""What the program asks of a model family.

Legend: B rows, S expanded length, N scored targets, V vocabulary, T frames, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.processor import Processor
    from harness.data.sample import Batch
    from harness.data.sources import DataSet
    from harness.models.flops import Published
    from harness.models.footprint import Footprint
    from regate.types import Decision


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes that the FLOP formula needs; the decoder's own and the fixed cost beside it.

    Attributes:
        trainable_linear: part of the decoder's linear weights that get a weight gradient: 1 for full
            fine-tuning, 0 for LoRA over frozen weights.
        adapter_parameters: LoRA parameters of the decoder (0 without LoRA).
        vision_flops: forward FLOPs of tower and projector for one sample.
        tower_flops: those of it that are a frozen tower's, and are not computed where its features are kept.
        vision_backward: backward FLOPs of the same, as a multiple of vision_flops (0 for a frozen tower).
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    trainable_linear: float = 1.0
    adapter_parameters: int = 0
    vision_flops: float = 0.0
    vision_backward: float = 0.0
    tower_flops: float = 0.0


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """A part of a student whose trained parameters share a learning rate.

    Attributes:
        parameters: of the part by their names in the student, frozen ones too.
        lr: its highest learning rate; None takes that of the recipe's optimizer.
        decayed: names of those that weight decay applies to; None for all but vectors (biases, norms).
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    lr: float | None = None
    decayed: Collection[str] | None = None

    def counts(self) -> dict[str, int]:
        """Parameters in all, and trained ones."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.parameters.values()]
        return {"parameters": sum(n for n, _ in sizes), "trained": sum(n for n, trained in sizes if trained)}


class Adapter(Protocol):
    """A model family: where its parts come from, how it is built, saved and measured."""

    @property
    def name(self) -> str: ...

    @property
    def frame_rule(self) -> FrameRule:
        """Which frames of a clip an evaluation reads; `spread` where the model's own code says nothing else."""
        ...

    @property
    def tells_grids(self) -> bool:
        """Whether its rows say what their visual positions show, which `gate.visual` needs."""
        ...

    def missing(self) -> list[str]:
        """One line a file that is not there, with where it comes from; empty when `student` can run."""
        ...

    def needs_check(self) -> bool:
        """Whether the user's weights were not yet checked together with these data; False where weights are made
        here, and while files are missing."""
        ...

    def prepare(self, progress: Progress) -> None:
        """Make the weights that can be made here; check the user's weights with the conversations, and mark that it
        was done."""
        ...

    @property
    def weights_fingerprint(self) -> str:
        """Hash of the starting weights, for the record."""
        ...

    @property
    def teacher_fingerprint(self) -> str:
        """Hash of the teacher's weights, for the reference store."""
        ...

    def weight_files(self) -> list[Path]:
        """The files of the starting weights, to hold a run to every byte of them; none where each load holds them to
        digests."""
        ...

    def teacher_files(self) -> list[Path]:
        """Those of the teacher, likewise."""
        ...

    def processor(self) -> Processor: ...

    def student(self) -> nn.Module:
        """The transformers model at its starting weights, `requires_grad` set as the recipe trains it."""
        ...

    def outline(self) -> nn.Module:
        """The student's modules on the meta device, without weights: what can be said of a model before a teacher or
        a student is read. Raises what `student` refuses of the recipe."""
        ...

    def parameter_groups(self, student: nn.Module) -> Sequence[ParameterGroup]:
        """The parts of what `student` gave, on this process; empty where all that is trained shares one learning
        rate."""
        ...

    def shard_units(self, student: nn.Module) -> Sequence[nn.Module]:
        """Modules in front of the decoder that a model in parts puts together one by one. Only such as every
        micro-batch calls exactly once, whatever media it has: processes that differ in the number of calls would wait
        for each other for ever. All else in front of the decoder is put together for the whole pass."""
        ...

    def teacher(self) -> nn.Module:
        """The frozen text-only causal LM of Eq. 1."""
        ...

    def shape(self) -> DecoderShape: ...

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        """logits_NV and targets_N of the scored targets; `model`: a `regate.ScoredLM` around the student."""
        ...

    def save(self, model: nn.Module, directory: Path) -> None:
        """An ordinary checkpoint: from_pretrained reads it."""
        ...

    def load(self, directory: Path) -> nn.Module:
        """The model of a checkpoint that `save` wrote, for evaluation."""
        ...


@runtime_checkable
class KeepsTower(Protocol):
    """An adapter whose vision tower is frozen and reads every clip alike, so that what it says can be kept: the model
    takes it as `tower_features` in place of `pixel_values`."""

    def tower_features(self, student: nn.Module, clips: Sequence[Tensor]) -> Tensor:
        """What the tower of `student` says of decoded clips, each uint8 T3HW: [clips, ...], as a training step
        computes it in float32."""
        ...


class Evaluated(Protocol):
    """What of an adapter an evaluation needs; all that a family has for weights that are evaluated as they are."""

    @property
    def name(self) -> str: ...

    @property
    def frame_rule(self) -> FrameRule: ...

    def processor(self) -> Processor: ...

    def load(self, directory: Path) -> nn.Module: ...

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True)
class Family:
    """What the program reaches of a model family. Its code is imported when one of these is called.

    Attributes:
        adapter: of a recipe, with the opened data set or None.
        footprint: of a recipe's model, read without torch.
        full_size: its published model, to count its work by part.
        official: of an evaluation; None where the family's published weights are not evaluated as they are.
    """

    adapter: Callable[[Recipe, DataSet | None], Adapter]
    footprint: Callable[[Recipe], Footprint]
    full_size: Callable[[], Published]
    official: Callable[[EvaluationRecipe], Evaluated] | None = None
