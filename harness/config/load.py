"""Recipes from files and from the command line: found, read, overridden, checked, all mistakes at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from harness.common.errors import RecipeError
from harness.config.explain import Problem, explain, nearest
from harness.config.recipe import Paths, Recipe
from harness.config.rules import broken_rules
from harness.config.yaml_positions import Document, Mark, YamlProblem, dotted, read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.config.yaml_positions import Path

_LARGEST: Final = 1_000_000
"""Bytes; a recipe is a page of text, and a video given by mistake is not."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A recipe file after checking: the recipe, or the problems that keep it from being one."""

    source: str
    recipe: Recipe | None
    problems: tuple[Problem, ...]


def load_recipe(path_or_name: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path_or_name: a file, or the name of a shipped recipe (`tiny_regate`).
        overrides: `key=value` texts with dotted keys (`gate.keep_ratio=0.25`), applied from left to right.

    Raises:
        RecipeError: every mistake of the file and the overrides, one a line, each with its place.
    """
    return load_recipes([path_or_name], overrides)[0]


def load_recipes(names: Sequence[str | FilePath], overrides: Sequence[str] = ()) -> list[Recipe]:
    """Several recipes with the same overrides; the mistakes of all of them come in one error."""
    if not names:
        raise RecipeError("no recipe given", hint=f"shipped recipes: {', '.join(sorted(shipped_recipes()))}")
    checked = [check_recipe(name, overrides) for name in names]
    raise_problems(list(dict.fromkeys(problem for one in checked for problem in one.problems)))
    recipes = [one.recipe for one in checked if one.recipe is not None]
    first: dict[str, str] = {}
    for one, recipe in zip(checked, recipes, strict=True):
        if recipe.run_id in first:
            raise RecipeError(
                f"{first[recipe.run_id]} and {one.source} are the same run ({recipe.run_id})", hint="give it once"
            )
        first[recipe.run_id] = one.source
    return recipes


def check_recipe(path_or_name: str | FilePath, overrides: Sequence[str] = ()) -> Checked:
    """What `load_recipe` does, with the problems as values.

    Raises:
        RecipeError: there is no such recipe.
    """
    source, text = find_recipe(path_or_name)
    try:
        document = read_yaml(text, source)
    except YamlProblem as problem:
        return Checked(source, None, (Problem(problem.mark, (), problem.message),))
    problems = [Problem(mark, (), message) for mark, message in document.problems]
    if not isinstance(document.data, dict):
        return Checked(source, None, (*problems, Problem(Mark(source, 1, 1), (), _not_a_recipe(document.data))))
    problems += apply_overrides(document, overrides)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate_json(json.dumps(document.data, allow_nan=False))
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), document)
    problems += broken_rules(document, _benchmarks(), {problem.path for problem in problems})
    unique = tuple(sorted(dict.fromkeys(problems), key=lambda problem: (problem.mark.line == 0, problem.mark)))
    return Checked(source, None if unique else recipe, unique)


def raise_problems(problems: Sequence[Problem]) -> None:
    """One error for all of them; nothing where there are none."""
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        lines = "\n".join(str(problem) for problem in problems)
        raise RecipeError(f"{lines}\n{count}; nothing was run")


# --- finding ---------------------------------------------------------------------------------------------


def shipped_recipes() -> dict[str, FilePath]:
    """Name to file of the recipes that come with the package, or with the checkout it runs from."""
    root = recipe_folder()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*.yaml"))}


def recipe_folder() -> FilePath:
    """Inside the installed package, or at the top of the checkout, where `recipes/` stands for people to read."""
    package = FilePath(__file__).resolve().parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def find_recipe(path_or_name: str | FilePath) -> tuple[str, bytes]:
    """How messages call the recipe, and its text.

    Raises:
        RecipeError: neither a readable file nor a shipped recipe.
    """
    given = FilePath(path_or_name)
    shipped = shipped_recipes()
    name = given.with_suffix("").as_posix() if given.suffix in (".yaml", ".yml") else given.as_posix()
    path = given
    if not given.is_file():
        if given.is_dir():
            raise RecipeError(f"{given} is a folder, not a recipe", hint="name a .yaml file in it")
        found = shipped.get(name) or shipped.get(name.removeprefix("recipes/"))
        if found is None:
            what = "no such file" if given.suffix else "neither a file nor a shipped recipe"
            raise RecipeError(f"{given}: {what}{nearest(given.stem, shipped)}", hint=_what_else(given))
        path = found
    try:
        if path.stat().st_size > _LARGEST:
            raise RecipeError(f"{path} is {path.stat().st_size:,} bytes long; a recipe is a page of YAML")
        return str(path_or_name) if path is given else path.name, path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error


def _what_else(given: FilePath) -> str | None:
    first = given.name.split(".")[0]
    if len(given.parts) == 1 and first in Recipe.model_fields:
        return f"to override a key, write {given}=VALUE"
    if given.is_absolute() or len(given.parts) < 2:
        return None
    return f"relative paths start at the working directory, {FilePath.cwd()}"


def _not_a_recipe(data: Any) -> str:
    if data is None:
        return "the file is empty; a recipe starts with `name: ...`"
    if isinstance(data, str) and ":" in data:
        return "a recipe is a mapping of keys to values; write a space after each colon"
    return f"a recipe is a mapping of keys to values, this is {'a list' if isinstance(data, list) else 'one value'}"


def _benchmarks() -> dict[str, str | None]:
    from harness.benchmarks import BENCHMARKS

    return {name: getattr(benchmark, "source", None) for name, benchmark in BENCHMARKS.items()}


# --- overrides -------------------------------------------------------------------------------------------


def is_override(argument: str) -> bool:
    """An argument with `=` that is not a file."""
    return "=" in argument and not FilePath(argument).exists()


def apply_overrides(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Put `key=value` texts into a document that holds a mapping; what cannot be put there is returned."""
    problems: list[Problem] = []
    seen: dict[Path, str] = {}
    for text in overrides:
        mark = Mark(f"override {text}")
        key, _, value = text.partition("=")
        path: Path = tuple(key.strip().split("."))
        if not all(path):
            problems.append(Problem(mark, (), "write it as key=value, with dots between nested keys"))
        elif path in seen:
            problems.append(Problem(mark, path, f"{key} is given twice, first as {seen[path]}"))
        elif not value.strip():
            problems.append(Problem(mark, path, f"no value after the =; write {key}=null for none"))
        else:
            seen[path] = text
            problems += _apply(document, path, value, mark)
    return problems


def _apply(document: Document, path: Path, text: str, mark: Mark) -> list[Problem]:
    try:
        value = read_yaml(text, mark.source).data
    except YamlProblem as problem:
        return [Problem(mark, path, problem.message)]
    section: Any = document.data
    for depth, part in enumerate(path[:-1], start=1):
        if part not in section:
            section[part] = {}
            document.keys[path[:depth]] = document.values[path[:depth]] = mark
        section = section[part]
        if not isinstance(section, dict):
            return [Problem(mark, path, _no_section(path[:depth], section, document))]
    section[path[-1]] = value
    for places in (document.keys, document.values):
        for old in [place for place in places if place[: len(path)] == path]:
            del places[old]
        places[path] = mark
    return []


def _no_section(path: Path, value: Any, document: Document) -> str:
    where = document.value_at(path)
    name = dotted(path)
    if value is None:
        return f"{name} is null at {where}, so it has no keys to override; {name}={{}} would switch it on"
    return f"{name} is {json.dumps(value)[:40]} at {where}, so it has no keys to override"


def load_paths(overrides: Sequence[str]) -> Paths:
    """The places of a command that takes no recipe; only `paths.*` overrides mean anything there.

    Raises:
        RecipeError: another key, or a value that is not a text.
    """
    document = Document({"paths": {}}, {}, {(): Mark("command line")})
    problems = apply_overrides(document, overrides)
    others = [key for key in document.data if key != "paths"]
    problems += [
        Problem(document.key_at((key,)), (key,), f"this command reads no recipe, so {key} means nothing to it")
        for key in others
    ]
    raise_problems(problems)
    raw: Mapping[str, Any] = document.data["paths"]
    try:
        return Paths.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        nested = [{**problem, "loc": ("paths", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise_problems(explain(nested, document))
        raise AssertionError("a validation error without a problem") from error
