"""The recipe: what a run is asked to do, as frozen models that know every key.

A recipe is data. Nothing in it names code; a model, a data source or a benchmark is one of a closed list, and
an unknown key is an error. The gate's own keys are those of `regate.config.GateConfig`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from harness.benchmarks.question_file import QuestionFile
from harness.common.hashing import digest
from harness.config.data import Data  # noqa: TC001 - pydantic reads it
from harness.config.model import Model  # noqa: TC001 - pydantic reads it
from harness.config.section import Strict
from regate.config import GateConfig, ReferenceConfig
from regate.selection_file import SelectionFile

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA_VERSION = 1
_ROOT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
Fraction = Annotated[float, Field(gt=0, le=1)]
Few = Annotated[int, Field(ge=1, le=4096)]
"""Of processes or threads: more than any machine has is a slip of the pen that would bring it down."""

# --- training and evaluation -----------------------------------------------------------------------------


def _none(value: Any) -> bool:
    """Left out of the identity at its default, so that runs from before there was the key keep theirs."""
    return value is None


def _scored(value: Any) -> bool:
    """As `_none`."""
    return bool(value == "scored")


def _all(value: Any) -> bool:
    """As `_none`."""
    return bool(value == "all")


def _drawn(value: Any) -> bool:
    """As `_none`."""
    return bool(value == "drawn")


class OptimizerRecipe(Strict):
    """AdamW with a cosine schedule."""

    lr: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.03
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Floor of the cosine, and start of the warm-up, as a part of lr."""
    max_grad_norm: PositiveFloat | None = 1.0


class TrainRecipe(Strict):
    """Length is `steps` (optimizer steps) or `epochs`; exactly one of them."""

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    global_batch: PositiveInt
    """Samples of an optimizer step, over all processes and accumulation."""
    micro_batch: PositiveInt
    """Samples of one forward pass of one process."""
    optimizer: OptimizerRecipe
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the device computes in it, else float32."""
    loss_norm: Literal["global_tokens", "micro_batch", "token", "sample", "square"] = "global_tokens"
    """Mean over the scored targets of the global batch, or of each micro-batch (as the official trainers do), or
    InternVL's loss_reduction: a target of a sample with n scored ones weighs 1, 1/n or 1/sqrt(n), and a micro-batch
    is divided by the mean over processes of its weights. It belongs to both arms, so it stands here and not under
    `gate`."""
    last_layer: Literal["scored", "all"] = Field(default="scored", exclude_if=_scored)
    """Positions for which the decoder's last layer computes queries, output and MLP: those that predict a scored
    target, since no other one is read (exact; packed rows), or all of them. It belongs to both arms."""
    gradient_checkpointing: bool = False
    """Compute layers a second time in the backward pass in place of keeping what they computed: less memory, the
    same gradients."""
    recompute: Literal["auto", "all"] | NonNegativeInt = Field(default="all", exclude_if=_all)
    """With gradient_checkpointing, how many of the decoder's layers, counted from the first. auto: as few as fit into
    the GPU by the plan's account of memory; all where there is no GPU."""
    rows: Literal["packed", "padded"] | None = Field(default=None, exclude_if=_none)
    """Samples of a micro-batch one after the other without padding, or each in a row padded to the longest. None
    packs them where the model can be packed, and says where it cannot."""
    cut: Literal["drawn", "level"] = Field(default="drawn", exclude_if=_drawn)
    """How a global batch is cut into micro-batches: neighbours in the order that was drawn, or such that all
    micro-batches have like numbers of positions. level is for loss_norm: global_tokens, whose mean does not depend on
    it; the others are means over micro-batches."""
    workers: Annotated[int, Field(ge=0, le=1024)] = 1
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: PositiveInt = 500
    """Optimizer steps between two checkpoints that a killed run resumes from."""

    @model_validator(mode="after")
    def _one_mean(self) -> TrainRecipe:
        if self.cut == "level" and self.loss_norm != "global_tokens":
            raise ValueError(
                f"cut: level puts other samples together, and loss_norm: {self.loss_norm} is a mean over "
                "micro-batches: it would be another objective; take loss_norm: global_tokens, or leave it out"
            )
        return self


