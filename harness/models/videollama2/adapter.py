"""VideoLLaMA2 implements `models.adapter.Adapter`; the toy one of the same classes too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from harness.config.model import TinyVideoLLaMA2Model, VideoLLaMA2Model
from harness.models.flops import decoder_shape
from harness.models.pretrained import PretrainedAdapter
from harness.models.videollama2 import toy
from harness.models.videollama2.image_processing import read_pixels
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from harness.models.videollama2.processor import VideoLLaMA2Conversations
from harness.models.videollama2.sizes import vision_flops, visual_grid
from harness.models.videollama2.weights import ModelFiles, assemble, config_of
from regate.types import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from harness.data.loading.frames import FrameRule
    from harness.models.adapter import DecoderShape


class VideoLLaMA2Adapter(PretrainedAdapter[ModelFiles]):
    """Language model, tower and projector of the user, or made at toy size."""

    frame_rule: FrameRule = "spread"
    toy = toy.TOY
    tells_places = True

    @property
    def tells_grids(self) -> bool:
        return True

    def locate(self) -> ModelFiles:
        model, frames = self._model(), self.recipe.data.frames
        if isinstance(model, TinyVideoLLaMA2Model):
            return replace(toy.files_of(self.recipe), num_frames=frames)
        root = Path(self.recipe.paths.weights)
        projector = None if model.projector is None else root / model.projector
        if projector is not None and projector.is_dir():
            projector = projector / "mm_projector.bin"
        return ModelFiles(
            root / model.language_model,
            root / model.vision_tower,
            projector,
            model.projector_type,
            num_frames=frames,
            image_aspect_ratio=model.image_aspect_ratio,
            max_length=model.max_length,
        )

    def processor(self) -> VideoLLaMA2Conversations:
        self.require()
        config = config_of(self.files)
        aspect = self._model().image_aspect_ratio
        return VideoLLaMA2Conversations(
            AutoTokenizer.from_pretrained(self.files.language_model, trust_remote_code=False),
            read_pixels(self.files.vision_tower, aspect),
            config.num_frames,
            config.visual_tokens,
            self._model().max_length,
            Grid(*visual_grid(config.mm_projector_type, config.num_frames, config.grid)),
        )

    def student(self) -> nn.Module:
        """The three parts in float32; connector and language model are trained, the tower is not."""
        self.require()
        model = assemble(self.files, seed=self.recipe.seed)
        model.config.placeholder_token_id = self.processor().placeholder_id
        assert model.model.config is model.config
        return model

    def outline(self) -> nn.Module:
        with torch.device("meta"):
            return VideoLLaMA2ForConditionalGeneration(config_of(self.files))

    def shard_units(self, student: nn.Module) -> Sequence[nn.Module]:
        """The connector: all clips of a micro-batch go through it together."""
        model: Any = student
        return (model.model.mm_projector,)

    def shape(self) -> DecoderShape:
        config = config_of(self.files)
        vision = vision_flops(config)
        return decoder_shape(
            config.text_config,
            vision_flops=vision.tower + vision.connector,
            vision_backward=vision.backward_ratio(checkpointing=self.recipe.train.gradient_checkpointing),
        )

    def save(self, model: nn.Module, directory: Path) -> None:
        """An official checkpoint folder, with the tokenizer."""
        model.save_pretrained(directory)  # type: ignore[operator]
        self.processor().save(directory)

    def load(self, directory: Path) -> nn.Module:
        """A checkpoint that `save` wrote, or an official one; visual positions hold the processor's placeholder."""
        model: nn.Module = VideoLLaMA2ForConditionalGeneration.from_pretrained(directory)
        config: Any = model.config
        config.placeholder_token_id = self.processor().placeholder_id
        return model

    def _model(self) -> VideoLLaMA2Model | TinyVideoLLaMA2Model:
        assert isinstance(self.recipe.model, VideoLLaMA2Model | TinyVideoLLaMA2Model)
        return self.recipe.model
