"""Model families, by the name that `model.adapter` of a recipe or an evaluation gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.models import hf, tiny, videochat2, videollama2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter, Evaluated, Family

MODELS: Final[Mapping[str, Family]] = {
    "hf": hf.FAMILY,
    "tiny": tiny.FAMILY,
    "tiny_hf": hf.FAMILY,
    "tiny_videochat2": videochat2.FAMILY,
    "tiny_videollama2": videollama2.FAMILY,
    "videochat2": videochat2.FAMILY,
    "videollama2": videollama2.FAMILY,
}


def adapter_for(recipe: Recipe, data: DataSet | None) -> Adapter:
    """The adapter of a recipe's model.

    Args:
        data: the opened data set; None where the model is only loaded.
    """
    return MODELS[recipe.model.adapter].adapter(recipe, data)


def evaluated_for(recipe: EvaluationRecipe) -> Evaluated:
    """The model of an evaluation through this project's own code."""
    official = MODELS[recipe.model.adapter].official
    assert official is not None, f"{recipe.model.adapter} has a section for evaluations and no official model"
    return official(recipe)