class EvaluateRecipe(Strict):
    """What is scored, and at which parts of the training."""

    benchmarks: tuple[str | QuestionFile, ...]
    """By name, or questions of one's own by their file."""
    at: tuple[Fraction, ...] = (1.0,)
    batch: PositiveInt = 64
    limit: PositiveInt | None = None
    """Items of each task; None takes all."""
    prompts: Literal["task", "paper"] = "task"
    """How the published benchmarks ask: as lmms-eval's task does, or with the paper's response formats (Table 6)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What a kept model's weights, float32 on the disk, are held in while it is scored. auto: bfloat16 on a GPU where
    `train.precision` computes in it, float32 elsewhere. In bfloat16 they take half of the memory and need no cast in
    each pass; the residual stream is bfloat16, too, so that losses are not the same to the bit."""

    @model_validator(mode="after")
    def _different_names(self) -> EvaluateRecipe:
        files: dict[str, str] = {}
        for entry in self.files:
            if entry.name in files:
                raise ValueError(f"benchmarks has {entry.name} twice: {files[entry.name]} and {entry.file}")
            files[entry.name] = entry.file
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The benchmarks' names, in results and tables."""
        return tuple(entry if isinstance(entry, str) else entry.name for entry in self.benchmarks)

    @property
    def files(self) -> tuple[QuestionFile, ...]:
        """The benchmarks that are files of the user's own."""
        return tuple(entry for entry in self.benchmarks if isinstance(entry, QuestionFile))

    def identity(self) -> dict[str, Any]:
        """What of it makes two runs the same run."""
        entries = [entry if isinstance(entry, str) else entry.identity() for entry in self.benchmarks]
        added = {"dtype"} if self.dtype == "auto" else set()  # as ADDED_KEYS
        return {**self.model_dump(mode="json", exclude=added), "benchmarks": entries}


Sharding = Literal["none", "zero1", "zero2", "node", "full"]

INSTALL_DEEPSPEED: Final = 'pip install wheel && pip install --no-build-isolation "regate[deepspeed]"'
"""It is built from source, with the torch that is there."""


class Devices(Strict):
    """What a run computes on. Not part of its identity: the same run may go on elsewhere, and its record tells."""

    processes: Few | None = None
    """Training processes of each node; None takes one for each visible GPU, and one where there is none."""
    sharding: Sharding = "none"
    """none: every process holds the whole model. full: weights, gradients and the optimizer's state are spread over
    the processes (FSDP). node: over those of each machine, and every machine holds a whole (HSDP). zero1, zero2:
    every process holds all weights, and by DeepSpeed a part of the optimizer's state (1), or of the gradients too
    (2); one process alone has the whole."""
    offload: bool = False
    """With sharding: the weights, gradients and optimizer's state that a GPU would hold lie in the machine's memory,
    and AdamW computes on the CPU."""
    reduce: Literal["micro_batch", "step"] = "micro_batch"
    """With sharding: node: machines add their gradients after every micro-batch, or once a step, for which each GPU
    keeps its part of them in float32 a second time."""
    shard_teacher: bool = False
    """Spread the teacher of the reference losses over the processes of each machine: for one that is larger than a
    GPU. The losses are the same."""
    threads: Few | None = None
    """Computing threads of a process on the CPU; None takes what torch chooses. The number changes the order of
    sums, so runs that are compared take the same."""
    checkpoint_minutes: PositiveFloat | None = 30.0
    """A checkpoint to resume from at least this often, beside those of train.checkpoint_every; None: those alone."""
    tower_cache_gb: NonNegativeFloat = 2.0
    """Most disk for what a frozen vision tower says of the clips, computed once for all runs that share data and
    weights, where every epoch shows the same frames and the losses stay the same to the bit (a CPU that computes in
    float32); `plan` says how large it is. 0 keeps none."""
    frame_cache_gb: NonNegativeFloat = 0.0
    """Most disk below paths.stores for the frames of evaluated videos, decoded and resized once for all runs and
    checkpoints that are asked about them: 7 MB a clip of 16 frames of 384 pixels. For models that read frames as
    squares of one size (VideoLLaMA2, VideoChat2 without HD, InternVL); answers are the same. 0 keeps none."""
    keep_resume: bool = False
    """Keep the checkpoints to resume from once the record is written; the kept models stay in any case."""
    balance: bool = True
    """Deal the micro-batches of a global batch to the processes so that all have like numbers of positions to
    execute, where each has several: it changes nothing but who computes what. The lengths are counted once, when the
    run is prepared. false: in turn."""
    timeout_minutes: Annotated[float, Field(gt=0, le=525_600)] = 60.0
    """How long a training process waits for another one; then the run ends and says which one hangs."""
    restarts: NonNegativeInt = 0
    """How often processes are started again after one was killed, or its GPU or network failed, if the run has come
    further since the last time."""

    @property
    def in_parts(self) -> bool:
        """Whether a process holds a part of every trained weight alone."""
        return self.sharding in ("node", "full")

    @property
    def by_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine takes the steps."""
        return self.sharding in ("zero1", "zero2")

    @model_validator(mode="after")
    def _belong_together(self) -> Devices:
        if self.offload and not self.in_parts:
            raise ValueError("offload is about weights in parts: set sharding to full (with one process too) or node")
        if self.reduce == "step" and self.sharding != "node":
            raise ValueError(f"reduce: step is about machines that each hold a whole: sharding is {self.sharding}")
        return self


class SuiteMark(Strict):
    """Which arm of which suite a run is; written by the suite, and no part of the run's identity."""

    name: str
    arm: str


