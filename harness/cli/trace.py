"""From a number in a table to what it was made from, and one item asked again: `harness trace`, `harness show`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.runs import Run, load_runs, scoring_of
from harness.cli.arguments import results_folder
from harness.cli.run_names import known_suites, run_of_beginning
from harness.common.errors import RecipeError, StaleError
from harness.config.explain import did_you_mean, nearest
from harness.evaluation.evaluate import Job, ask_again, kept_task
from harness.evaluation.lmms.answer_cache import answers_file
from harness.evaluation.task import MultipleChoiceTask
from harness.records.evaluations import items_file, read_item_lines
from harness.records.record import RECORD_FILE, read_items
from harness.records.run_folder import RECIPE_FILE, read_recipe
from harness.report.table import Table, runs_of
from harness.report.tables import make_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sample import Question
    from harness.report.table import Cell

Answer = dict[str, Any]
_SHOWN: Final = 10
_FIELDS: Final = ("answer", "prediction", "correct", "option_loss", "option_tokens", "text", "empty", "unparsable")
"""What of an item is shown beside its question."""


# --- from a cell to runs and items -----------------------------------------------------------------------


def traced(table: str, row: str, column: str, arguments: Sequence[str], item: str | None = None) -> Answer:
    """The cell, the runs it was made from with their records, and the items behind its score.

    Args:
        row: the words of its first cell or one of its names, or its number from 1.
        column: the heading, or one of its names in CSV.
        item: key of an item (or `task/key`), which is then told in full; None lists the items.

    Raises:
        RecipeError: there is no such table, row, column or item; what is near is named.
        DataError, StaleError: as `make_tables`.
    """
    results, suites = results_folder(arguments), known_suites(arguments)
    chosen = _table(make_tables(results, suites), table)
    cells, place = _row(chosen, row), _column(chosen, column)
    cell, names = cells[place], chosen.columns[place].names
    ids = cell.runs or runs_of(cells)
    runs = {run.id: run for run in load_runs(results)}
    asked = _benchmark((*names, *_names_of(cells), chosen.name), [runs[run_id] for run_id in ids])
    return {
        "schema": 1,
        "table": chosen.name,
        "row": cells[0].text,
        "column": chosen.columns[place].title,
        "text": cell.text,
        "values": dict(zip(names, cell.values, strict=True)),
        "benchmark": asked,
        "runs": [_of_run(runs[run_id], asked, names, item) for run_id in ids],
    }


def _table(tables: Sequence[Table], name: str) -> Table:
    by_name = {table.name: table for table in tables}
    if name not in by_name:
        raise RecipeError(f"no table {name}{did_you_mean(name, by_name)}", hint=f"there are {', '.join(by_name)}")
    return by_name[name]


def _row(table: Table, name: str) -> tuple[Cell, ...]:
    if name.isdigit() and 1 <= int(name) <= len(table.rows):
        return table.rows[int(name) - 1]
    words = [" | ".join(_names_of(row)) for row in table.rows]
    matching = [row for row in table.rows if name in _names_of(row)]
    matching = matching or [row for row in table.rows if row[0].text.startswith(name)]
    matching = matching or [row for row in table.rows if any(text.startswith(name) for text in _names_of(row))]
    if len(matching) == 1:
        return matching[0]
    listed = "\n".join(f"  {place}  {text}" for place, text in enumerate(words, start=1))
    problem = "is the name of several rows" if matching else "is no row"
    raise RecipeError(f"{name} {problem} of {table.name}; name one by its number\n{listed}")


def _names_of(row: tuple[Cell, ...]) -> list[str]:
    """The words that name a row: those of its first cells, up to the first number."""
    names: list[str] = []
    for cell in row:
        if not all(isinstance(value, str) for value in cell.values):
            break
        names += dict.fromkeys(text for text in (cell.text, *map(str, cell.values)) if text)
    return names


def _column(table: Table, name: str) -> int:
    for place, column in enumerate(table.columns):
        if name == column.title or name in column.names:
            return place
    known = [name for column in table.columns for name in (column.title, *column.names)]
    raise RecipeError(
        f"{name} is no column of {table.name}{did_you_mean(name, known)}",
        hint=f"columns: {', '.join(column.title for column in table.columns)}",
    )


def _benchmark(texts: Sequence[str], runs: Sequence[Run]) -> str | None:
    """The benchmark that a cell is about, by the names of its column, row or table; None where it is about none."""
    known = sorted({entry["benchmark"] for run in runs for entry in run.record["evaluations"]}, key=len, reverse=True)
    for text in texts:
        for benchmark in map(str, known):
            if text == benchmark or text.startswith(f"{benchmark}_") or text.endswith(f"_{benchmark}"):
                return benchmark
    return None


def _of_run(run: Run, benchmark: str | None, names: Sequence[str], item: str | None) -> Answer:
    answer: Answer = {"id": run.id, "record": str(run.folder / RECORD_FILE), "evaluation": None}
    evaluation = None if benchmark is None else run.last(benchmark)
    if evaluation is None:
        return answer
    path = run.folder / "eval" / f"step-{evaluation['step']:06d}" / evaluation["items"]
    lines = read_items(run.folder, evaluation)
    tasks = [task["task"] for task in evaluation["tasks"] if names[0] == task["ability"]]
    tasks = tasks or [task["task"] for task in evaluation["tasks"] if task["in_mean"]]
    kept = [line for line in lines or () if line["task"] in tasks]
    answer["evaluation"] = {
        "benchmark": benchmark,
        "step": evaluation["step"],
        "scoring": vars_of(evaluation),
        "items_file": None if lines is None else str(items_file(path)),
        "items": [_told(run.folder, evaluation, line) for line in _selected(kept, item)] if item else kept,
        "right": sum(line["correct"] for line in kept),
        "scored": len(kept),
    }
    return answer


def vars_of(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """How the items became a score."""
    scoring = scoring_of(evaluation)
    return {"unit": scoring.unit, "combine": scoring.combine, "scale": scoring.scale}


def _selected(items: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The items of a key, or of `task/key`.

    Raises:
        RecipeError: there is none; what is near is named.
    """
    chosen = [item for item in items if name in (str(item["key"]), f"{item['task']}/{item['key']}")]
    if not chosen:
        keys = [str(item["key"]) for item in items]
        some = f"; items are {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}" if keys else "; no item is kept"
        raise RecipeError(f"no item {name}{nearest(name, keys) if len(keys) > 24 else ''}{some}")
    return chosen


