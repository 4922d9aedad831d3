"""What a recipe and an evaluation say of their model: one part of this file for each family.

A family's part holds its section of a recipe, that of an evaluation where its published weights are evaluated as they
are, the files that both need, and the rules between its keys. No torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config.data import ShapesData
from harness.config.plain_data import value_at, whole_at
from harness.config.section import STRICT, Strict
from harness.config.weight_files import SHARDED, TEACHER, Requirement, missing_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from harness.config.plain_data import Finding


class ModelSection(BaseModel):
    """`model:` of a recipe or an evaluation. What is not a key of it, the family says here of itself."""

    model_config = STRICT

    generated: ClassVar[bool] = False
    """Whether `harness prepare` makes the weights; those of all other models are the user's."""
    weight_files: ClassVar[tuple[Requirement, ...]] = ()
    """Files that the user gives, in the order of the keys. A key that is None needs none."""
    weights_beside: ClassVar[tuple[str, ...]] = ()
    """Of an evaluation: keys of folders whose weights the checkpoint does not hold."""

    @classmethod
    def broken_rules(cls, data: Any) -> Iterator[Finding]:
        """Rules between keys that the plain data of a whole recipe break."""
        yield from ()

    def needs(self) -> tuple[Requirement, ...]:
        """`weight_files`, for what the keys of this section say."""
        return self.weight_files

    def missing(self, root: Path) -> list[str]:
        """One line for each file that is needed below `root` and not there, with where it comes from."""
        return missing_files(self, self.needs(), root)


Attention = Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "varlen", "flex"]
ATTENTION_PACKAGES: Final[Mapping[str, tuple[str, str]]] = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
"""Kernels that are no part of torch: the module and the package that pip knows."""


def _automatic(value: Any) -> bool:
    """Left out of the identity at its default, so that runs from before there was the key keep theirs."""
    return bool(value == "auto")


AttentionKey = Annotated[Attention, Field(exclude_if=_automatic)]
"""What computes the decoder's attention in training. auto: the first of flash_attention_3, flash_attention_2 and
varlen that is here, on a GPU in half precision; else sdpa. Another one is used or refused, never replaced."""


# --- tiny ----------------------------------------------------------------------------------------------


class StageRecipe(Strict):
    """One of the tiny model's own pre-training stages."""

    clips: PositiveInt | None = None
    """How many of the stage clips it sees; None for a stage without video."""
    steps: PositiveInt
    batch: PositiveInt = 32
    lr: PositiveFloat = 2e-3


_SIDE_OF_A_CELL: Final = 16
"""Pixels: the tiny tower has four convolutions of stride 2."""


def _two(value: Any) -> bool:
    """Left out of the identity at its default, as `_automatic`."""
    return bool(value == 2)


def _none(value: Any) -> bool:
    """Left out of the identity at its default, as `_automatic`."""
    return value is None


