"""The first steps: a recipe of one's own, and the schema that an editor checks it by."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Final

from harness.common.errors import RecipeError
from harness.common.files import is_folder, write_atomic
from harness.config.explain import nearest
from harness.config.load import EVALUATION, RECIPE, SUITE, kind_of, recipe_folder, shipped

KINDS: Final = {kind.name: kind for kind in (RECIPE, SUITE, EVALUATION)}
SCHEMAS: Final = "schema"
"""Folder of the schemas, below that of the recipes."""
MARK: Final = "# yaml-language-server: $schema="
"""Begins the line by which editors find the schema."""


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind of document.

    Raises:
        RecipeError: there is no such kind.
    """
    if kind not in KINDS:
        raise RecipeError(f"schema {kind}: there is no such kind of document{nearest(kind, KINDS)}")
    schema: dict[str, Any] = KINDS[kind].model.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_file(kind: str) -> Path:
    """Where the schema stands that the shipped documents name."""
    return recipe_folder() / SCHEMAS / f"{kind}.json"


def copy_recipe(name: str, file: str | None) -> list[str]:
    """Copy a shipped document into the working directory.

    Args:
        file: the copy; None for the document's name.

    Returns:
        What was written, and the commands to go on with.

    Raises:
        RecipeError: no such document ships, or the file is there already.
    """
    documents = {found: (kind, path) for kind in KINDS.values() for found, path in shipped(kind).items()}
    if name not in documents:
        raise RecipeError(
            f"init {name}: no such recipe ships{nearest(name, documents)}", hint="`harness list` names those that do"
        )
    kind, source = documents[name]
    target = Path(file or source.name)
    if os.path.lexists(target):
        raise RecipeError(f"{target}: is there already", hint=f"give another name: harness init {name} FILE")
    if not is_folder(target.parent):
        raise RecipeError(f"{target.parent}: no such folder")
    lines = source.read_text(encoding="utf-8").splitlines()
    copied = [f"{MARK}{schema_file(kind.name)}" if line.startswith(MARK) else line for line in lines]
    write_atomic(target, "\n".join(copied) + "\n")
    assert kind_of(target) is kind, target
    path = shlex.quote(target.as_posix() if len(target.parts) > 1 else f"./{target}")
    if kind is EVALUATION:
        return [f"{target} is a copy of {name}", f"  harness eval {path}"]
    return [f"{target} is a copy of {name}", *(f"  harness {verb} {path}" for verb in ("plan", "doctor", "run"))]
