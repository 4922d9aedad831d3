"""The tiny model implements `models.adapter.Adapter`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.config.model import TinyModel
from harness.models.flops import decoder_shape
from harness.models.forward import scored_forward
from harness.models.tiny.checkpoint import load_checkpoint
from harness.models.tiny.config import TinyVLMConfig
from harness.models.tiny.model import TinyVLMForConditionalGeneration
from harness.models.tiny.processor import TinyProcessor, normalise
from harness.models.tiny.sizes import tower_flops, vision_flops
from harness.models.tiny.stages import make_stages, quiet_transformers, stages_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from harness.data.sources import DataSet
    from harness.models.adapter import DecoderShape, ParameterGroup
    from regate.types import Decision


class TinyAdapter:
    """Stages made by `prepare`, students and teachers loaded from them.

    Args:
        data: the opened data set; without it the stages can be loaded but not made.
    """

    name = "tiny"
    frame_rule: FrameRule = "spread"
    tells_grids = True

    def __init__(self, recipe: Recipe, data: DataSet | None) -> None:
        if recipe.gate is not None and recipe.gate.reference.model is not None:
            raise RecipeError(
                f"gate.reference.model is {recipe.gate.reference.model}: no other model has the tiny one's tokenizer",
                hint="leave it out: the teacher is the text-only backbone that the student started from",
            )
        self.recipe = recipe
        self.data = data
        self.stages = stages_of(recipe, data.fingerprint if data else None)

    def missing(self) -> list[str]:
        return self.stages.missing()

    def needs_check(self) -> bool:
        return False

    def prepare(self, progress: Progress) -> None:
        if self.data is None:
            raise EnvironmentProblem("the tiny model's stages are made from its data", hint="run `harness prepare`")
        make_stages(self.recipe, self.data, self.stages, progress)

    @property
    def weights_fingerprint(self) -> str:
        return self.stages.weights("aligned")

    @property
    def teacher_fingerprint(self) -> str:
        return self.stages.weights("backbone")

    def weight_files(self) -> list[Path]:
        return []

    def teacher_files(self) -> list[Path]:
        return []

    def processor(self) -> TinyProcessor:
        processor = TinyProcessor.load(self.stages.folder("backbone"))
        assert isinstance(self.recipe.model, TinyModel)
        return replace(processor, frames_a_token=self.recipe.model.frames_a_token)

    def student(self) -> nn.Module:
        """The aligned model; projector and decoder are trained, the tower is not."""
        return self.load(self.stages.folder("aligned"))

    def outline(self) -> nn.Module:
        with torch.device("meta"):
            return TinyVLMForConditionalGeneration(self._config())

    def parameter_groups(self, student: nn.Module) -> Sequence[ParameterGroup]:
        """None: projector and decoder share one learning rate."""
        del student
        return ()

    def shard_units(self, student: nn.Module) -> Sequence[nn.Module]:
        """The projector: all clips of a micro-batch go through it together."""
        model: Any = student
        return (model.model.projector,)

    def teacher(self) -> nn.Module:
        """The text-only backbone as it was before alignment."""
        with quiet_transformers():
            folder = self.stages.folder("backbone")
            model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        return model.eval().requires_grad_(False)

    def shape(self) -> DecoderShape:
        config = self._config()
        return decoder_shape(
            config.text_config, vision_flops=vision_flops(config), tower_flops=tower_flops(config)
        )

    @torch.no_grad()
    def tower_features(self, student: nn.Module, clips: Sequence[Tensor]) -> Tensor:
        """float32 [clips, T, C, grid, grid]."""
        features: Tensor = student.model.tower_features(normalise(torch.stack(list(clips))))  # type: ignore[union-attr, operator]
        return features

    def _config(self) -> TinyVLMConfig:
        config: TinyVLMConfig = TinyVLMConfig.from_pretrained(self.stages.folder("aligned"))
        return config

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision, tells_places=True)

    def save(self, model: nn.Module, directory: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(directory)  # type: ignore[operator]
        self.processor().save(directory)

    def load(self, directory: Path) -> nn.Module:
        """A checkpoint of the tiny model. Errors as `load_checkpoint`."""
        return load_checkpoint(directory)