class Paths(Strict):
    """Where things are; relative paths start at the working directory. Not part of a run's identity."""

    data: str = "workspace/data"
    weights: str = "workspace/weights"
    stores: str = "workspace/stores"
    results: str = "results"
    media_roots: dict[str, str] = Field(default_factory=dict)
    """Folders beside data.media that annotations may name files in, by absolute or `../` paths. A data set knows such
    a file as /NAME/REST, so it is the same wherever the folder lies."""

    @property
    def frames(self) -> Path:
        """Of evaluated videos, of all models: see `devices.frame_cache_gb`."""
        return Path(self.stores) / "frames"

    @field_validator("media_roots")
    @classmethod
    def _plain_roots(cls, roots: dict[str, str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for name, folder in roots.items():
            if not _ROOT_NAME.fullmatch(name):
                raise ValueError(f"a name has letters, digits, _ and -, at most 40 of them, and this is {name!r:.60}")
            if not folder or "\0" in folder or folder.startswith("~"):
                raise ValueError(f"{name} names no folder: {folder!r:.60} (~ stands for no folder here)")
            whole = os.path.abspath(folder)  # noqa: PTH100 - a link is not followed
            if whole in names:
                raise ValueError(f"{names[whole]} and {name} are both {folder}; keep one of them")
            names[whole] = name
        return roots


class Track(Strict):
    """MLflow mirrors the record; a run survives a server that is down."""

    mlflow: bool = True
    uri: str | None = None
    """None is a SQLite file in paths.results."""
    experiment: str = "regate"


ADDED_KEYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gate": {
        "from_layer": None,
        "deep": None,
        "visual": None,
        "ramp": None,
        "keep_below": [],
        "distil": None,
        "layer_keep": None,
    },
    "gate.visual": {"from_layer": None},
    "gate.reference": {"pictures": False},
}
"""Section -> keys that came after the first recorded runs, with their defaults: at its default a key is left out of a
run's identity, so that those runs keep their ids."""


class Recipe(Strict):
    """A whole run. Two recipes of a baseline / ReGATE pair differ in `name` and `gate` only."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=80)]
    description: str = ""
    seed: NonNegativeInt = 0
    model: Model
    data: Data
    train: TrainRecipe
    gate: GateConfig | None
    evaluate: EvaluateRecipe
    hardware: str | None = None
    """What the run is meant for, in words; printed by `plan`."""
    devices: Devices = Devices()
    paths: Paths = Paths()
    track: Track = Track()
    suite: SuiteMark | None = None

    @model_validator(mode="after")
    def _one_half_precision(self) -> Recipe:
        if self.evaluate.dtype == "bfloat16" and self.train.precision == "float16":
            raise ValueError("evaluate.dtype is bfloat16 and train.precision float16: leave evaluate.dtype out")
        return self

    @model_validator(mode="after")
    def _texts_that_stay(self) -> Recipe:
        """What is kept of a sample's text must be of the text that is trained on."""
        if getattr(self.data, "least_frames", None) is None or self.gate is None:
            return self
        kept = "the reference losses are computed once" if self.gate.needs_reference else None
        if self.gate.candidates == "text":
            kept = "gate.candidates text keeps a loss for each token by its place"
        if kept is not None:
            raise ValueError(
                "data.least_frames draws the number of a video's frames anew in each epoch, a line of its text names "
                f"each frame, and {kept}; leave least_frames out, or take a gate.selection without a teacher"
            )
        return self

    @model_validator(mode="after")
    def _teacher_with_pictures(self) -> Recipe:
        """What the second pass of `gate.reference.pictures` cannot do."""
        if self.gate is None or not self.gate.reference.pictures:
            return self
        if self.devices.shard_teacher:
            raise ValueError(
                "gate.reference.pictures reads a second model whole on each device; "
                "leave devices.shard_teacher out"
            )
        if not self.gate.needs_reference:
            raise ValueError(
                f"gate.reference.pictures: gate.selection {self.gate.selection_name} reads no reference losses; take "
                "regate or reference, or leave pictures out"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: everything but devices, folders, descriptions and tracking."""
        excluded = {"devices", "paths", "track", "suite", "description", "hardware"}
        identity = self.model_dump(mode="json", exclude=excluded)
        if self.gate is not None and isinstance(self.gate.selection, SelectionFile):
            # The folder of a rule does not make another run of it; its name stays for people, its hash for the id.
            identity["gate"]["selection"]["file"] = PurePath(self.gate.selection.file).name
        for path, keys in ADDED_KEYS.items():
            section: Any = identity
            for part in path.split("."):
                section = None if section is None else section.get(part)
            for key, default in keys.items():
                if section is not None and section.get(key, default) == default:
                    section.pop(key, None)
        identity["evaluate"] = self.evaluate.identity()
        return identity

    @property
    def run_id(self) -> str:
        """`name-` and eight hex digits of the identity: the same recipe always resumes the same run."""
        return f"{self.name}-{digest(self.identity())[:8]}"


__all__ = [
    "SCHEMA_VERSION",
    "Devices",
    "EvaluateRecipe",
    "GateConfig",
    "Paths",
    "Recipe",
    "ReferenceConfig",
    "SuiteMark",
    "TrainRecipe",
]
