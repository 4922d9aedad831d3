"""The recipe: what a run is asked to do, as frozen models that know every key.

A recipe is data. Nothing in it names code; a model, a data source or a benchmark is one of a closed list, and
an unknown key is an error. The gate's own keys are those of `regate.config.GateConfig`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from regate.config import GateConfig, ReferenceConfig

SCHEMA_VERSION = 1
Fraction = Annotated[float, Field(gt=0, le=1)]


class Strict(BaseModel):
    """Frozen, and refuses what it does not know; numbers are numbers and strings are strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


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

# --- model -----------------------------------------------------------------------------------------------


class StageRecipe(Strict):
    """One of the tiny model's own pre-training stages."""

    clips: PositiveInt | None = None
    """How many of the stage clips it sees; None for a stage without video."""
    steps: PositiveInt
    batch: PositiveInt = 32
    lr: PositiveFloat = 2e-3


class TinyModel(Strict):
    """A small vision tower, projector and Qwen2 decoder, made in the stages that the real models went through."""

    adapter: Literal["tiny"]
    hidden: PositiveInt = 128
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    tower: StageRecipe = StageRecipe(clips=800, steps=300, lr=1e-2)
    text: StageRecipe = StageRecipe(steps=200, lr=2e-3)
    align: StageRecipe = StageRecipe(clips=3000, steps=400, lr=2e-3)


Connector = Literal["stc_connector_v35", "stc_connector", "stp_connector", "linear", "mlp2x_gelu"]


class VideoLLaMA2Model(Strict):
    """VideoLLaMA2.1: SigLIP, STC connector, Qwen2-7B-Instruct."""

    adapter: Literal["videollama2"]
    language_model: str
    vision_tower: str
    projector: str | None = None
    """All relative to paths.weights. None starts an untrained connector."""
    projector_type: Connector = "stc_connector_v35"
    """stc_connector_v35 is VideoLLaMA2.1's, stc_connector VideoLLaMA2.0's; their files look alike."""
    image_aspect_ratio: Literal["pad", "square"] = "pad"
    max_length: PositiveInt = 2048
    """Tokens of a conversation, its video counted as one; what is beyond is cut off, never the video."""


class TinyVideoLLaMA2Model(Strict):
    """VideoLLaMA2's own classes at toy size, with generated weights; made by `harness prepare`."""

    adapter: Literal["tiny_videollama2"]
    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    vocabulary: Annotated[int, Field(ge=300)] = 512
    """Entries of the byte-level tokenizer, which is trained on the conversations."""
    tower_hidden: PositiveInt = 32
    tower_layers: PositiveInt = 3
    patch: PositiveInt = 16
    """Pixels along a side of the vision tower's patches; of 64 by 64 pixels in all."""
    projector_type: Connector = "stc_connector_v35"
    image_aspect_ratio: Literal["pad", "square"] = "pad"
    max_length: PositiveInt = 2048


class LoraRecipe(Strict):
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: NonNegativeFloat = 0.1


class VideoChat2Model(Strict):
    """VideoChat2 (Mistral): UMT-L, QFormer, Mistral-7B-Instruct-v0.2 with LoRA.

    It starts either where the official stage 3 does, from the files of stages 1 and 2, or from a finished stage 3.
    """

    adapter: Literal["videochat2"]
    language_model: str
    qformer_tokenizer: str = "bert-base-uncased"
    """Words and sizes of the QFormer."""
    stage1: str | None = None
    """Holds the text half of the QFormer, which the stage-2 file lacks."""
    stage2: str | None = None
    stage3: str | None = None
    """All relative to paths.weights."""
    lora: LoraRecipe = LoraRecipe()
    bos_as_ones: bool = True
    """The official training writes ones into the first embedding of every row, in place of that of `<s>`."""
    colours: Literal["imagenet", "clip"] = "imagenet"
    """What pictures are normalised by: the official training uses ImageNet's, its notebooks evaluate with CLIP's."""
    hd: bool = False
    """The HD variant: a clip as up to six tiles and the whole picture. It is evaluated, not trained."""
    merged: bool = False
    """Evaluation folds the adapters into the language model's weights."""
    vision_checkpointing: NonNegativeInt = 18
    """Blocks of the vision transformer that are computed again in the backward pass, to save memory."""
    max_length: PositiveInt = 512
    """Most positions beside the visual ones, and most tokens of an instruction; what is beyond is cut off."""


class TinyVideoChat2Model(Strict):
    """VideoChat2's own classes at toy size, with generated weights; made by `harness prepare`."""

    adapter: Literal["tiny_videochat2"]
    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    vocabulary: Annotated[int, Field(ge=512)] = 768
    """Entries of the tokenizer, which is trained on the conversations; 259 are bytes and markers."""
    vision_hidden: PositiveInt = 32
    vision_layers: PositiveInt = 2
    patch: PositiveInt = 16
    """Pixels along a side of the vision transformer's patches; of 64 by 64 pixels in all."""
    qformer_hidden: PositiveInt = 32
    qformer_layers: PositiveInt = 2
    queries: PositiveInt = 8
    """Of stage 1, and as many more of stage 2: a clip is twice as many visual tokens."""
    lora: LoraRecipe = LoraRecipe(rank=4, alpha=8)
    bos_as_ones: bool = True
    merged: bool = False
    max_length: PositiveInt = 512


Model = Annotated[
    TinyModel | TinyVideoLLaMA2Model | TinyVideoChat2Model | VideoLLaMA2Model | VideoChat2Model,
    Field(discriminator="adapter"),
]

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


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a plain value: the fingerprint used for every made thing."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


__all__ = [
    "SCHEMA_VERSION",
    "Annotation",
    "Data",
    "Devices",
    "EvaluateRecipe",
    "GateConfig",
    "LlavaData",
    "Model",
    "Paths",
    "Recipe",
    "ReferenceConfig",
    "ShapesData",
    "StageRecipe",
    "Subset",
    "SuiteMark",
    "TinyModel",
    "TinyVideoChat2Model",
    "TinyVideoLLaMA2Model",
    "TrainRecipe",
    "VideoChat2Data",
    "VideoChat2Model",
    "VideoLLaMA2Model",
    "digest",
]