class TinyModel(ModelSection):
    """A small vision tower, projector and Qwen2 decoder, made in the stages that the real models went through."""

    weight_files: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            "decoder",
            ("config.json", "tokenizer.json", SHARDED),
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            None,
            "see its model page",
            words="a causal LM as transformers reads it; {hub_id} from a package of PyPI: docs/your_model.md",
        ),
    )
    adapter: Literal["tiny"]
    decoder: str | None = Field(default=None, exclude_if=_none)
    """Folder below paths.weights of a causal LM with its tokenizer, which is then the text backbone and, frozen, the
    teacher, in place of a decoder that is made here: hidden, layers, heads and text are its own then. The markers of
    the template are added to its vocabulary."""
    attention: AttentionKey = "auto"
    generated: ClassVar[bool] = True
    hidden: PositiveInt = 128
    layers: PositiveInt = 3
    heads: PositiveInt = 4
    frames_a_token: PositiveInt = Field(default=2, exclude_if=_two)
    cells_a_token: PositiveInt = Field(default=2, exclude_if=_two)
    """A visual token is cells_a_token x cells_a_token cells, of 16 x 16 pixels, of frames_a_token neighbouring
    frames. 2 and 2 are 16 visual tokens a clip of 8 frames of 64 x 64 pixels, 1 and 1 are 128."""
    tower: StageRecipe = StageRecipe(clips=800, steps=300, lr=1e-2)
    text: StageRecipe = StageRecipe(steps=200, lr=2e-3)
    align: StageRecipe = StageRecipe(clips=3000, steps=400, lr=2e-3)

    @classmethod
    def broken_rules(cls, data: Any) -> Iterator[Finding]:
        source = value_at(data, ("data", "source"))
        if isinstance(source, str) and source != "shapes":
            yield (
                ("model", "adapter"),
                f"model.adapter tiny is made from the clips of data.source shapes, and data.source is {source}",
            )
        if value_at(data, ("model", "decoder")) is not None:
            for key in ("hidden", "layers", "heads", "text"):
                if value_at(data, ("model", key)) is not None:
                    words = f"model.{key} is that of model.decoder, which is given: leave one of them out"
                    yield ("model", key), words
        hidden, heads = (
            whole_at(data, ("model", key), cls.model_fields[key].default) for key in ("hidden", "heads")
        )
        if hidden and heads and (hidden % heads or (hidden // heads) % 2):
            yield (
                ("model", "heads"),
                f"model.heads {heads} does not divide model.hidden {hidden} into heads of an even size",
            )
        for key, of, unit in (("frames_a_token", "frames", 1), ("cells_a_token", "size", _SIDE_OF_A_CELL)):
            merged = whole_at(data, ("model", key), cls.model_fields[key].default)
            whole = whole_at(data, ("data", of), ShapesData.model_fields[of].default)
            if merged and whole and whole % (merged * unit):
                yield (
                    ("model", key),
                    f"model.{key} {merged}: data.{of} {whole} is no multiple of {merged * unit}",
                )


# --- VideoLLaMA2 ---------------------------------------------------------------------------------------

Connector = Literal["stc_connector_v35", "stc_connector", "stp_connector", "linear", "mlp2x_gelu"]


class VideoLLaMA2Model(ModelSection):
    """VideoLLaMA2.1: SigLIP, STC connector, Qwen2-7B-Instruct."""

    adapter: Literal["videollama2"]
    attention: AttentionKey = "auto"
    language_model: str
    vision_tower: str
    projector: str | None = None
    """All relative to paths.weights. None starts an untrained connector."""
    projector_type: Connector = "stc_connector_v35"
    """stc_connector_v35 is VideoLLaMA2.1's, stc_connector VideoLLaMA2.0's; their files look alike."""
    image_aspect_ratio: Literal["pad", "square"] = "pad"
    max_length: PositiveInt = 2048
    """Tokens of a conversation, its video counted as one; what is beyond is cut off, never the video."""

    weight_files: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            "language_model",
            ("config.json", "tokenizer.json", "tokenizer_config.json", SHARDED),
            "Qwen/Qwen2-7B-Instruct",
            15.2,
            "Apache-2.0",
        ),
        Requirement(
            "vision_tower",
            ("config.json", "preprocessor_config.json", SHARDED),
            "google/siglip-so400m-patch14-384",
            3.5,
            "Apache-2.0",
        ),
        Requirement(
            "projector", ("mm_projector.bin",), "DAMO-NLP-SG/VideoLLaMA2.1-7B-16F-Base", 0.75, "Apache-2.0"
        ),
    )


class TinyVideoLLaMA2Model(ModelSection):
    """VideoLLaMA2's own classes at toy size, with generated weights; made by `harness prepare`."""

    adapter: Literal["tiny_videollama2"]
    attention: AttentionKey = "auto"
    generated: ClassVar[bool] = True
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


class VideoLLaMA2Checkpoint(ModelSection):
    """A whole VideoLLaMA2 in the official form, as published or as a run saved it, through this project's model."""

    adapter: Literal["videollama2"]
    checkpoint: str
    """Folder with config.json, tokenizer and weights, relative to paths.weights."""
    vision_tower: str
    """Folder with the tower's preprocessor_config.json, relative to paths.weights; its weights are not read."""
    image_aspect_ratio: Literal["pad", "square"] = "square"
    """square is the official inference, pad the official fine-tuning."""
    max_length: PositiveInt = 2048

    weight_files: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            "checkpoint",
            ("config.json", "tokenizer.json", "tokenizer_config.json", SHARDED),
            "DAMO-NLP-SG/VideoLLaMA2.1-7B-16F",
            None,
            "Apache-2.0",
            "of a whole VideoLLaMA2, such as {hub_id} on the Hugging Face hub ({licence})",
        ),
        Requirement(
            "vision_tower",
            ("preprocessor_config.json",),
            "google/siglip-so400m-patch14-384",
            None,
            "Apache-2.0",
            "the tower's, such as {hub_id} on the Hugging Face hub; its weights are not read",
        ),
    )


