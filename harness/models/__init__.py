"""Model families, by the name that a recipe's `model.adapter` gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter


def _tiny(recipe: Recipe, data: DataSet | None) -> Adapter:
    from harness.models.tiny.adapter import TinyAdapter

    return TinyAdapter(recipe, data)


def _videollama2(recipe: Recipe, data: DataSet | None) -> Adapter:
    from harness.models.videollama2.adapter import VideoLLaMA2Adapter

    return VideoLLaMA2Adapter(recipe, data)


def _videochat2(recipe: Recipe, data: DataSet | None) -> Adapter:
    from harness.models.videochat2.adapter import VideoChat2Adapter

    return VideoChat2Adapter(recipe, data)


MODELS: Mapping[str, Callable[[Recipe, DataSet | None], Adapter]] = {
    "tiny": _tiny,
    "tiny_videochat2": _videochat2,
    "tiny_videollama2": _videollama2,
    "videochat2": _videochat2,
    "videollama2": _videollama2,
}


def adapter_for(recipe: Recipe, data: DataSet | None) -> Adapter:
    """The adapter of a recipe's model.

    Args:
        data: the opened data set; None where the model is only loaded.
    """
    return MODELS[recipe.model.adapter](recipe, data)
