"""The answers of `list`, `show` and `validate --json`: plain data first, lines for a person from them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import yaml

from harness.cli.arguments import results_folder, split
from harness.cli.run_names import run_of_beginning
from harness.cli.status import run_folders, run_status, status_lines
from harness.common.errors import RecipeError
from harness.common.files import has_file
from harness.common.lines import terminal_width
from harness.config.data import Data
from harness.config.explain import nearest
from harness.config.load import (
    EVALUATION,
    RECIPE,
    SUITE,
    Kind,
    check,
    kind_of,
    load_paths,
    load_recipe,
    shipped,
    suite_recipes,
)
from harness.config.model import Model
from harness.records.run_folder import shown_recipe
from harness.report import table as render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.benchmarks import PaperBenchmark

Answer = dict[str, Any]
KINDS = ("recipes", "suites", "evaluations", "runs", "models", "sources", "benchmarks")


def validation(names: Sequence[str], overrides: Sequence[str]) -> Answer:
    """What `validate --json` says: every document with its problems, and a suite as its runs."""
    if not names:
        raise RecipeError("no recipe given")
    answers: list[Answer] = []
    for name in names:
        try:
            answers += _validated(name, kind_of(name) or RECIPE, overrides)
        except RecipeError as error:
            problem = {"source": name, "line": None, "column": None, "key": None, "message": str(error)}
            answers.append({"source": name, "run_id": None, "problems": [problem]})
    return {"schema": 1, "ok": not any(answer["problems"] for answer in answers), "recipes": answers}


def _validated(name: str, kind: Kind[Any], overrides: Sequence[str]) -> list[Answer]:
    checked = check(kind, name, [] if kind is SUITE else overrides)
    if kind is SUITE and checked.document is not None:
        runs = suite_recipes(checked.document, overrides)
        return [{"source": name, "run_id": recipe.run_id, "problems": []} for recipe in runs]
    run_id = None if checked.document is None else checked.document.run_id
    source = checked.source if kind is RECIPE else name
    return [{"source": source, "run_id": run_id, "problems": [problem.as_dict() for problem in checked.problems]}]


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
    answer: Answer = {"schema": 1}
    for kind in KINDS if what is None else (what,):
        answer[kind] = _runs(arguments) if kind == "runs" else _FIXED[kind]()
    return answer


def _documents(kind: Kind[Any]) -> list[Answer]:
    """The shipped documents of a kind."""
    entries = []
    for name, path in shipped(kind).items():
        checked = check(kind, path)
        document = checked.document
        description = f"{len(checked.problems)} mistakes" if document is None else document.description
        entries.append({"name": name, "description": description})
    return entries


def _runs(arguments: Sequence[str]) -> list[Answer]:
    statuses = [run_status(folder) for folder in run_folders(results_folder(arguments))]
    return [{"name": status["run_id"], "description": status["state"]} for status in statuses]


def _variants(union: Any, key: str) -> list[Answer]:
    """The members of a discriminated union, by the literal of their tag, with the first line of their docstring."""
    classes = get_args(get_args(union)[0])
    return [
        {
            "name": get_args(cls.model_fields[key].annotation)[0],
            "description": (cls.__doc__ or "").strip().split("\n")[0],
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
            description = f"data source {benchmark.source}: {', '.join(benchmark.abilities)}"
            answers.append({"name": name, "description": description})
    return answers


def _published(benchmark: PaperBenchmark) -> Answer:
    """Task, number of items, metric, size of the data and terms of a benchmark that lmms-eval asks, and the paper's
    table that reports it."""
    origin = benchmark.origin
    size = "size not known" if origin.gigabytes is None else f"{origin.gigabytes:g} GB"
    outside = "" if benchmark.paper else " (not of the paper)"
    description = (
        f"{benchmark.title}{outside}: lmms-eval {benchmark.task}, {benchmark.items:,} of split {benchmark.split}, "
        f"{benchmark.metric}; {origin.repository}, {size}, {origin.access}; {origin.licence}"
    )
    facts = {name: getattr(benchmark, name) for name in ("task", "split", "items", "metric")}
    facts["paper_table"] = benchmark.paper.table if benchmark.paper else None
    return {"name": benchmark.name, "description": description, **facts, **asdict(origin)}


_FIXED = {
    "recipes": lambda: _documents(RECIPE),
    "suites": lambda: _documents(SUITE),
    "evaluations": lambda: _documents(EVALUATION),
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
            lines += [f"  {entry['name']:<{width}}  {entry['description']}".rstrip() for entry in answer[kind]]
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
        raise RecipeError(f"show takes one recipe, or a run and one of its items; {others[1]} is one too many")
    results = results_folder([text for text in overrides if text.startswith("paths.")])
    folders = {folder.name: folder for folder in run_folders(results)}
    if name not in folders and kind_of(name) is not None:
        recipe = load_recipe(name, overrides)
        return {"schema": 1, "run_id": recipe.run_id, "recipe": shown_recipe(recipe)}
    run_id = run_of_beginning(name, folders)
    if run_id is None:
        raise RecipeError(
            f"{name}: no recipe and no run below {results / 'runs'}{nearest(name, [*shipped(RECIPE), *folders])}"
        )
    load_paths(overrides)  # a run is what it is: another key means nothing to it
    folder = folders[run_id]
    return {"schema": 1, "run_id": run_id, "status": run_status(folder), "record": _record(folder)}


def _record(folder: Path) -> Answer | None:
    from harness.records.record import read_record

    path = folder / "record.json"
    return read_record(path) if has_file(path) else None


def shown_lines(answer: Answer) -> list[str]:
    if "recipe" in answer:
        # PyYAML breaks behind the first word that reaches beyond its width.
        width = max(30, min(terminal_width() or 110, 110) - 16)
        text = yaml.safe_dump(answer["recipe"], sort_keys=False, allow_unicode=True, width=width)
        return [f"# run {answer['run_id']}", *text.rstrip().split("\n")]
    lines = status_lines([answer["status"]])
    record = answer["record"]
    if record is None:
        return [*lines, "  no record yet"]
    return lines + [f"  {label:<13} {text}" for label, text in _record_facts(record)]


def _record_facts(record: Answer) -> list[tuple[str, str]]:
    where = record["provenance"]
    return [*_work_facts(record["totals"]), *_place_facts(where)] if record["totals"] else _place_facts(where)


def _work_facts(totals: Answer) -> list[tuple[str, str]]:
    """What a training computed and took; weights that are evaluated as they are have none of it."""
    counts, hours = totals["counts"], totals["device_hours"]
    clocks = ", ".join(f"{name} {render.duration(seconds).text}" for name, seconds in totals["seconds"].items())
    shares = [render.percent(totals[name] or 0.0).text for name in ("targets_reduction", "expected_reduction")]
    return [
        (
            "targets",
            f"{counts['target']:,}, {counts['scored']:,} computed: {shares[0]} fewer (expected {shares[1]})",
        ),
        ("positions", f"{counts['valid']:,} ({counts['visual']:,} of them visual), {counts['active']:,} computed"),
        ("clocks", clocks),
        ("device-hours", ", ".join(f"{name} {value:.3g}" for name, value in hours.items())),
    ]


def _place_facts(where: Answer) -> list[tuple[str, str]]:
    """What it was computed on and with."""
    hardware = where["hardware"]
    threads = f"{hardware['threads']} {'thread' if hardware['threads'] == 1 else 'threads'}"
    devices = [gpu["name"] for gpu in hardware["gpus"]] or [f"{hardware['cpu']}, {threads}"]
    facts = [
        ("hardware", ", ".join(devices)),
        ("packages", ", ".join(f"{name} {version}" for name, version in where["packages"].items())),
    ]
    if where["git"]:
        facts.append(("code", f"{where['git']['commit']}{', changed since' if where['git']['dirty'] else ''}"))
    return facts