# --- VideoChat2 ----------------------------------------------------------------------------------------

_MISTRAL: Final = Requirement(
    "language_model",
    ("config.json", "tokenizer.json", SHARDED),
    "mistralai/Mistral-7B-Instruct-v0.2",
    14.5,
    "Apache-2.0; access is granted on its model page",
)
_BERT: Final = Requirement(
    "qformer_tokenizer", ("config.json", "vocab.txt"), "google-bert/bert-base-uncased", 0.0003, "Apache-2.0"
)
_STAGE3: Final = Requirement(
    "stage3", ("videochat2_mistral_7b_stage3.pth",), "OpenGVLab/VideoChat2_stage3_Mistral_7B", 2.1, "MIT"
)


class LoraRecipe(Strict):
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: NonNegativeFloat = 0.1


class VideoChat2Model(ModelSection):
    """VideoChat2 (Mistral): UMT-L, QFormer, Mistral-7B-Instruct-v0.2 with LoRA.

    It starts either where the official stage 3 does, from the files of stages 1 and 2, or from a finished stage 3.
    """

    adapter: Literal["videochat2"]
    attention: AttentionKey = "auto"
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

    weight_files: ClassVar[tuple[Requirement, ...]] = (
        _MISTRAL,
        _BERT,
        Requirement("stage1", ("umt_l16_qformer.pth",), "OpenGVLab/videochat", None, "MIT"),
        Requirement(
            "stage2", ("videochat2_mistral_7b_stage2.pth",), "OpenGVLab/VideoChat2_stage2_Mistral_7B", None, "MIT"
        ),
        _STAGE3,
    )

    @classmethod
    def broken_rules(cls, data: Any) -> Iterator[Finding]:
        earlier, later = (
            [name for name in names if value_at(data, ("model", name)) is not None]
            for names in (("stage1", "stage2"), ("stage3",))
        )
        if later and earlier:
            yield ("model", earlier[0]), f"model.stage3 holds all of model.{earlier[0]}; keep one of them"
        if not later and len(earlier) < 2:
            yield (
                ("model",),
                "model needs stage1 and stage2, where the official stage 3 starts, or stage3, where it ends",
            )


class TinyVideoChat2Model(ModelSection):
    """VideoChat2's own classes at toy size, with generated weights; made by `harness prepare`."""

    adapter: Literal["tiny_videochat2"]
    attention: AttentionKey = "auto"
    generated: ClassVar[bool] = True
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


class VideoChat2Checkpoint(ModelSection):
    """VideoChat2 (Mistral) after stage 3 or its HD variant, in the official form, through this project's model."""

    adapter: Literal["videochat2"]
    checkpoint: str
    """The .pth file of stage 3 or of the HD variant, or the folder with stage 3's; relative to paths.weights."""
    language_model: str
    """Folder of the frozen language model, relative to paths.weights."""
    qformer_tokenizer: str = "bert-base-uncased"
    """Words and sizes of the QFormer; likewise."""
    hd: bool = False
    """The checkpoint is the HD variant: a clip as up to six tiles and the whole picture."""
    bos_as_ones: bool = True
    """As in the recipe's model; it matters where options are scored, and not where answers are written."""
    colours: Literal["imagenet", "clip"] = "clip"
    """clip is the official evaluation, imagenet the official training."""
    merged: bool = False
    """Fold the adapters into the language model's weights."""
    lora: LoraRecipe = LoraRecipe()
    max_length: PositiveInt = 512

    weight_files: ClassVar[tuple[Requirement, ...]] = (_MISTRAL, _BERT, replace(_STAGE3, field="checkpoint"))
    weights_beside: ClassVar[tuple[str, ...]] = ("language_model",)


# --- any multimodal model of transformers --------------------------------------------------------------


class PartRecipe(Strict):
    """One of the three parts of a model: the tower, the projector, or the decoder with its embeddings and head."""

    train: bool
    lr: Annotated[PositiveFloat | None, Field(exclude_if=lambda value: value is None)] = None
    """Its highest learning rate; None takes train.optimizer.lr. The schedule is the same for all parts."""


_FROZEN: Final = PartRecipe(train=False)
_TRAINED: Final = PartRecipe(train=True)


