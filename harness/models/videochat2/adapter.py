"""VideoChat2 behind the door that every model family has; the toy one of the same classes too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.config.model import TinyVideoChat2Model, VideoChat2Model
from harness.config.weight_files import missing_weights
from harness.models.adapter import DecoderShape, scored_forward
from harness.models.device import computes_bfloat16
from harness.models.pretrained import (
    decoder_shape,
    load_teacher,
    look_at_conversations,
    looked_at,
    note,
    require,
    some,
    teacher_folder,
)
from harness.models.videochat2 import toy as tiny
from harness.models.videochat2.flops import adapter_parameters, vision_flops
from harness.models.videochat2.image_processing import Pixels
from harness.models.videochat2.model import CHECKPOINT, VideoChat2ForConditionalGeneration
from harness.models.videochat2.processor import VideoChat2Conversations
from harness.models.videochat2.weights import (
    Lora,
    Parts,
    build,
    config_of,
    load_checkpoint,
    merge_adapters,
    qformer_tokenizer,
    read_stages,
    save_checkpoint,
)
from harness.models.videollama2.weights import fingerprint, weight_files

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from harness.data.sources import DataSet
    from harness.models.videochat2.config import VideoChat2Config
    from regate.types import Decision


class VideoChat2Adapter:
    """Files brought by the user, or made at toy size.

    A micro-batch without media calls the vision side on a black picture, so every trained tensor has a gradient in
    every backward pass: data parallelism needs no search for unused parameters.

    Args:
        data: the opened data set; without it the model can be loaded but a toy one not made.
    """

    frame_rule: FrameRule = "mvbench"

    def __init__(self, recipe: Recipe, data: DataSet | None) -> None:
        self.recipe = recipe
        self.data = data
        self.parts = _parts(recipe)
        self._config: VideoChat2Config | None = None

    @property
    def name(self) -> str:
        return self.recipe.model.adapter

    def missing(self) -> list[str]:
        if isinstance(self.recipe.model, TinyVideoChat2Model):
            return tiny.missing(self.recipe)
        return missing_weights(self.recipe)

    def unseen(self) -> bool:
        if isinstance(self.recipe.model, TinyVideoChat2Model) or self.data is None or self.missing():
            return False
        return not self._marker().exists()

    def prepare(self, progress: Progress) -> None:
        """Make a toy model's files; tell what becomes of every tensor of the files, and look at every conversation,
        before anything is computed.

        Raises:
            EnvironmentProblem: weights are missing, or those of something else.
            DataError: a conversation cannot be encoded; its sample is named.
        """
        if isinstance(self.recipe.model, TinyVideoChat2Model):
            if self.data is None:
                raise EnvironmentProblem(
                    "the toy model's tokenizers are made from the data", hint="run `harness prepare`"
                )
            tiny.make_parts(self.recipe, self.data, progress)
        self._require()
        if not isinstance(self.recipe.model, TinyVideoChat2Model):
            for account in read_stages(self.parts)[1]:
                progress.say(str(account))
        if self.data is not None:
            look_at_conversations(self.recipe.name, self.data, self.processor(), progress)
            self._look_at_instructions(self.data, progress)
            if not isinstance(self.recipe.model, TinyVideoChat2Model):
                note(self._marker())

    @property
    def weights_fingerprint(self) -> str:
        return fingerprint(self.parts.files())

    @property
    def teacher_fingerprint(self) -> str:
        return fingerprint(weight_files(self._teacher_folder()))

    def config(self) -> VideoChat2Config:
        """What the files make; read once."""
        if self._config is None:
            self._require()
            self._config = config_of(self.parts)
        return self._config

    def processor(self) -> VideoChat2Conversations:
        model, config = self._model(), self.config()
        vision: Any = config.vision_config
        qformer: Any = config.qformer_config
        brought = model if isinstance(model, VideoChat2Model) else None
        colours = brought.colours if brought else "imagenet"
        return VideoChat2Conversations(
            AutoTokenizer.from_pretrained(self.parts.language_model),
            qformer_tokenizer(self.parts.qformer_tokenizer),
            Pixels(vision.image_size, colours, hd=brought is not None and brought.hd),
            self.recipe.data.frames,
            config.visual_tokens,
            config.placeholder_token_id,
            qformer_length=min(model.max_length, qformer.max_position_embeddings),
            max_length=model.max_length,
            bos_as_ones=model.bos_as_ones,
        )

    def student(self) -> nn.Module:
        """The language model frozen, with adapters; adapters and the whole vision side are trained in float32."""
        self._require()
        model = self._model()
        if isinstance(model, VideoChat2Model) and model.hd:
            raise RecipeError(
                "model.hd: the HD variant is evaluated, not trained: its visual tokens are not known without frames, "
                "which the reference losses are computed without"
            )
        student: nn.Module = build(self.parts, base_dtype=self._base_dtype(), seed=self.recipe.seed)
        return student

    def teacher(self) -> nn.Module:
        """The frozen language model alone, without adapters."""
        self._require()
        return load_teacher(self.recipe, self._teacher_folder())

    def shape(self) -> DecoderShape:
        """A clip of the recipe's frames is counted for every sample; an image costs less."""
        config = self.config()
        checkpointing = self.recipe.train.gradient_checkpointing
        vision = vision_flops(config, self.recipe.data.frames, checkpointing=checkpointing)
        return decoder_shape(
            config.text_config,
            trainable_linear=0.0,
            adapter_parameters=adapter_parameters(config.text_config, self.parts.lora.rank),
            vision_flops=vision.forward,
            vision_backward=vision.backward_ratio,
        )

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision)

    def save(self, model: nn.Module, directory: Path) -> None:
        """What was trained, by its official names, with both tokenizers; the frozen language model is named."""
        save_checkpoint(model, directory)
        self.processor().save(directory)

    def load(self, directory: Path) -> nn.Module:
        """A checkpoint that `save` wrote, a whole model that `save_pretrained` wrote, or an official file of stage 3
        or of the HD variant.

        Raises:
            StaleError: a checkpoint belongs to another language model.
        """
        dtype, merged = self._base_dtype(), self._model().merged
        if directory.is_file():
            parts = replace(self.parts, stage1=None, stage2=None, stage3=directory)
            model = build(parts, base_dtype=dtype)
            return merge_adapters(model) if merged else model
        if (directory / CHECKPOINT).is_file():
            return load_checkpoint(directory, self.parts.language_model, merged=merged, base_dtype=dtype)
        whole: nn.Module = VideoChat2ForConditionalGeneration.from_pretrained(directory)
        return whole

    def _model(self) -> VideoChat2Model | TinyVideoChat2Model:
        assert isinstance(self.recipe.model, VideoChat2Model | TinyVideoChat2Model)
        return self.recipe.model

    def _base_dtype(self) -> torch.dtype:
        """Of the frozen language model: what the run computes in."""
        asked = self.recipe.train.precision
        if asked == "auto":
            return torch.bfloat16 if computes_bfloat16() else torch.float32
        return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(asked, torch.float32)

    def _teacher_folder(self) -> Path:
        return teacher_folder(self.recipe, self.parts.language_model)

    def _require(self) -> None:
        require(self.recipe, self.missing())

    def _marker(self) -> Path:
        assert self.data is not None
        return looked_at(self.recipe, self.data, self.processor(), self.weights_fingerprint)

    def _look_at_instructions(self, data: DataSet, progress: Progress) -> None:
        """Tell which instructions the QFormer reads the end of only."""
        processor = self.processor()
        limit, cut = processor.qformer_length, []
        for sample in data.samples:
            letters = sum(len(turn.text) for turn in sample.turns if turn.role == "system")
            if letters > limit and processor.instruction_tokens(sample) > limit:
                cut.append(sample.key)
        if cut:
            progress.say(
                f"{len(cut)} of {len(data.samples)} instructions are longer than {limit} tokens, and the QFormer "
                f"reads their ends only: {some(cut)}"
            )


def _parts(recipe: Recipe) -> Parts:
    model = recipe.model
    if isinstance(model, TinyVideoChat2Model):
        return tiny.parts_of(recipe)
    assert isinstance(model, VideoChat2Model)
    if (model.stage3 is None) == (model.stage1 is None or model.stage2 is None):
        raise RecipeError("model needs stage1 and stage2, or stage3 alone")
    root = Path(recipe.paths.weights)

    def file(given: str | None, name: str) -> Path | None:
        """The file itself, or the one of the published name in a folder."""
        place = None if given is None else root / given
        return place / name if place is not None and place.is_dir() else place

    return Parts(
        root / model.language_model,
        root / model.qformer_tokenizer,
        file(model.stage1, "umt_l16_qformer.pth"),
        file(model.stage2, "videochat2_mistral_7b_stage2.pth"),
        file(model.stage3, "videochat2_mistral_7b_stage3.pth"),
        lora=Lora(model.lora.rank, model.lora.alpha, model.lora.dropout),
        bos_as_ones=model.bos_as_ones,
        checkpoint_blocks=model.vision_checkpointing,
    )
