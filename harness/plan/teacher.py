"""The size of the model that scores the targets, by its own configuration. No torch."""

from __future__ import annotations

from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from harness.models.flops import decoder_shape
from harness.models.footprint import read_sizes
from harness.models.other_vlm import footprint_of_vlm, name_of_vlm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.recipe import Recipe
    from harness.models.adapter import DecoderShape
    from harness.models.footprint import Footprint

_QWEN2: Final = {"num_hidden_layers": 28, "vocab_size": 151936}
TEACHERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "Qwen2-1.5B-Instruct": {
        **_QWEN2, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_key_value_heads": 2,
    },
    "Qwen2-57B-A14B-Instruct": {
        **_QWEN2, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "num_experts_per_tok": 8, "moe_intermediate_size": 2560, "shared_expert_intermediate_size": 20480,
    },
}  # fmt: skip
"""The paper's other teachers, by the last part of their name: Qwen2 Technical Report (arXiv 2407.10671), table 1; the
shared experts of the larger one are eight of the routed ones' width."""


def teacher_decoder(recipe: Recipe, footprint: Footprint) -> tuple[DecoderShape, str] | None:
    """The decoder that scores, and in words where its sizes are from: the student's own, or that of
    `gate.reference.model` by its config.json or as published. None where neither is known.

    Of a mixture of experts the perceptron is as wide as the experts that one token passes through.
    """
    name = None if recipe.gate is None else recipe.gate.reference.model
    if name is None:
        return footprint.decoder, "the student's own language model"
    folder, last = Path(recipe.paths.weights) / name, PurePath(name).name
    if last not in TEACHERS and not (folder / "config.json").is_file():
        return None
    fields, source = read_sizes(folder, TEACHERS.get(last, {}), last)
    routed = fields.get("num_experts_per_tok", 0) * fields.get("moe_intermediate_size", 0)
    width = routed + fields.get("shared_expert_intermediate_size", 0) or fields["intermediate_size"]
    return decoder_shape(SimpleNamespace(**{**fields, "intermediate_size": width})), source


def seeing_footprint(recipe: Recipe, footprint: Footprint) -> Footprint | None:
    """Of the model that sees the pictures for `gate.reference.pictures`: the student, or another one; None where that
    is not there to say its sizes."""
    return footprint if name_of_vlm(recipe) is None else footprint_of_vlm(recipe)
