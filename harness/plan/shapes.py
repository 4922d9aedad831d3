"""What an arm's gate would save at the shapes of other models, and what its teacher costs, by the account of `plan`.

Only shipped recipes and published sizes are read, whatever weights and data are there: the same arms always give the
same numbers. No torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from harness.common.errors import RecipeError
from harness.config.load import load_recipe
from harness.data.sources import source_of
from harness.models import MODELS
from harness.plan.teacher import teacher_decoder
from harness.plan.work import assumed_lengths, dense_and_sparse, sparse_ratios, teacher_work

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.recipe import GateConfig, Recipe
    from harness.models.footprint import Footprint
    from harness.plan.work import Lengths

PUBLISHED: Final[Mapping[str, str]] = {
    "VideoLLaMA2.1-7B": "videollama2_baseline",
    "VideoChat2-7B": "videochat2_baseline",
    "InternVL3.5-8B": "internvl3_5_8b_baseline",
}
"""Model -> the shipped recipe that has its shapes: the paper's three."""
_NO_WEIGHTS: Final = f"paths.weights={os.devnull}"
"""Sizes are the published ones, not those of a folder that happens to be there."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model of published sizes with an ordinary sample of it."""

    recipe: Recipe
    footprint: Footprint
    lengths: Lengths

    @property
    def words(self) -> str:
        """The sample that the account is of."""
        lengths = self.lengths
        return f"{lengths.visual:,.0f} visual, {lengths.prompt:,.0f} prompt, {lengths.targets:,.0f} target positions"


@dataclass(frozen=True, slots=True)
class Parts:
    """Forward and backward of one sample, as parts of a dense step's of the baseline.

    Attributes:
        dense: of a dense step, which is more than 1 where it learns from the elided forward pass, too.
        sparse: of a sparse step: decoder, head, tower and connector, rows packed in both.
        teacher: the teacher's pass over it.
    """

    dense: float
    sparse: float
    teacher: float


@cache
def published_shapes() -> Mapping[str, Shape]:
    """The models of `PUBLISHED`."""
    shapes = {}
    for name, recipe_name in PUBLISHED.items():
        recipe = load_recipe(recipe_name, (_NO_WEIGHTS,))
        footprint = MODELS[recipe.model.adapter].footprint(recipe)
        stated = source_of(recipe.data, recipe.paths, recipe.seed).stated_targets
        shapes[name] = Shape(recipe, footprint, assumed_lengths(recipe, footprint, stated))
    return MappingProxyType(shapes)


def parts_at(shape: Shape, gate: GateConfig, layers: int) -> Parts:
    """What a gate would make of a step of another model.

    Args:
        layers: of the decoder that the gate was run with: a number of layers is taken as that part of the depth.
    """
    gate = scaled(gate, layers)
    recipe = shape.recipe.model_copy(update={"gate": gate})
    sparse, _ = sparse_ratios(recipe, shape.footprint, shape.lengths)
    dense, _ = dense_and_sparse(recipe, shape.footprint, shape.lengths)
    baseline, _ = dense_and_sparse(shape.recipe, shape.footprint, shape.lengths)
    lengths = shape.lengths
    teacher = 0.0
    if gate.needs_reference:
        decoder = shape.footprint.decoder
        teacher = teacher_work(gate, decoder, shape.footprint, lengths.positions, lengths.visual, lengths.targets)
    return Parts(dense.total / baseline.total, sparse, teacher / baseline.total)


def scaled(gate: GateConfig, layers: int) -> GateConfig:
    """The gate with its numbers of layers as parts of a depth of `layers`."""

    def part(layer: float) -> float:
        return layer / layers if isinstance(layer, int) else layer

    visual = gate.visual
    if visual is not None and visual.from_layer is not None:
        visual = replace(visual, from_layer=part(visual.from_layer))
    return replace(
        gate,
        visual=visual,
        from_layer=None if gate.from_layer is None else part(gate.from_layer),
        deep=None if gate.deep is None else part(gate.deep),
        keep_below=tuple(replace(level, layer=part(level.layer)) for level in gate.keep_below),
    )


def decoder_layers(recipe: Recipe) -> int | None:
    """Of a recipe's model; None where nothing is known of its sizes here."""
    footprint = _footprint(recipe)
    return None if footprint is None else footprint.decoder.layers


def teacher_flops_of(recipe: Recipe, *, positions: float, visual: float, targets: float) -> float | None:
    """The teacher's pass over one sample of so many positions, visual ones and targets, on the mean; 0 where the gate
    reads no reference losses, None where nothing is known of the teacher's sizes here."""
    if recipe.gate is None or not recipe.gate.needs_reference:
        return 0.0
    footprint = _footprint(recipe)
    known = None if footprint is None else teacher_decoder(recipe, footprint)
    if footprint is None or known is None:
        return None
    return teacher_work(recipe.gate, known[0], footprint, positions, visual, targets)


def _footprint(recipe: Recipe) -> Footprint | None:
    try:
        return MODELS[recipe.model.adapter].footprint(recipe)
    except RecipeError:  # a model by the user's own name, whose files are not here
        return None


__all__ = [
    "PUBLISHED",
    "Parts",
    "Shape",
    "decoder_layers",
    "parts_at",
    "published_shapes",
    "scaled",
    "teacher_flops_of",
]
