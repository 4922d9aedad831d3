"""VideoLLaMA2 behind the door that every model family has; the toy one of the same classes too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from harness.common.errors import EnvironmentProblem
from harness.config.model import TinyVideoLLaMA2Model, VideoLLaMA2Model
from harness.config.weight_files import missing_weights
from harness.models.adapter import DecoderShape, scored_forward
from harness.models.pretrained import (
    decoder_shape,
    load_teacher,
    look_at_conversations,
    looked_at,
    note,
    require,
    teacher_folder,
)
from harness.models.videollama2 import toy as tiny
from harness.models.videollama2.flops import vision_flops
from harness.models.videollama2.image_processing import read_pixels
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from harness.models.videollama2.processor import VideoLLaMA2Conversations
from harness.models.videollama2.weights import Parts, assemble, config_of, fingerprint, weight_files

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from harness.data.sources import DataSet
    from regate.types import Decision


class VideoLLaMA2Adapter:
    """Language model, tower and projector brought by the user, or made at toy size.

    Args:
        data: the opened data set; without it the parts can be loaded but a toy model not made.
    """

    frame_rule: FrameRule = "spread"

    def __init__(self, recipe: Recipe, data: DataSet | None) -> None:
        self.recipe = recipe
        self.data = data
        self.parts = _parts(recipe)

    @property
    def name(self) -> str:
        return self.recipe.model.adapter

    def missing(self) -> list[str]:
        if isinstance(self.recipe.model, TinyVideoLLaMA2Model):
            return tiny.missing(self.recipe)
        return missing_weights(self.recipe)

    def unseen(self) -> bool:
        if isinstance(self.recipe.model, TinyVideoLLaMA2Model) or self.data is None or self.missing():
            return False
        return not self._marker().exists()

    def prepare(self, progress: Progress) -> None:
        """Make a toy model's parts, and look at every conversation before anything is computed.

        Raises:
            EnvironmentProblem: weights are missing.
            DataError: a conversation cannot be encoded; its sample is named.
        """
        if isinstance(self.recipe.model, TinyVideoLLaMA2Model):
            if self.data is None:
                raise EnvironmentProblem(
                    "the toy model's tokenizer is made from the data", hint="run `harness prepare`"
                )
            tiny.make_parts(self.recipe, self.data, progress)
        self._require()
        if self.data is not None:
            look_at_conversations(self.recipe.name, self.data, self.processor(), progress)
            if not isinstance(self.recipe.model, TinyVideoLLaMA2Model):
                note(self._marker())

    @property
    def weights_fingerprint(self) -> str:
        return fingerprint(self.parts.files())

    @property
    def teacher_fingerprint(self) -> str:
        return fingerprint(weight_files(self._teacher_folder()))

    def processor(self) -> VideoLLaMA2Conversations:
        self._require()
        config = config_of(self.parts)
        aspect = self._model().image_aspect_ratio
        return VideoLLaMA2Conversations(
            AutoTokenizer.from_pretrained(self.parts.language_model),
            read_pixels(self.parts.vision_tower, aspect),
            config.num_frames,
            config.visual_tokens,
            self._model().max_length,
        )

    def student(self) -> nn.Module:
        """The three parts in float32; connector and language model are trained, the tower is not."""
        self._require()
        model = assemble(self.parts, seed=self.recipe.seed)
        placeholder = self.processor().placeholder_id
        model.config.placeholder_token_id = placeholder
        assert model.model.config is model.config
        return model

    def teacher(self) -> nn.Module:
        """The language model alone, frozen."""
        self._require()
        return load_teacher(self.recipe, self._teacher_folder())

    def shape(self) -> DecoderShape:
        config = config_of(self.parts)
        vision = vision_flops(config)
        return decoder_shape(
            config.text_config,
            vision_flops=vision.tower + vision.connector,
            vision_backward=vision.backward_ratio(checkpointing=self.recipe.train.gradient_checkpointing),
        )

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision)

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

    def _teacher_folder(self) -> Path:
        return teacher_folder(self.recipe, self.parts.language_model)

    def _require(self) -> None:
        require(self.recipe, self.missing())

    def _marker(self) -> Path:
        assert self.data is not None
        return looked_at(self.recipe, self.data, self.processor(), self.weights_fingerprint)


def _parts(recipe: Recipe) -> Parts:
    model = recipe.model
    if isinstance(model, TinyVideoLLaMA2Model):
        return replace(tiny.parts_of(recipe), num_frames=recipe.data.frames)
    assert isinstance(model, VideoLLaMA2Model)
    root = Path(recipe.paths.weights)
    projector = None if model.projector is None else root / model.projector
    if projector is not None and projector.is_dir():
        projector = projector / "mm_projector.bin"
    return Parts(
        root / model.language_model,
        root / model.vision_tower,
        projector,
        model.projector_type,
        num_frames=recipe.data.frames,
        image_aspect_ratio=model.image_aspect_ratio,
        max_length=model.max_length,
    )