def _told(run_dir: Path, evaluation: Mapping[str, Any], item: Mapping[str, Any]) -> Answer:
    """An item with its question, clip and options, as far as they are kept."""
    told: Answer = {"task": item["task"], "key": str(item["key"])}
    question = _question(run_dir, evaluation["benchmark"], item)
    if question is not None:
        told |= {"question": question.text, "options": list(question.options)}
        told["media"] = [
            {"kind": m.kind, "path": str(m.path), "start": m.start, "end": m.end} for m in question.media
        ]
    else:
        told["prompt"] = _prompt(run_dir, evaluation, item)
    return told | {name: item[name] for name in _FIELDS if name in item}


def _question(run_dir: Path, benchmark: str, item: Mapping[str, Any]) -> Question | None:
    task = kept_task(run_dir, benchmark)
    if not isinstance(task, MultipleChoiceTask):
        return None
    asked = task.tasks.get(item["ability"], ())
    return next((question for question in asked if question.key == item["key"]), None)


def _prompt(run_dir: Path, evaluation: Mapping[str, Any], item: Mapping[str, Any]) -> str | None:
    """What was sent, out of the answers that are kept while the run's folder is whole."""
    result = run_dir / "eval" / f"step-{evaluation['step']:06d}" / f"{evaluation['benchmark']}.json"
    for path in sorted(result.parent.glob(answers_file(result, 0).name.replace("-0.", "-*."))):
        for line in read_item_lines(path):
            if str(line["key"]) == str(item["key"]):
                return str(line["prompt"])
    return None


