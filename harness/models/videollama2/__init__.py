"""VideoLLaMA2: SigLIP or CLIP, spatio-temporal convolution connector, Qwen2 or Mistral."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.models.adapter import Family

if TYPE_CHECKING:
    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter, Evaluated
    from harness.models.flops import Published
    from harness.models.footprint import Footprint


def _adapter(recipe: Recipe, data: DataSet | None) -> Adapter:
    from harness.models.videollama2.adapter import VideoLLaMA2Adapter

    return VideoLLaMA2Adapter(recipe, data)


def _official(recipe: EvaluationRecipe) -> Evaluated:
    from harness.config.model import VideoLLaMA2Checkpoint
    from harness.models.videollama2.official import OfficialVideoLLaMA2

    assert isinstance(recipe.model, VideoLLaMA2Checkpoint)
    return OfficialVideoLLaMA2(recipe, recipe.model)


def _footprint(recipe: Recipe) -> Footprint:
    from harness.models.videollama2.sizes import footprint_of

    return footprint_of(recipe)


def _full_size() -> Published:
    from harness.models.videollama2.flops import PUBLISHED

    return PUBLISHED


FAMILY: Final = Family(_adapter, _footprint, _full_size, _official)
