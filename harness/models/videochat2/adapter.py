"""VideoChat2 implements `models.adapter.Adapter`; the toy one of the same classes too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from harness.common.errors import RecipeError
from harness.config.model import TinyVideoChat2Model, VideoChat2Model
from harness.models.device import compute_dtype
from harness.models.flops import decoder_shape
from harness.models.pretrained import PretrainedAdapter, first_few
from harness.models.videochat2 import toy
from harness.models.videochat2.image_processing import Pixels
from harness.models.videochat2.model import CHECKPOINT, VideoChat2ForConditionalGeneration
from harness.models.videochat2.processor import VideoChat2Conversations
from harness.models.videochat2.sizes import adapter_parameters, vision_flops
from harness.models.videochat2.weights import (
    Lora,
    ModelFiles,
    build,
    config_of,
    load_checkpoint,
    merge_adapters,
    qformer_tokenizer,
    read_stages,
    save_checkpoint,
)

if TYPE_CHECKING:
    from torch import nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sources import DataSet
    from harness.models.adapter import DecoderShape
    from harness.models.videochat2.config import VideoChat2Config


class VideoChat2Adapter(PretrainedAdapter[ModelFiles]):
    """Files of the user, or made at toy size.

    A micro-batch without media calls the vision side on a black picture, so every trained tensor has a gradient in
    every backward pass: data parallelism needs no search for unused parameters.
    """

    frame_rule: FrameRule = "mvbench"
    toy = toy.TOY
    tells_places = True

    def __init__(self, recipe: Recipe, data: DataSet | None) -> None:
        super().__init__(recipe, data)
        self._config: VideoChat2Config | None = None

    def locate(self) -> ModelFiles:
        model = self._model()
        if isinstance(model, TinyVideoChat2Model):
            return toy.files_of(self.recipe)
        if (model.stage3 is None) == (model.stage1 is None or model.stage2 is None):
            raise RecipeError("model needs stage1 and stage2, or stage3 alone")
        root = Path(self.recipe.paths.weights)

        def file(given: str | None, name: str) -> Path | None:
            """The file itself, or the one of the published name in a folder."""
            place = None if given is None else root / given
            return place / name if place is not None and place.is_dir() else place

        return ModelFiles(
            root / model.language_model,
            root / model.qformer_tokenizer,
            file(model.stage1, "umt_l16_qformer.pth"),
            file(model.stage2, "videochat2_mistral_7b_stage2.pth"),
            file(model.stage3, "videochat2_mistral_7b_stage3.pth"),
            lora=Lora(model.lora.rank, model.lora.alpha, model.lora.dropout),
            bos_as_ones=model.bos_as_ones,
            checkpoint_blocks=model.vision_checkpointing,
        )

    def announce_files(self, progress: Progress) -> None:
        """What becomes of every tensor of the files."""
        for account in read_stages(self.files)[1]:
            progress.say(str(account))

    def announce_conversations(self, data: DataSet, progress: Progress) -> None:
        """Which instructions the QFormer reads the end of only."""
        processor = self.processor()
        limit, cut = processor.qformer_length, []
        for sample in data.samples:
            letters = sum(len(turn.text) for turn in sample.turns if turn.role == "system")
            if letters > limit and processor.instruction_tokens(sample) > limit:
                cut.append(sample.key)
        if cut:
            progress.say(
                f"{len(cut)} of {len(data.samples)} instructions are longer than {limit} tokens, and the QFormer "
                f"reads their ends only: {first_few(cut)}"
            )

    def config(self) -> VideoChat2Config:
        """What the files make; read once."""
        if self._config is None:
            self.require()
            self._config = config_of(self.files)
        return self._config

    def processor(self) -> VideoChat2Conversations:
        model, config = self._model(), self.config()
        vision: Any = config.vision_config
        qformer: Any = config.qformer_config
        published = model if isinstance(model, VideoChat2Model) else None
        colours = published.colours if published else "imagenet"
        return VideoChat2Conversations(
            AutoTokenizer.from_pretrained(self.files.language_model, trust_remote_code=False),
            qformer_tokenizer(self.files.qformer_tokenizer),
            Pixels(vision.image_size, colours, hd=published is not None and published.hd),
            self.recipe.data.frames,
            config.visual_tokens,
            config.placeholder_token_id,
            qformer_length=min(model.max_length, qformer.max_position_embeddings),
            max_length=model.max_length,
            bos_as_ones=model.bos_as_ones,
        )

    def student(self) -> nn.Module:
        """The language model frozen, with adapters; adapters and the whole vision side are trained in float32."""
        self.require()
        self._refuse_hd()
        dtype = compute_dtype(self.recipe.train.precision)
        student: nn.Module = build(self.files, base_dtype=dtype, seed=self.recipe.seed)
        return student

    def outline(self) -> nn.Module:
        """Without the adapters."""
        self._refuse_hd()
        with torch.device("meta"):
            return VideoChat2ForConditionalGeneration(self.config())

    def _refuse_hd(self) -> None:
        model = self._model()
        if isinstance(model, VideoChat2Model) and model.hd:
            raise RecipeError(
                "model.hd: the HD variant is evaluated, not trained: its visual tokens are not known without frames, "
                "which the reference losses are computed without"
            )

    def shape(self) -> DecoderShape:
        """A clip of the recipe's frames is counted for every sample; an image costs less."""
        config = self.config()
        checkpointing = self.recipe.train.gradient_checkpointing
        vision = vision_flops(config, self.recipe.data.frames, checkpointing=checkpointing)
        return decoder_shape(
            config.text_config,
            trainable_linear=0.0,
            adapter_parameters=adapter_parameters(config.text_config, self.files.lora.rank),
            vision_flops=vision.forward,
            vision_backward=vision.backward_ratio,
        )

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
        dtype, merged = compute_dtype(self.recipe.train.precision), self._model().merged
        if directory.is_file():
            files = replace(self.files, stage1=None, stage2=None, stage3=directory)
            model = build(files, base_dtype=dtype)
            return merge_adapters(model) if merged else model
        if (directory / CHECKPOINT).is_file():
            return load_checkpoint(directory, self.files.language_model, merged=merged, base_dtype=dtype)
        whole: nn.Module = VideoChat2ForConditionalGeneration.from_pretrained(directory)
        return whole

    def _model(self) -> VideoChat2Model | TinyVideoChat2Model:
        assert isinstance(self.recipe.model, VideoChat2Model | TinyVideoChat2Model)
        return self.recipe.model