# --- an item asked again ---------------------------------------------------------------------------------


def asked_again(name: str, item: str, arguments: Sequence[str], progress: Progress) -> Answer:
    """One item of a run's last evaluation beside the answer that its kept checkpoint gives now.

    Raises:
        RecipeError: no such run or item, or an item of a published benchmark.
        StaleError: the question or the checkpoint is not kept any more.
    """
    results = results_folder(arguments)
    folders = {run.id: run for run in load_runs(results)}
    run_id = run_of_beginning(name, folders)
    if run_id is None:
        raise RecipeError(f"{name}: no finished run below {results / 'runs'}{nearest(name, folders)}")
    run = folders[run_id]
    evaluation, line = _last_item(run, item)
    task = kept_task(run.folder, evaluation["benchmark"])
    if task is None:
        raise StaleError(
            f"{run_id}: the questions of {evaluation['benchmark']} are not kept",
            hint="evaluate it again: harness eval",
        )
    if not isinstance(task, MultipleChoiceTask):
        raise RecipeError(
            f"{evaluation['benchmark']} is asked by lmms-eval's own task, as a whole; its items are not asked alone",
            hint="harness trace shows what was sent and answered",
        )
    question = _question(run.folder, evaluation["benchmark"], line)
    if question is None:
        raise StaleError(f"{run_id}: the question of {item} is not kept", hint="evaluate it again: harness eval")
    alone = MultipleChoiceTask(
        replace(task.benchmark, abilities=(question.ability,)), {question.ability: (question,)}
    )
    checkpoint = run.folder / "checkpoints" / f"step-{evaluation['step']:06d}"
    if not checkpoint.is_dir():
        raise StaleError(
            f"{checkpoint} is gone: the model that answered {item} is not kept", hint="harness trace shows its answer"
        )
    job = Job(evaluation["step"], evaluation["fraction"], checkpoint)
    with tempfile.TemporaryDirectory(prefix="harness-show-") as folder:
        (now,) = ask_again(_recipe_of(run), Path(folder), job, alone, progress)
    shown_item = _told(run.folder, evaluation, line)
    stored, again = ({field: entry[field] for field in _FIELDS if field in entry} for entry in (line, now))
    shown_item = {field: value for field, value in shown_item.items() if field not in _FIELDS}
    shown_item["right_option"] = question.options[question.answer] if task.benchmark.form != "short" else None
    return {
        "schema": 1, "run": run_id, "benchmark": evaluation["benchmark"], "step": evaluation["step"],
        "form": task.benchmark.form, "item": shown_item, "stored": stored, "again": again,
    }  # fmt: skip


