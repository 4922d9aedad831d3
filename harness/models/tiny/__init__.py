"""The tiny model: a small video LLM of plain transformers classes, made from the shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.models.adapter import Family

if TYPE_CHECKING:
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter
    from harness.models.flops import Published
    from harness.models.footprint import Footprint


def _adapter(recipe: Recipe, data: DataSet | None) -> Adapter:
    from harness.models.tiny.adapter import TinyAdapter

    return TinyAdapter(recipe, data)


def _footprint(recipe: Recipe) -> Footprint:
    from harness.models.tiny.sizes import footprint_of

    return footprint_of(recipe)


def _full_size() -> Published:
    from harness.models.tiny.flops import PUBLISHED

    return PUBLISHED


FAMILY: Final = Family(_adapter, _footprint, _full_size)
