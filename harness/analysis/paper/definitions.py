"""What makes a run one of the paper's: the recipe that ships for its row, field by field.

A row of the paper demands the paper's model, data, frames and training settings as that recipe states them. What
changes neither the samples nor the arithmetic of a training is no part of it: folders, tracking, the number of
devices at an equal global batch, the seed (over which rows are averaged), and how the result is evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any, Final

from pydantic import ValidationError

from harness.config.load import load_recipe
from harness.config.model import WEIGHT_PATHS
from harness.config.recipe import Recipe
from regate.errors import RegateError

BASELINE: Final = "baseline"
EXTENDED: Final = "extended"
FAST: Final = "fast"
LAMBDA_0: Final = "lambda 0"
LAMBDA_1: Final = "lambda 1"
TEACHER_SMALL: Final = "teacher Qwen2-1.5B"
TEACHER_LARGE: Final = "teacher Qwen2-57B-A14B"

RECIPES: Final[Mapping[tuple[str, str], str]] = {
    ("VideoLLaMA2", BASELINE): "videollama2_baseline",
    ("VideoLLaMA2", EXTENDED): "videollama2_regate",
    ("VideoLLaMA2", FAST): "videollama2_regate_fast",
    ("VideoLLaMA2", LAMBDA_0): "videollama2_regate_lambda0",
    ("VideoLLaMA2", LAMBDA_1): "videollama2_regate_lambda1",
    ("VideoLLaMA2", TEACHER_SMALL): "videollama2_regate_teacher_1.5b",
    ("VideoLLaMA2", TEACHER_LARGE): "videollama2_regate_teacher_57b",
    ("VideoChat2", BASELINE): "videochat2_baseline",
    ("VideoChat2", EXTENDED): "videochat2_regate",
    ("VideoChat2", FAST): "videochat2_regate_fast",
}
"""(model, arm) -> the shipped recipe that states it. The paper gives neither data nor frames of InternVL3.5, so no
run can be shown to be one of those."""

_HARMLESS: Final = (
    *("name", "description", "seed", "hardware", "suite", "devices", "paths", "track", "evaluate"),
    *("train.workers", "train.checkpoint_every", "train.gradient_checkpointing", "train.recompute"),
    *("train.rows", "model.vision_checkpointing"),
    *("model.attention", "data.media", "data.damaged", "gate.reference.tokens_per_batch"),
    # What a recipe states of its data is for the plan; what was counted stands in the record.
    *("data.samples", "data.targets_per_sample"),
)
_FEW: Final = 4
"""Differing fields that a reason names."""
_WIDE: Final = 40
"""Letters of a value that a reason shows."""


@dataclass(frozen=True, slots=True)
class Definition:
    """One row of the paper.

    Attributes:
        recipe: name of the shipped recipe.
        fields: dotted key -> value, of all that the row demands.
        samples: how many the paper states, None where it states none.
        subset: whether they are drawn from more, so that their number is not the number of the data's samples.
    """

    model: str
    arm: str
    recipe: str
    fields: Mapping[str, Any]
    samples: int | None = None
    subset: bool = False


@cache
def shipped_definitions() -> tuple[Definition, ...]:
    """The rows of RECIPES."""
    return tuple(definition_of(model, arm, name, load_recipe(name)) for (model, arm), name in RECIPES.items())


def definition_of(model: str, arm: str, name: str, recipe: Recipe) -> Definition:
    """The row that a recipe states."""
    subset = getattr(recipe.data, "subset", None) is not None
    return Definition(model, arm, name, training_fields(recipe), getattr(recipe.data, "samples", None), subset)


def training_fields(recipe: Recipe) -> dict[str, Any]:
    """Dotted key -> value of everything that decides on what is trained and how."""
    return _kept(recipe.model_dump(mode="json"))


def fields_of_record(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`training_fields` of the recipe in a record; a key that is younger than the record has its default. A recipe
    that this version cannot read is taken as it stands."""
    try:
        return training_fields(Recipe.model_validate_json(json.dumps(recipe)))
    except (ValidationError, RegateError):
        return _kept(recipe)


def nearest_row(
    definitions: tuple[Definition, ...], model: str, recipe: Mapping[str, Any]
) -> tuple[Definition | None, list[str]]:
    """The row of this model that a run's recipe is, or is nearest to, and the fields in which they differ, in words;
    None where no row of the model has a definition."""
    fields = fields_of_record(recipe)
    gated = fields.get("gate", {}) is not None
    rows = [row for row in definitions if row.model == model]
    # A baseline that differs is not called a ReGATE run without a gate.
    rows = [row for row in rows if (row.arm != BASELINE) == gated] or rows
    if not rows:
        return None, []
    differing = {row.arm: _differing(row.fields, fields) for row in rows}
    row = min(rows, key=lambda row: len(differing[row.arm]))
    return row, differing[row.arm]


def reason(row: Definition, differing: list[str]) -> str:
    """Why a run is not its nearest row."""
    more = f" and {len(differing) - _FEW} more fields" if len(differing) > _FEW else ""
    return f"not the paper's {row.model} {row.arm} ({row.recipe}): {', '.join(differing[:_FEW])}{more}"


def _differing(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    keys = [*expected, *(key for key in actual if key not in expected)]
    return [
        f"{key} {_short(actual[key]) if key in actual else 'not stated'} and not "
        f"{_short(expected[key]) if key in expected else 'stated'}"
        for key in keys
        # A key of null, false or an empty list switches nothing on, as does one that a record older than the key does
        # not have.
        if _on(actual.get(key)) != _on(expected.get(key))
        and not (key in WEIGHT_PATHS and _ends_alike(actual.get(key), expected.get(key)))
    ]


def _ends_alike(actual: Any, expected: Any) -> bool:
    """Whether a path of weights is the published name below another folder, as they lie on another machine."""
    if not isinstance(actual, str) or not isinstance(expected, str):
        return False
    published = PurePath(expected).parts
    return PurePath(actual).parts[-len(published) :] == published


def _on(value: Any) -> Any:
    return None if value is False or value == [] else value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."


def _kept(recipe: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(_flat(recipe, ""))
    if fields.get("train.loss_norm") != "micro_batch":
        # A mean over the whole global batch is the same in whatever parts it is computed.
        fields.pop("train.micro_batch", None)
    return fields


def _flat(section: Mapping[str, Any], before: str) -> list[tuple[str, Any]]:
    entries: list[tuple[str, Any]] = []
    for name, value in section.items():
        key = f"{before}{name}"
        if key in _HARMLESS:
            continue
        if isinstance(value, Mapping):
            entries += _flat(value, f"{key}.")
        elif key == "data.annotations":
            # The folder of a file's media is a place; which file it is decides on the samples.
            files = [entry["file"] if isinstance(entry, Mapping) else entry for entry in value]
            entries.append((key, files))
        else:
            entries.append((key, value))
    return entries


__all__ = [
    "BASELINE",
    "EXTENDED",
    "FAST",
    "LAMBDA_0",
    "LAMBDA_1",
    "RECIPES",
    "TEACHER_LARGE",
    "TEACHER_SMALL",
    "Definition",
    "definition_of",
    "fields_of_record",
    "nearest_row",
    "reason",
    "shipped_definitions",
    "training_fields",
]
