"""Evaluations from files and from the command line, as recipes are: found, read, overridden, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from harness.benchmarks import BENCHMARKS, PaperBenchmark
from harness.common.errors import RecipeError
from harness.config.evaluation import EvaluationRecipe
from harness.config.explain import Problem, explain, nearest
from harness.config.load import apply_overrides, raise_problems, recipe_folder
from harness.config.yaml_positions import YamlProblem, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.config.yaml_positions import Document

FOLDER: Final = "evaluate"
"""Below the shipped recipes."""


def shipped_evaluations() -> dict[str, Path]:
    """Name (`evaluate/videollama2_official`) to file of those that come with the package or the checkout."""
    root = recipe_folder()
    return {
        path.relative_to(root).with_suffix("").as_posix(): path for path in sorted((root / FOLDER).glob("*.yaml"))
    }


def find_evaluation(path_or_name: str) -> Path | None:
    """The file of an evaluation, or None where the argument names none: then it is a recipe's or a suite's."""
    shipped = shipped_evaluations()
    name = path_or_name.removeprefix("recipes/").removesuffix(".yaml")
    given = Path(path_or_name)
    if given.is_file():
        return given if _is_evaluation(given) else None
    return shipped.get(name) or shipped.get(f"{FOLDER}/{name}")


def _is_evaluation(path: Path) -> bool:
    """Whether the file says so; one that cannot be read is left to whoever reads recipes."""
    try:
        data = read_yaml(path.read_bytes(), path.name).data
    except (YamlProblem, OSError, UnicodeDecodeError):
        return False
    return isinstance(data, dict) and data.get("kind") == "evaluation"


def load_evaluation(path_or_name: str, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Read an evaluation, by file or shipped name.

    Raises:
        RecipeError: there is none of that name, or every mistake in it and the overrides with its place.
    """
    recipe, problems = check_evaluation(path_or_name, overrides)
    raise_problems(problems)
    assert recipe is not None
    return recipe


def check_evaluation(
    path_or_name: str, overrides: Sequence[str] = ()
) -> tuple[EvaluationRecipe | None, list[Problem]]:
    """What `load_evaluation` does, with the problems as values.

    Raises:
        RecipeError: there is none of that name.
    """
    path = find_evaluation(path_or_name)
    if path is None:
        raise RecipeError(f"{path_or_name}: no evaluation of that name{nearest(path_or_name, shipped_evaluations())}")
    try:
        document = read_yaml(path.read_bytes(), path.name)
    except YamlProblem as problem:
        return None, [Problem(problem.mark, (), problem.message)]
    problems = [Problem(mark, (), message) for mark, message in document.problems]
    problems += apply_overrides(document, overrides)
    try:
        recipe = EvaluationRecipe.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), document, EvaluationRecipe)
        recipe = None
    problems += _benchmarks(document)
    return recipe, problems


def _benchmarks(document: Document) -> Iterator[Problem]:
    names = document.data.get("benchmarks")
    for index, name in enumerate(names if isinstance(names, list) else ()):
        place = ("benchmarks", index)
        if not isinstance(name, str):
            continue
        words = None
        if name not in BENCHMARKS:
            words = f"unknown benchmark {name}{nearest(name, BENCHMARKS)}"
        elif not isinstance(BENCHMARKS[name], PaperBenchmark):
            words = f"benchmark {name} asks the held-out questions of a training; name it in that recipe"
        elif name in names[:index]:
            words = f"benchmark {name} is given twice"
        if words:
            yield Problem(document.value_at(place), place, words)
