"""Any multimodal model of transformers that shows its decoder and its tower: a new family is a recipe."""

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
    from harness.models.hf.adapter import HFAdapter

    return HFAdapter(recipe, data)


def _footprint(recipe: Recipe) -> Footprint:
    from harness.models.hf.sizes import footprint_of

    return footprint_of(recipe)


def _full_size() -> Published:
    from harness.models.hf.flops import PUBLISHED

    return PUBLISHED


FAMILY: Final = Family(_adapter, _footprint, _full_size)
