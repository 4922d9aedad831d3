"""The recipe: what a run is asked to do, as frozen models that know every key.

A recipe is data. Nothing in it names code; a model, a data source or a benchmark is one of a closed list, and
an unknown key is an error. The gate's own keys are those of `regate.config.GateConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.common.hashing import digest
from harness.config.model import Model  # noqa: TC001 - pydantic reads it
from harness.config.section import Strict
from regate.config import GateConfig, ReferenceConfig

SCHEMA_VERSION = 1
Fraction = Annotated[float, Field(gt=0, le=1)]

# --- data ------------------------------------------------------------------------------------------------


class ShapesData(Strict):
    """Rendered clips of moving shapes; made on the spot by `harness data make shapes`."""

    source: Literal["shapes"]
    train_clips: PositiveInt = 2000
    test_clips: PositiveInt = 1200
    stage_clips: PositiveInt = 3000
    """Other clips, for the vision tower's and the projector's own training."""
    frames: PositiveInt = 8
    size: PositiveInt = 64
    """Pixels, width and height."""
    seed: NonNegativeInt | None = None
    """None takes the recipe's seed."""
    damaged: Literal["refuse", "exclude"] = "refuse"


class LlavaData(Strict):
    """A file in the LLaVA / Video-ChatGPT conversation format and the folder of its media."""

    source: Literal["llava"]
    annotations: tuple[str, ...]
    """Relative to paths.data."""
    media: str
    frames: PositiveInt = 16
    samples: PositiveInt | None = None
    """How many samples the paper or the data card states; `plan` uses it while the files are not there."""
    targets_per_sample: PositiveFloat | None = None
    """Likewise, mean number of targets of a sample."""
    damaged: Literal["refuse", "exclude"] = "refuse"


class Annotation(Strict):
    """A file of annotations and the folder of its media."""

    file: str
    """Relative to paths.data."""
    media: str = "."
    """Relative to data.media."""


class Subset(Strict):
    """A part of the data, drawn by the hash of each sample's id: of two sizes, the smaller is within the larger."""

    size: PositiveInt
    unit: Literal["samples", "pairs"] = "samples"
    """pairs: questions with their answers, of which a sample of VideoChat2-IT has one or several."""
    seed: NonNegativeInt = 0


class VideoChat2Data(Strict):
    """VideoChat2-IT: one train.json for each source set, and the folders of their media."""

    source: Literal["videochat2_it"]
    annotations: tuple[Annotation, ...]
    media: str = "."
    """The folder that the media folders of the annotations stand in, relative to paths.data."""
    subset: Subset | None = None
    frames: PositiveInt = 16
    frame_sampling: Literal["uniform", "random"] = "uniform"
    """Frames of a video in training: the middle of each of `frames` parts, or one drawn from each part in each epoch
    (the official `rand`)."""
    shuffle_turns: bool = False
    """Show the pairs of a sample in another order in each epoch, the instruction being that of the pair shown first
    (official). The stores keep the order of the file."""
    augment: Literal["none", "official"] = "none"
    """official: a random crop, resized to 224 pixels, and a random flip, the same for all frames of a clip."""
    batches: Literal["one_medium", "mixed"] = "one_medium"
    """one_medium: the samples of an optimizer step are all videos or all images (official)."""
    samples: PositiveInt | None = None
    targets_per_sample: PositiveFloat | None = None
    damaged: Literal["refuse", "exclude"] = "refuse"


Data = Annotated[ShapesData | LlavaData | VideoChat2Data, Field(discriminator="source")]

# --- training and evaluation -----------------------------------------------------------------------------


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
    loss_norm: Literal["global_tokens", "micro_batch"] = "global_tokens"
    """Mean over the scored targets of the global batch, or of each micro-batch (as the official trainers do).
    It belongs to both arms, so it stands here and not under `gate`."""
    gradient_checkpointing: bool = False
    workers: NonNegativeInt = 1
    """Data loading processes; 0 loads in the training process."""
    checkpoint_every: PositiveInt = 500
    """Optimizer steps between two checkpoints that a killed run resumes from."""


class EvaluateRecipe(Strict):
    """What is scored, and at which parts of the training."""

    benchmarks: tuple[str, ...]
    at: tuple[Fraction, ...] = (1.0,)
    batch: PositiveInt = 64
    limit: PositiveInt | None = None
    """Items of each task; None takes all."""
    prompts: Literal["task", "paper"] = "task"
    """How the published benchmarks ask: as lmms-eval's task does, or with the paper's response formats (Table 6)."""


class Devices(Strict):
    """What a run computes on. Not part of its identity: the same run may go on elsewhere, and its record tells."""

    processes: PositiveInt | None = None
    """Training processes; None takes one for each visible GPU, and one where there is none."""
    sharding: Literal["none", "full"] = "none"
    """none: every process holds the whole model. full: weights, gradients and the optimizer's state are spread over
    the processes (FSDP)."""
    threads: PositiveInt | None = None
    """Computing threads of a process on the CPU; None takes what torch chooses. The number changes the order of
    sums, so runs that are compared take the same."""


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


class Track(Strict):
    """MLflow mirrors the record; a run survives a server that is down."""

    mlflow: bool = True
    uri: str | None = None
    """None is a SQLite file in paths.results."""
    experiment: str = "regate"


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

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run: everything but where it runs and lies, words and tracking."""
        aside = {"devices", "paths", "track", "suite", "description", "hardware"}
        return self.model_dump(mode="json", exclude=aside)

    @property
    def run_id(self) -> str:
        """`name-` and eight hex digits of the identity: the same recipe always resumes the same run."""
        return f"{self.name}-{digest(self.identity())[:8]}"


__all__ = [
    "SCHEMA_VERSION",
    "Annotation",
    "Data",
    "Devices",
    "EvaluateRecipe",
    "GateConfig",
    "LlavaData",
    "Paths",
    "Recipe",
    "ReferenceConfig",
    "ShapesData",
    "Subset",
    "SuiteMark",
    "TrainRecipe",
    "VideoChat2Data",
]