_REPOSITORIES: Final[Mapping[str, tuple[str, float | None, str]]] = {
    "InternVL3_5-8B-HF": ("OpenGVLab/InternVL3_5-8B-HF", 17.1, "Apache-2.0"),
    "InternVL3_5-8B-Pretrained": ("OpenGVLab/InternVL3_5-8B-Pretrained", 17.1, "Apache-2.0"),
    "InternVL3_5-14B-HF": ("OpenGVLab/InternVL3_5-14B-HF", 30.2, "Apache-2.0"),
    "InternVL3_5-14B-Pretrained": ("OpenGVLab/InternVL3_5-14B-Pretrained", 30.2, "Apache-2.0"),
    "Qwen2.5-VL-3B-Instruct": ("Qwen/Qwen2.5-VL-3B-Instruct", 7.5, "Qwen Research License: no commercial use"),
    "Qwen2.5-VL-7B-Instruct": ("Qwen/Qwen2.5-VL-7B-Instruct", 16.6, "Apache-2.0"),
    "Qwen3-VL-8B-Instruct": ("Qwen/Qwen3-VL-8B-Instruct", 17.5, "Apache-2.0"),
    "SmolVLM2-256M-Video-Instruct": ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 1.0, "Apache-2.0"),
    "SmolVLM2-500M-Video-Instruct": ("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 2.0, "Apache-2.0"),
    "llava-onevision-qwen2-7b-ov-hf": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 16.1, "Apache-2.0"),
}
"""By the repository's name: where it is, GB of its weights (parameters times the bytes of their type), licence."""


def _unset(value: Any) -> bool:
    """Left out of the identity at its default, so that runs from before there was the key keep theirs."""
    return value is None


class HFModel(ModelSection):
    """A multimodal model of transformers, as published: its own classes, processor and chat template."""

    adapter: Literal["hf"]
    attention: AttentionKey = "auto"
    checkpoint: str
    """A folder with config.json, weights, tokenizer and processor, relative to paths.weights; with `revision`, a
    repository of the Hugging Face hub."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """The commit of the repository that is loaded."""
    image_pixels: tuple[PositiveInt, PositiveInt] | None = None
    """Least and most pixels of a picture, for processors that choose its size by a budget; None takes theirs."""
    video_pixels: tuple[PositiveInt, PositiveInt] | None = None
    """Likewise of a video, counted as the family's processor counts it: of a frame, or of all frames together."""
    pixels: Literal["official", "transformers"] | None = Field(default=None, exclude_if=_unset)
    """How InternVL's pictures are resized: official (its default) is PIL as in the official code, transformers its
    image processor, a grey level apart here and there. All other families have transformers' way."""
    max_tiles: PositiveInt | None = Field(default=None, exclude_if=_unset)
    """Most tiles of an InternVL picture, the whole picture not counted; several pictures of a sample share them.
    None takes the checkpoint's."""
    drop_path: Annotated[float | None, Field(gt=0, lt=1, exclude_if=_unset)] = None
    """Stochastic depth of an InternVL tower in training: the part of the pictures that the last layer's attention and
    MLP each leave out; it grows evenly from 0 at the first layer. None leaves nothing out."""
    tower: PartRecipe = _FROZEN
    projector: PartRecipe = _TRAINED
    """Everything between tower and decoder: whatever belongs to neither of them, and the mergers within the tower."""
    decoder: PartRecipe = _TRAINED
    lora: LoraRecipe | None = None
    """Adapters on every linear layer of the decoder, whose own weights are frozen then."""
    max_length: PositiveInt = 8192
    """Positions of a conversation, its visual ones counted; what is beyond is cut off, never a picture."""

    weight_files: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            "checkpoint",
            ("config.json", "tokenizer_config.json", SHARDED),
            "a repository whose model is one of transformers, such as Qwen/Qwen2.5-VL-7B-Instruct,",
            None,
            "see its model page",
            whole=True,
        ),
    )

    def needs(self) -> tuple[Requirement, ...]:
        """The repository by its name, where it is one of the shipped recipes'; of one with a revision nothing:
        `harness prepare` fetches it."""
        if self.revision is not None:
            return ()
        (need,) = self.weight_files
        hub_id, gigabytes, licence = _REPOSITORIES.get(
            PurePath(self.checkpoint).name, (need.hub_id, need.gigabytes, need.licence)
        )
        return (replace(need, hub_id=hub_id, gigabytes=gigabytes, licence=licence),)

    @classmethod
    def broken_rules(cls, data: Any) -> Iterator[Finding]:
        for name in ("image_pixels", "video_pixels"):
            bounds = value_at(data, ("model", name))
            whole = isinstance(bounds, list) and all(isinstance(bound, int) for bound in bounds)
            if whole and len(bounds) == 2 and bounds[0] > bounds[1]:
                yield ("model", name), f"model.{name}: the least, {bounds[0]}, is more than the most, {bounds[1]}"
        yield from _trains_nothing(data)
        drops, trained = (value_at(data, ("model", *keys)) for keys in (("drop_path",), ("tower", "train")))
        if drops is not None and trained is not True:
            yield ("model", "drop_path"), "model.drop_path is for a tower that is trained; leave it out"
        if value_at(data, ("data", "source")) == "internvl":
            return  # InternVL's frames are numbered; another family is refused when its checkpoint is read
        if value_at(data, ("data", "frame_sampling")) == "random":
            yield (
                ("data", "frame_sampling"),
                "data.frame_sampling random draws other frames in each epoch, and the times of the frames stand in "
                "the text of these models",
            )