def _last_item(run: Run, name: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The item of a key, and the last evaluation that it belongs to."""
    benchmarks = dict.fromkeys(entry["benchmark"] for entry in run.record["evaluations"])
    found: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
    every: list[Mapping[str, Any]] = []
    for benchmark in benchmarks:
        evaluation = run.last(benchmark)
        assert evaluation is not None
        lines = read_items(run.folder, evaluation) or []
        every += lines
        found += [(evaluation, line) for line in lines if name in (str(line["key"]), f"{line['task']}/{line['key']}")]
    if not found:
        _selected(every, name)
    if len(found) > 1:
        several = ", ".join(f"{line['task']}/{line['key']}" for _, line in found)
        raise RecipeError(f"{name} is the key of several items; write one of {several}")
    return found[0]


def _recipe_of(run: Run) -> Recipe:
    """The recipe that the run's folder keeps, for an item of a training's evaluation."""
    path = run.folder / RECIPE_FILE
    if not path.is_file():
        raise StaleError(f"{path} is gone: how the model is loaded is not known")
    if not run.trained:
        raise RecipeError(f"{run.id} was evaluated without a training", hint="harness eval asks it again")
    return read_recipe(run.folder)


# --- lines for a person ----------------------------------------------------------------------------------


def traced_lines(answer: Answer) -> list[str]:
    """What `trace` prints."""
    values = ", ".join(f"{name} {value}" for name, value in answer["values"].items())
    lines = [f"{answer['table']}, row {answer['row']}, column {answer['column']}: {answer['text']}", f"  {values}"]
    if not answer["runs"]:
        lines.append("  no run of yours is behind it")
    for run in answer["runs"]:
        lines += ["", f"run {run['id']}", f"  record  {run['record']}"]
        evaluation = run["evaluation"]
        if evaluation is not None:
            lines += _evaluation_lines(evaluation)
    return lines


def _evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    head = f"  {evaluation['benchmark']} after step {evaluation['step']}: "
    if evaluation["items_file"] is None:
        return [head + "its items are not kept"]
    lines = [
        head + f"{evaluation['right']:g} of {evaluation['scored']} items right",
        f"  items   {evaluation['items_file']}",
    ]
    items = evaluation["items"]
    if items and ("question" in items[0] or "prompt" in items[0]):
        return lines + [f"  {line}" for item in items for line in item_lines(item)]
    for item in items[:_SHOWN]:
        verdict = "right" if item["correct"] == 1 else "wrong" if item["correct"] == 0 else f"{item['correct']:g}"
        lines.append(f"    {item['task']}/{item['key']}  {verdict}")
    if len(items) > _SHOWN:
        lines.append(f"    and {len(items) - _SHOWN} more; --item KEY tells one in full, --json all of them")
    return lines


def item_lines(item: Mapping[str, Any]) -> list[str]:
    """An item in full: question, clip, options with their losses or the generated answer."""
    lines = [f"{item['task']}/{item['key']}"]
    if "question" in item:
        lines.append(f"  question  {item['question']}")
        lines += [f"  {media['kind']:<9} {media['path']}{_cut(media)}" for media in item["media"]]
    elif item.get("prompt"):
        lines += [f"  sent      {line}" for line in str(item["prompt"]).splitlines()]
    else:
        lines.append("  its question is not kept")
    return lines + answer_lines(item, item.get("options"))


def answer_lines(item: Mapping[str, Any], options: Sequence[str] | None) -> list[str]:
    """The answer of an item: each option with its loss, or the generated text; the right one and the chosen one
    marked."""
    losses = item.get("option_loss")
    lines = []
    if losses is not None:
        for place, loss in enumerate(losses):
            marks = [word for word, field in (("right", "answer"), ("chosen", "prediction")) if item[field] == place]
            text = options[place] if options else f"option {place + 1}"
            lines.append(f"  {loss:8.3f} nats  {text}{f'  ({chr(44).join(marks)})' if marks else ''}")
    elif "text" in item:
        lines.append(f"  answer    {item['text']!r}")
        if options:
            lines.append(f"  accepted  {'; '.join(options)}")
    lines.append(f"  {'right' if item['correct'] == 1 else 'wrong' if item['correct'] == 0 else item['correct']}")
    return lines


def _cut(media: Mapping[str, Any]) -> str:
    if media["start"] is None and media["end"] is None:
        return ""
    end = "its end" if media["end"] is None else f"{media['end']:g} s"
    return f" from {media['start'] or 0:g} s to {end}"


def asked_lines(answer: Answer) -> list[str]:
    """What `show RUN ITEM` prints: the question, the stored answer and the one given now."""
    item = answer["item"]
    lines = [f"{answer['run']}, {answer['benchmark']} after step {answer['step']}, {item['task']}/{item['key']}"]
    lines.append(f"  question  {item['question']}")
    lines += [f"  {media['kind']:<9} {media['path']}{_cut(media)}" for media in item["media"]]
    for title, given in (("stored", answer["stored"]), ("asked again", answer["again"])):
        lines += [title, *answer_lines(given, item["options"])]
    return lines


__all__ = ["asked_again", "asked_lines", "traced", "traced_lines"]
