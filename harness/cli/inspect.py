"""The answers of `list`, `show` and `validate --json`: plain data first, lines for a person from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import yaml

from harness.cli.arguments import results_folder, split
from harness.cli.status import run_folders, run_status, status_lines
from harness.common.errors import RecipeError
from harness.config.explain import nearest
from harness.config.load import check_recipe, find_recipe, load_recipe, shipped_recipes
from harness.config.load_evaluation import check_evaluation, find_evaluation, load_evaluation, shipped_evaluations
from harness.config.model import Model
from harness.config.recipe import Data
from harness.config.suite import find_suite, load_suite, shipped_suites

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.benchmarks import PaperBenchmark

Answer = dict[str, Any]
KINDS = ("recipes", "suites", "evaluations", "runs", "models", "sources", "benchmarks")


def validation(names: Sequence[str], overrides: Sequence[str]) -> Answer:
    """What `validate --json` says: every recipe with its problems."""
    if not names:
        raise RecipeError("no recipe given")
    recipes = []
    for name in names:
        if find_suite(name) is not None:
            recipes += _suite_validation(name, overrides)
            continue
        if find_evaluation(name) is not None:
            recipes.append(_evaluation_validation(name, overrides))
            continue
        try:
            checked = check_recipe(name, overrides)
        except RecipeError as error:
            recipes.append(_refused(name, error))
            continue
        run_id = checked.recipe.run_id if checked.recipe else None
        problems = [problem.as_dict() for problem in checked.problems]
        recipes.append({"source": checked.source, "run_id": run_id, "problems": problems})
    return {"schema": 1, "ok": not any(recipe["problems"] for recipe in recipes), "recipes": recipes}


def _suite_validation(name: str, overrides: Sequence[str]) -> list[Answer]:
    try:
        found = load_suite(name).recipes(overrides)
    except RecipeError as error:
        return [_refused(name, error)]
    return [{"source": name, "run_id": recipe.run_id, "problems": []} for recipe in found]


def _evaluation_validation(name: str, overrides: Sequence[str]) -> Answer:
    recipe, problems = check_evaluation(name, overrides)
    run_id = recipe.run_id if recipe and not problems else None
    return {"source": name, "run_id": run_id, "problems": [problem.as_dict() for problem in problems]}


def _refused(name: str, error: RecipeError) -> Answer:
    problem = {"source": name, "line": None, "column": None, "key": None, "message": str(error)}
    return {"source": name, "run_id": None, "problems": [problem]}


# --- list ------------------------------------------------------------------------------------------------


def listing(what: str | None, arguments: Sequence[str]) -> Answer:
    """Names with a sentence each.

    Raises:
        RecipeError: `what` is none of KINDS.
    """
    if what is not None and "=" in what:
        return listing(None, [what, *arguments])
    if what is not None and what not in KINDS:
        raise RecipeError(f"list {what}: there is no such kind{nearest(what, KINDS)}")
    found: Answer = {"schema": 1}
    for kind in KINDS if what is None else (what,):
        found[kind] = _runs(arguments) if kind == "runs" else _FIXED[kind]()
    return found


def _recipes() -> list[Answer]:
    found = []
    for name, path in shipped_recipes().items():
        checked = check_recipe(path)
        words = checked.recipe.description if checked.recipe else f"{len(checked.problems)} mistakes"
        found.append({"name": name, "words": words})
    return found


def _suites() -> list[Answer]:
    return [{"name": name, "words": load_suite(name).description} for name in shipped_suites()]


def _evaluations() -> list[Answer]:
    return [{"name": name, "words": load_evaluation(name).description} for name in shipped_evaluations()]


def _runs(arguments: Sequence[str]) -> list[Answer]:
    statuses = [run_status(folder) for folder in run_folders(results_folder(arguments))]
    return [{"name": status["run_id"], "words": status["state"]} for status in statuses]


def _variants(union: Any, key: str) -> list[Answer]:
    """The members of a discriminated union, by the literal of their tag, with the first line of their docstring."""
    classes = get_args(get_args(union)[0])
    return [
        {
            "name": get_args(cls.model_fields[key].annotation)[0],
            "words": (cls.__doc__ or "").strip().split("\n")[0],
        }
        for cls in classes
    ]


def _benchmarks() -> list[Answer]:
    from harness.benchmarks import BENCHMARKS, PaperBenchmark

    answers: list[Answer] = []
    for name, benchmark in BENCHMARKS.items():
        if isinstance(benchmark, PaperBenchmark):
            answers.append(_published(benchmark))
        else:
            words = f"data source {benchmark.source}: {', '.join(benchmark.abilities)}"
            answers.append({"name": name, "words": words})
    return answers


def _published(benchmark: PaperBenchmark) -> Answer:
    """Task, number of items, metric, size of the data and terms of a benchmark that lmms-eval asks, and the paper's
    table that reports it."""
    origin = benchmark.origin
    size = "size not known" if origin.gigabytes is None else f"{origin.gigabytes:g} GB"
    outside = "" if benchmark.paper else " (not of the paper)"
    words = (
        f"{benchmark.title}{outside}: lmms-eval {benchmark.task}, {benchmark.items:,} of split {benchmark.split}, "
        f"{benchmark.metric}; {origin.repository}, {size}, {origin.access}; {origin.licence}"
    )
    facts = {name: getattr(benchmark, name) for name in ("task", "split", "items", "metric")}
    facts["paper_table"] = benchmark.paper.table if benchmark.paper else None
    return {"name": benchmark.name, "words": words, **facts, **asdict(origin)}


_FIXED = {
    "recipes": _recipes,
    "suites": _suites,
    "evaluations": _evaluations,
    "models": lambda: _variants(Model, "adapter"),
    "sources": lambda: _variants(Data, "source"),
    "benchmarks": _benchmarks,
}


def listing_lines(answer: Answer) -> list[str]:
    lines: list[str] = []
    for kind in KINDS:
        if kind in answer:
            lines += [*([""] if lines else []), kind]
            width = max((len(entry["name"]) for entry in answer[kind]), default=0)
            lines += [f"  {entry['name']:<{width}}  {entry['words']}".rstrip() for entry in answer[kind]]
            if not answer[kind]:
                lines.append("  none")
    return lines


# --- show ------------------------------------------------------------------------------------------------


def shown(name: str, arguments: Sequence[str]) -> Answer:
    """A recipe with all its defaults, or a run: its status, recipe and record.

    Raises:
        RecipeError: no recipe and no single run has that name.
    """
    others, overrides = split(arguments)
    if others:
        raise RecipeError(f"show takes one recipe or run; {others[0]} is neither an override nor asked for")
    places = [text for text in overrides if text.startswith("paths.")]
    folder = _run_folder(name, results_folder(places))
    if folder is None:
        recipe = load_recipe(name, overrides)
        return {"schema": 1, "run_id": recipe.run_id, "recipe": recipe.model_dump(mode="json")}
    status = run_status(folder)
    return {"schema": 1, "run_id": folder.name, "status": status, "record": _record(folder)}


def _run_folder(name: str, results: Path) -> Path | None:
    """The run of that id or beginning of an id; None where it is a recipe."""
    folders = {folder.name: folder for folder in run_folders(results)}
    if name in folders:
        return folders[name]
    try:
        find_recipe(name)
    except RecipeError as error:
        matching = [folders[run] for run in folders if run.startswith(name)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise RecipeError(
                f"{name} is the beginning of several runs: {', '.join(folder.name for folder in matching)}"
            ) from None
        raise RecipeError(f"{name}: no recipe and no run below {results / 'runs'}", hint=str(error)) from None
    return None


def _record(folder: Path) -> Answer | None:
    from harness.records.record import read_record

    path = folder / "record.json"
    return read_record(path) if path.is_file() else None


def shown_lines(answer: Answer) -> list[str]:
    if "recipe" in answer:
        text = yaml.safe_dump(answer["recipe"], sort_keys=False, allow_unicode=True, width=110)
        return [f"# run {answer['run_id']}", *text.rstrip().split("\n")]
    lines = status_lines([answer["status"]])
    record = answer["record"]
    if record is None:
        return [*lines, "  no record yet"]
    return lines + [f"  {label:<13} {text}" for label, text in _record_facts(record)]


def _record_facts(record: Answer) -> list[tuple[str, str]]:
    totals, where = record["totals"], record["provenance"]
    counts, hours = totals["counts"], totals["device_hours"]
    clocks = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in totals["seconds"].items())
    reduction, expected = totals["targets_reduction"] or 0.0, totals["expected_reduction"] or 0.0
    hardware = where["hardware"]
    devices = [gpu["name"] for gpu in hardware["gpus"]] or [f"{hardware['cpu']}, {hardware['threads']} threads"]
    facts = [
        (
            "targets",
            f"{counts['target']:,}, {counts['scored']:,} computed: {reduction:.2%} fewer (expected {expected:.2%})",
        ),
        ("positions", f"{counts['valid']:,}, {counts['active']:,} computed, {counts['visual']:,} of them visual"),
        ("clocks", clocks),
        ("device-hours", ", ".join(f"{name} {value:.3g}" for name, value in hours.items())),
        ("hardware", ", ".join(devices)),
        ("packages", ", ".join(f"{name} {version}" for name, version in where["packages"].items())),
    ]
    if where["git"]:
        facts.append(("code", f"{where['git']['commit']}{', changed since' if where['git']['dirty'] else ''}"))
    return facts