class TinyHFModel(ModelSection):
    """A family of transformers at toy size, with generated weights; made by `harness prepare`."""

    adapter: Literal["tiny_hf"]
    attention: AttentionKey = "auto"
    generated: ClassVar[bool] = True
    family: Literal[
        "internvl",
        "llava_next_video",
        "llava_onevision",
        "qwen2_5_vl",
        "qwen3_vl",
        "smolvlm",
        "video_llama_3",
    ] = "internvl"
    hidden: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    vocabulary: Annotated[int, Field(ge=320)] = 512
    """Entries of the byte-level tokenizer, which is trained on the conversations."""
    tower_hidden: PositiveInt = 32
    tower_layers: PositiveInt = 2
    tower: PartRecipe = _FROZEN
    projector: PartRecipe = _TRAINED
    """Everything between tower and decoder: whatever belongs to neither of them, and the mergers within the tower."""
    decoder: PartRecipe = _TRAINED
    lora: LoraRecipe | None = None
    """Adapters on every linear layer of the decoder, whose own weights are frozen then."""
    max_length: PositiveInt = 8192
    """Positions of a conversation, its visual ones counted; what is beyond is cut off, never a picture."""

    @classmethod
    def broken_rules(cls, data: Any) -> Iterator[Finding]:
        yield from _trains_nothing(data)


HFSettings = HFModel | TinyHFModel
"""A published or a toy model of transformers."""


def _trains_nothing(data: Any) -> Iterator[Finding]:
    parts = ("tower", "projector", "decoder")
    trains = [value_at(data, ("model", part, "train")) for part in parts]
    defaults = [HFModel.model_fields[part].default.train for part in parts]
    asked = [default if given is None else given for given, default in zip(trains, defaults, strict=True)]
    if not any(asked):
        yield ("model",), "model trains no part: tower, projector and decoder are all frozen"
    elif value_at(data, ("model", "lora")) is not None and asked[2] is False:
        yield ("model", "lora"), "model.lora adapts the decoder, and model.decoder.train is false"
    for part, trained in zip(parts, asked, strict=True):
        if trained is False and value_at(data, ("model", part, "lr")) is not None:
            yield ("model", part, "lr"), f"model.{part}.lr is a learning rate, and model.{part}.train is false"


# --- all families --------------------------------------------------------------------------------------

Model = Annotated[
    TinyModel
    | TinyVideoLLaMA2Model
    | TinyVideoChat2Model
    | VideoLLaMA2Model
    | VideoChat2Model
    | HFModel
    | TinyHFModel,
    Field(discriminator="adapter"),
]
"""`model:` of a recipe."""
Checkpoint = VideoLLaMA2Checkpoint | VideoChat2Checkpoint
"""`model:` of an evaluation through this project's own code."""


def _by_adapter(sections: tuple[type[ModelSection], ...]) -> dict[str, type[ModelSection]]:
    return {name: section for section in sections for name in get_args(section.model_fields["adapter"].annotation)}


SECTIONS: Final[Mapping[str, type[ModelSection]]] = _by_adapter(get_args(get_args(Model)[0]))
"""By what `model.adapter` of a recipe says."""
CHECKPOINTS: Final[Mapping[str, type[ModelSection]]] = _by_adapter(get_args(Checkpoint))
"""By what `model.adapter` of an evaluation says."""
WEIGHT_PATHS: Final = frozenset(
    {f"model.{need.field}" for section in SECTIONS.values() for need in section.weight_files} | {TEACHER.field}
)
"""Dotted keys of a recipe whose values are places of weights, which may be others on another machine."""
