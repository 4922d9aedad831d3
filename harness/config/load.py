"""Documents from files and from the command line: located, read, overridden, checked, all mistakes at once.

A document is a recipe, a suite or an evaluation. Each kind has one entry below: the model that it becomes, the folder
of those that ship, and the rules between its keys.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from harness.benchmarks import BENCHMARKS
from harness.common.errors import RecipeError
from harness.common.files import is_file, is_folder, odd_kind
from harness.config.evaluation import EvaluationRecipe, evaluation_rules
from harness.config.explain import Problem, explain, nearest
from harness.config.recipe import Paths, Recipe, SuiteMark
from harness.config.rules import broken_rules
from harness.config.suite import Suite, suite_rules
from harness.config.yaml_positions import Document, Mark, YamlProblem, dotted, read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set

    from harness.config.yaml_positions import Path

Model = TypeVar("Model", bound=BaseModel)
_PICKS: Final = ("arms", "seeds")
"""What picks some runs of a suite on the command line."""
_LARGEST: Final = 1_000_000
"""Bytes; a recipe is a page of text, and a video given by mistake is not."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[Model]):
    """A kind of document.

    Attributes:
        name: in messages.
        model: what a document becomes.
        folder: of the shipped ones, below `recipes/`.
        rules: what the keys of a document break between them, given the paths that are known to be wrong.
    """

    name: str
    model: type[Model]
    folder: str
    rules: Callable[[Document, Set[Path]], Iterable[Problem]]


@dataclass(frozen=True, slots=True)
class Checked(Generic[Model]):
    """A file after checking: what it says, or the problems that keep it from saying it."""

    source: str
    document: Model | None
    problems: tuple[Problem, ...]


def _recipe_rules(document: Document, wrong: Set[Path]) -> list[Problem]:
    sources = {name: getattr(benchmark, "source", None) for name, benchmark in BENCHMARKS.items()}
    return broken_rules(document, sources, wrong)


RECIPE: Final = Kind("recipe", Recipe, "", _recipe_rules)
SUITE: Final = Kind("suite", Suite, "suites", suite_rules)
EVALUATION: Final = Kind("evaluation", EvaluationRecipe, "evaluate", evaluation_rules)


def load(kind: Kind[Model], path_or_name: str | FilePath, overrides: Sequence[str] = ()) -> Model:
    """Read a document.

    Args:
        path_or_name: a file, or the name of a shipped one (`tiny_regate`, `suites/tiny_claim`).
        overrides: `key=value` texts with dotted keys (`gate.keep_ratio=0.25`), applied from left to right.

    Raises:
        RecipeError: there is none of that name, or every mistake of the file and the overrides, one a line, each with
            its place.
    """
    checked = check(kind, path_or_name, overrides)
    raise_problems(checked.problems)
    assert checked.document is not None
    return checked.document


def check(kind: Kind[Model], path_or_name: str | FilePath, overrides: Sequence[str] = ()) -> Checked[Model]:
    """What `load` does, with the problems as values.

    Raises:
        RecipeError: there is no such document.
    """
    source, text = _read(kind, path_or_name)
    try:
        document = read_yaml(text, source)
    except YamlProblem as problem:
        return Checked(source, None, (Problem(problem.mark, (), problem.message),))
    problems = [Problem(mark, (), message) for mark, message in document.problems]
    if not isinstance(document.data, dict):
        message = _no_mapping(kind, document.data)
        return Checked(source, None, (*problems, Problem(Mark(source, 1, 1), (), message)))
    return _checked(kind, source, document, problems, overrides)


def _checked(
    kind: Kind[Model], source: str, document: Document, problems: Sequence[Problem], overrides: Sequence[str]
) -> Checked[Model]:
    problems = [*problems, *apply_overrides(document, overrides)]
    value: Model | None = None
    try:
        value = kind.model.model_validate_json(json.dumps(document.data, allow_nan=False))
    except ValidationError as error:
        problems += explain(error.errors(include_url=False), document, kind.model)
    problems += kind.rules(document, {problem.path for problem in problems})
    unique = tuple(sorted(dict.fromkeys(problems), key=lambda problem: (problem.mark.line == 0, problem.mark)))
    return Checked(source, None if unique else value, unique)


