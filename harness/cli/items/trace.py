"""From a number in a table to what it was made from: `harness trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.analysis.runs import Run, load_runs, scoring_of
from harness.cli.arguments import results_folder
from harness.cli.run_names import known_suites
from harness.common.errors import DataError, RecipeError
from harness.config.explain import did_you_mean, nearest
from harness.evaluation.evaluate import kept_task
from harness.evaluation.files import published_item
from harness.evaluation.lmms.answer_cache import sent_prompt
from harness.evaluation.rows import options_of
from harness.evaluation.task import LmmsEvalTask, MultipleChoiceTask
from harness.records.evaluations import items_file
from harness.records.record import RECORD_FILE, read_items
from harness.report.table import Table, runs_of
from harness.report.tables import make_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.benchmarks import PaperBenchmark
    from harness.data.sample import Question
    from harness.evaluation.files import PublishedData
    from harness.report.table import Cell

Answer = dict[str, Any]
_SHOWN: Final = 10
FIELDS: Final = ("answer", "prediction", "correct", "option_loss", "option_tokens", "text", "empty", "unparsable")
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
        "in_full": item is not None,
        "items": [told(run.folder, evaluation, line) for line in selected(kept, item)] if item else kept,
        "right": sum(line["correct"] for line in kept),
        "scored": len(kept),
    }
    return answer


def vars_of(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """How the items became a score."""
    scoring = scoring_of(evaluation)
    return {"unit": scoring.unit, "combine": scoring.combine, "scale": scoring.scale}


def selected(items: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
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


def told(run_dir: Path, evaluation: Mapping[str, Any], item: Mapping[str, Any]) -> Answer:
    """An item with its question, clip and options, as far as they are kept or its data are here."""
    task = kept_task(run_dir, evaluation["benchmark"])
    if isinstance(task, MultipleChoiceTask):
        known = asked_of(task.question(item))
    elif isinstance(task, LmmsEvalTask):
        result = run_dir / "eval" / f"step-{evaluation['step']:06d}" / f"{evaluation['benchmark']}.json"
        known = {"prompt": sent(result, task.benchmark, item), **_here(task, item)}
    else:
        known = {}
    name: Answer = {"task": item["task"], "key": str(item["key"])}
    return name | known | {field: item[field] for field in FIELDS if field in item}


def _here(task: LmmsEvalTask, item: Mapping[str, Any]) -> Answer:
    """What the data of a published benchmark say of an item; nothing where they are not here."""
    try:
        return row_of(task.data, item)
    except DataError:
        return {}


def asked_of(question: Question | None) -> Answer:
    """What a question of this project's form asks; nothing where it is not kept."""
    if question is None:
        return {}
    media = [{"kind": m.kind, "path": str(m.path), "start": m.start, "end": m.end} for m in question.media]
    right = question.options[question.answer]
    return {"question": question.text, "options": list(question.options), "media": media, "right_option": right}


def row_of(data: PublishedData, item: Mapping[str, Any]) -> Answer:
    """What the row of a published benchmark asks.

    Raises:
        DataError: the data are not complete.
    """
    benchmark = data.benchmark
    published = published_item(data, item["task"], str(item["key"]))
    row, options = published.row, options_of(benchmark, published.row)
    path = str(published.video or published.file)
    medium: Answer = {"kind": benchmark.media, "path": path, "start": None, "end": None}
    if published.video is None:
        medium["row"] = published.place
    right = None if benchmark.answer_field is None else row[benchmark.answer_field]
    if right is not None and benchmark.answer_index and benchmark.options_column is not None:
        right = row[benchmark.options_column][int(right)]
    return {
        "question": None if row.get("question") is None else str(row["question"]),
        "options": options,
        "media": [medium],
        "right_option": None if right is None else str(right),
    }


def sent(result: Path, benchmark: PaperBenchmark, item: Mapping[str, Any]) -> str | None:
    """What was sent, out of the answers that are kept beside a result while the run's folder is whole."""
    tasks = dict(zip(map(benchmark.part_task, benchmark.parts), benchmark.lmms_tasks, strict=benchmark.group))
    return sent_prompt(result, tasks[item["task"]] if benchmark.group else benchmark.task, str(item["key"]))


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
    if evaluation["in_full"]:
        return lines + [f"  {line}" for item in items for line in item_lines(item)]
    for item in items[:_SHOWN]:
        verdict = "right" if item["correct"] == 1 else "wrong" if item["correct"] == 0 else f"{item['correct']:g}"
        lines.append(f"    {item['task']}/{item['key']}  {verdict}")
    if len(items) > _SHOWN:
        lines.append(f"    and {len(items) - _SHOWN} more; --item KEY tells one in full, --json all of them")
    return lines


def item_lines(item: Mapping[str, Any]) -> list[str]:
    """An item in full: question, clip, options with their losses or the generated answer."""
    return [f"{item['task']}/{item['key']}", *question_lines(item), *answer_lines(item, item.get("options"))]


def question_lines(item: Mapping[str, Any]) -> list[str]:
    """What an item asks: what was sent where that is kept, else its question; what it shows; and the right answer of
    a published benchmark's."""
    media = [f"  {medium['kind']:<9} {medium['path']}{_cut(medium)}" for medium in item.get("media", ())]
    if item.get("prompt"):
        asked = [f"  sent      {line}" for line in str(item["prompt"]).splitlines()]
    elif item.get("question"):
        asked = [f"  question  {item['question']}"]
    else:
        return [*media, "  its question is not kept"]
    right = item.get("right_option") if "prompt" in item else None
    return asked + media + ([] if right is None else [f"  right     {right}"])


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
        if options and "prediction" in item:
            lines.append(f"  accepted  {'; '.join(options)}")
    lines.append(f"  {'right' if item['correct'] == 1 else 'wrong' if item['correct'] == 0 else item['correct']}")
    return lines


def _cut(media: Mapping[str, Any]) -> str:
    if "row" in media:
        return f", row {media['row']}, counted from 0"
    if media["start"] is None and media["end"] is None:
        return ""
    end = "its end" if media["end"] is None else f"{media['end']:g} s"
    return f" from {media['start'] or 0:g} s to {end}"


__all__ = ["answer_lines", "item_lines", "question_lines", "selected", "told", "traced", "traced_lines"]
