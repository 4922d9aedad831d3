"""How the student's attention is computed: the kernel of `model.attention`, and rows packed or padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

import regate
from harness.common.errors import EnvironmentProblem, RecipeError
from regate.attention import missing
from regate.wrapping import decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from harness.config.recipe import Recipe
    from harness.models.adapter import Adapter
    from regate.config import Outputs

_NAMES: Final = {"flex": "flex_attention"}
"""What transformers calls a kernel otherwise."""
_OF_PACKED_ROWS: Final = ("sdpa", "varlen", "flash_attention_2", "flash_attention_3")
"""Kernels that `regate.attach` is given by name, for a model loaded with sdpa."""


def check_attention(recipe: Recipe) -> None:
    """Refuse a kernel that is asked for and cannot run here, before anything is computed.

    Raises:
        EnvironmentProblem: says what it needs.
    """
    name = recipe.model.attention
    need = missing(name)
    if name == "flex" and not torch.cuda.is_available():
        need = "a CUDA GPU: torch has no backward pass of it on the CPU"
    if need is not None:
        raise EnvironmentProblem(
            f"{recipe.name}: model.attention {name} needs {need}",
            hint="install it, or leave model.attention out: harness doctor says which kernels run here",
        )


def check_attachable(adapter: Adapter, recipe: Recipe) -> None:
    """Refuse a model that the training will not be able to elide, or whose logits it cannot split, before the teacher
    reads a word.

    Raises:
        UnsupportedModelError, ConfigError, RecipeError: say what of the model or the recipe stands against it.
    """
    if recipe.gate is not None and recipe.gate.visual is not None and not adapter.tells_grids:
        raise RecipeError(
            f"{recipe.name}: gate.visual elides cells of a clip's grid, and the visual tokens of {adapter.name} are "
            "not such cells, or its processor does not say which",
            hint="leave gate.visual out, or train another model",
        )
    outline = adapter.outline()
    regate.ScoredLM(outline)
    attach(outline, recipe, _nothing).remove()


def _nothing(line: str) -> None:
    """What `attach` has to say is said when the training starts."""


def attach(student: nn.Module, recipe: Recipe, say: Callable[[str], None]) -> regate.Elision:
    """The same for a baseline and for ReGATE: packed rows, and the last layer on the positions that are read. Padded
    rows where the recipe asks for them, or, if it does not say, where a model cannot be packed, which is said and
    stands in the ledger.

    Raises:
        RecipeError: rows are to be packed, or have to be for the kernel, and cannot be.
        ConfigError, UnsupportedModelError: the gate asks for what this model or its rows cannot do.
    """
    elide = _attached(student, recipe, say)
    if recipe.gate is not None:
        try:
            elide.check(recipe.gate)
        except regate.RegateError:
            elide.remove()
            raise
    return elide


def _attached(student: nn.Module, recipe: Recipe, say: Callable[[str], None]) -> regate.Elision:
    name, rows = recipe.model.attention, recipe.train.rows
    execution = recipe.gate.execution if recipe.gate else "compact"
    if name in ("eager", "flex"):
        _load_with(student, name)
    if rows == "padded" or execution == "layerwise":
        return _padded(student, name, execution)
    kernel = name if name in _OF_PACKED_ROWS else None
    outputs: Outputs = "predictors" if recipe.train.last_layer == "scored" else "active"
    try:
        return regate.attach(student, execution=execution, rows="packed", kernel=kernel, outputs=outputs)
    except regate.UnsupportedModelError as error:
        if rows == "packed" or name == "varlen":
            key = "train.rows packed" if rows == "packed" else "model.attention varlen"
            raise RecipeError(f"{recipe.name}: {key}: {error}", hint=f"leave {key.split()[0]} out") from error
        say(f"rows are padded: {error}")
        return _padded(student, name, execution)


def _padded(student: nn.Module, name: str, execution: Any) -> regate.Elision:
    if name not in ("auto", "sdpa", "eager", "flex"):
        _load_with(student, name)
    return regate.attach(student, execution=execution)


def _load_with(student: nn.Module, name: str) -> None:
    """Let the decoder compute its attention by another kernel than the one it was loaded with; what is before it
    keeps its own."""
    decoder: Any = decoder_of(student)
    decoder.set_attn_implementation(_NAMES.get(name, name))