def overridden(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe that a run keeps, with overrides.

    Raises:
        RecipeError: every mistake that the overrides make.
    """
    document = Document(recipe.model_dump(mode="json"), {}, {(): Mark("command line")})
    checked = _checked(RECIPE, "command line", document, [], overrides)
    raise_problems(checked.problems)
    assert checked.document is not None
    return checked.document


def load_recipe(path_or_name: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """`load` of a recipe."""
    return load(RECIPE, path_or_name, overrides)


def load_recipes(names: Sequence[str | FilePath], overrides: Sequence[str] = ()) -> list[Recipe]:
    """Several recipes with the same overrides; the mistakes of all of them come in one error.

    Raises:
        RecipeError: a mistake in any of them, none was given, or two are the same run.
    """
    if not names:
        raise RecipeError("no recipe given", hint=f"shipped recipes: {', '.join(sorted(shipped(RECIPE)))}")
    checks = [check(RECIPE, name, overrides) for name in names]
    raise_problems([problem for checked in checks for problem in checked.problems])
    source_of_run: dict[str, str] = {}
    recipes: list[Recipe] = []
    for checked in checks:
        recipe = checked.document
        assert recipe is not None
        if recipe.run_id in source_of_run:
            raise RecipeError(
                f"{source_of_run[recipe.run_id]} and {checked.source} are the same run ({recipe.run_id})",
                hint="give it once",
            )
        source_of_run[recipe.run_id] = checked.source
        recipes.append(recipe)
    return recipes


def suite_recipes(suite: Suite, overrides: Sequence[str] = ()) -> list[Recipe]:
    """One recipe for each seed and arm of a suite, arms of a seed together. `overrides` reach all of them, but for
    `arms=baseline,regate` and `seeds=0,1`, which pick some of the runs: the suite's other runs stay what they are, so
    that it can be made in parts or on several machines.

    Raises:
        RecipeError: every mistake in the arms' recipes and in what is set in them; an arm or seed is picked that the
            suite lacks, or no run is both.
    """
    picks = [text for text in overrides if text.partition("=")[0].strip() in _PICKS]
    members = _picked(suite, picks)
    others = [text for text in overrides if text not in picks]
    checks = [(arm, _check_arm(suite, arm, seed, others)) for arm, seed in members]
    raise_problems([problem for _, checked in checks for problem in checked.problems])
    return [
        checked.document.model_copy(update={"suite": SuiteMark(name=suite.name, arm=arm)})
        for arm, checked in checks
        if checked.document is not None
    ]


def _picked(suite: Suite, picks: Sequence[str]) -> list[tuple[str, int]]:
    """Arm and seed of the runs that `arms=` and `seeds=` pick; of all runs where neither is given."""
    known = {"arms": tuple(map(str, suite.arms)), "seeds": tuple(map(str, suite.seeds))}
    chosen: dict[str, list[str]] = {}
    for text in picks:
        key, _, value = text.partition("=")
        key = key.strip()
        if key in chosen:
            raise RecipeError(f"{key} is given twice: {', '.join(picks)}")
        chosen[key] = [name for part in value.strip().strip("[]").split(",") if (name := part.strip(" '\""))]
        unknown = [name for name in chosen[key] if name not in known[key]]
        if unknown or not chosen[key]:
            fault = f"{', '.join(unknown)}: none of the suite's {key}" if unknown else "names none"
            raise RecipeError(f"{text}: {fault}", hint=f"{key} of {suite.name}: {', '.join(known[key])}")
    members = [
        (arm, seed)
        for arm, seed in suite.members
        if arm in chosen.get("arms", known["arms"]) and str(seed) in chosen.get("seeds", known["seeds"])
    ]
    if not members:
        raise RecipeError(f"{' '.join(picks)}: {suite.name} has no run of these arms with these seeds")
    return members


def _check_arm(suite: Suite, arm: str, seed: int, overrides: Sequence[str]) -> Checked[Recipe]:
    own = [f"{key}={json.dumps(value)}" for key, value in suite.arms[arm].set.items()]
    named = [f"name={suite.name}.{arm}.seed{seed}", f"seed={seed}"]
    return check(RECIPE, suite.arms[arm].recipe, [*own, *named, *overrides])


def raise_problems(problems: Iterable[Problem]) -> None:
    """One error that names each problem once; nothing where there are none."""
    distinct = list(dict.fromkeys(problems))
    if distinct:
        count = "1 mistake" if len(distinct) == 1 else f"{len(distinct)} mistakes"
        lines = "\n".join(str(problem) for problem in distinct)
        raise RecipeError(f"{lines}\n{count}; nothing was run")


# --- locating --------------------------------------------------------------------------------------------


def shipped(kind: Kind[Any]) -> dict[str, FilePath]:
    """Name to file of the documents that come with the package, or with the checkout it runs from."""
    root = recipe_folder()
    files = sorted((root / kind.folder).glob("*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def recipe_folder() -> FilePath:
    """Inside the installed package, or at the top of the checkout, where `recipes/` stands for people to read."""
    package = FilePath(__file__).resolve().parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def kind_of(path_or_name: str | FilePath) -> Kind[Any] | None:
    """The kind of a file, or of a shipped document; None where there is none of that name. What is neither file nor
    folder is taken for a recipe: reading it as one says what it is."""
    path = FilePath(path_or_name)
    if odd_kind(path) is not None:
        return RECIPE
    if is_file(path):
        return _kind_of_file(path)
    return next((kind for kind in (SUITE, EVALUATION, RECIPE) if _shipped_file(kind, path) is not None), None)


def _kind_of_file(path: FilePath) -> Kind[Any]:
    """By the keys at its top. A file that cannot be read is a recipe: reading it as one says what is wrong."""
    try:
        _refuse_large(path)
        data = read_yaml(path.read_bytes(), path.name).data
    except (YamlProblem, RecipeError, OSError):
        return RECIPE
    if not isinstance(data, dict):
        return RECIPE
    if data.get("kind") == EVALUATION.name:
        return EVALUATION
    # A recipe has a key of that name, too: null, or a mapping that says which arm it is.
    return RECIPE if isinstance(data.get("suite"), (dict, type(None))) else SUITE


def _shipped_file(kind: Kind[Any], path: FilePath) -> FilePath | None:
    name, files = _shipped_name(path), shipped(kind)
    return files.get(name) or files.get(f"{kind.folder}/{name}")


def _shipped_name(path: FilePath) -> str:
    stem = path.with_suffix("") if path.suffix in (".yaml", ".yml") else path
    return stem.as_posix().removeprefix("recipes/")


def _read(kind: Kind[Any], path_or_name: str | FilePath) -> tuple[str, bytes]:
    """How messages call the document, and its text."""
    given = FilePath(path_or_name)
    own = is_file(given) and kind_of(given) is kind
    path = given if own else _shipped_file(kind, given)
    if path is None or (kind is RECIPE and is_folder(given)):
        raise _not_there(kind, given)
    try:
        _refuse_large(path)
        return str(path_or_name) if own else path.name, path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error


def _not_there(kind: Kind[Any], given: FilePath) -> RecipeError:
    odd = odd_kind(given)
    if odd is not None:
        return RecipeError(f"{given} is {odd}, not a file", hint="write the YAML to a file, and name that")
    actual = kind_of(given)
    if actual is not None and actual is not kind:
        hint = f"harness eval {shlex.quote(str(given))}" if actual is EVALUATION else None
        return RecipeError(f"{given} is {_a(actual)}, not {_a(kind)}", hint=hint)
    if kind is not RECIPE:
        return RecipeError(f"{given}: no {kind.name} of that name{nearest(str(given), shipped(kind))}")
    if is_folder(given):
        return RecipeError(f"{given} is a folder, not a recipe", hint="name a .yaml file in it")
    what = "no such file" if given.suffix else "neither a file nor a shipped recipe"
    name = _shipped_name(given)
    of_folder = next((other for other in (SUITE, EVALUATION) if name.startswith(f"{other.folder}/")), None)
    suggestion = nearest(given.stem, shipped(kind)) if of_folder is None else nearest(name, shipped(of_folder))
    return RecipeError(f"{given}: {what}{suggestion}", hint=_hint(given))


def _refuse_large(path: FilePath) -> None:
    size = path.stat().st_size
    if size > _LARGEST:
        raise RecipeError(f"{path} is {size:,} bytes long; a recipe is a page of YAML")


def _hint(given: FilePath) -> str | None:
    first = given.name.split(".")[0]
    if len(given.parts) == 1 and first in Recipe.model_fields:
        return f"to override a key, write {given}=VALUE"
    if given.is_absolute() or len(given.parts) < 2:
        return None
    return f"relative paths start at the working directory, {FilePath.cwd()}"


def _a(kind: Kind[Any]) -> str:
    return f"an {kind.name}" if kind is EVALUATION else f"a {kind.name}"


def _no_mapping(kind: Kind[Any], data: Any) -> str:
    if data is None:
        return f"the file is empty; {_a(kind)} starts with `{next(iter(kind.model.model_fields))}: ...`"
    mapping = f"{_a(kind)} is a mapping of keys to values"
    if isinstance(data, str) and ":" in data:
        return f"{mapping}; write a space after each colon"
    return f"{mapping}, this is {'a list' if isinstance(data, list) else 'one value'}"


# --- overrides -------------------------------------------------------------------------------------------


def is_override(argument: str) -> bool:
    """An argument with `=` that is not a file."""
    return "=" in argument and not (is_file(argument) or is_folder(argument))


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
        read = read_yaml(text, mark.source)
    except YamlProblem as problem:
        return [Problem(mark, path, problem.message)]
    if read.problems:  # a key that stands twice
        return [Problem(mark, path, message) for _, message in read.problems]
    section: Any = document.data
    for depth, part in enumerate(path[:-1], start=1):
        if part not in section:
            section[part] = {}
            document.keys[path[:depth]] = document.values[path[:depth]] = mark
        section = section[part]
        if not isinstance(section, dict):
            return [Problem(mark, path, _no_section(path[:depth], section, document))]
    section[path[-1]] = read.data
    for marks in (document.keys, document.values):
        for replaced in [marked for marked in marks if marked[: len(path)] == path]:
            del marks[replaced]
        marks[path] = mark
    return []


def _no_section(path: Path, value: Any, document: Document) -> str:
    where = document.value_at(path)
    name = dotted(path)
    if value is None:
        return f"{name} is null at {where}, so it has no keys to override; {name}={{}} would switch it on"
    return f"{name} is {json.dumps(value)[:40]} at {where}, so it has no keys to override"


def load_paths(overrides: Sequence[str]) -> Paths:
    """The folders of a command that takes no recipe; only `paths.*` overrides mean anything there.

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
    try:
        return Paths.model_validate_json(json.dumps(document.data["paths"]))
    except ValidationError as error:
        nested = [{**problem, "loc": ("paths", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise_problems(explain(nested, document))
        raise AssertionError("a validation error without a problem") from error
