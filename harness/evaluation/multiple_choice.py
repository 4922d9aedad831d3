"""The questions of a benchmark of this project: what is sent, and how an answer is scored. Pure functions, no torch.

What is sent to the model and how the items become a score is defined here once, so that the child process that asks
and the parent that checks the child agree by construction.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, RecipeError
from harness.common.hashing import digest
from harness.data.sample import Media, Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.benchmarks import Benchmark, Form
    from harness.benchmarks.question_file import OwnQuestions

Tasks = dict[str, tuple[Question, ...]]
"""Questions by ability, in the order of the benchmark's abilities."""
LETTERS: Final = "ABCDEFGHIJ"
_ARTICLES: Final = frozenset({"a", "an", "the"})
_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS: Final = {word: str(number) for number, word in enumerate(_NUMBERS)}


def select(benchmark: Benchmark, source: str, questions: Sequence[Question], limit: int | None) -> Tasks:
    """The questions by ability, the first `limit` of each in the order of the data set.

    Raises:
        RecipeError: the benchmark asks questions of another data source.
        DataError: an ability has no question, or a question cannot be asked; the first such is named.
    """
    if source != benchmark.source:
        raise RecipeError(
            f"evaluate.benchmarks: {benchmark.name} asks the questions of data.source {benchmark.source}, "
            f"this recipe has {source}"
        )
    tasks: dict[str, list[Question]] = {ability: [] for ability in benchmark.abilities}
    keys: set[tuple[str, str]] = set()
    for question in questions:
        problem = _problem(benchmark, question, keys)
        if problem:
            raise DataError(f"{benchmark.name}: question {question.key}: {problem}")
        tasks[question.ability].append(question)
    empty = [ability for ability, selected in tasks.items() if not selected]
    if empty:
        raise DataError(
            f"{benchmark.name}: no question of {', '.join(empty)} among {len(questions)}",
            hint="make more test clips (data.test_clips)",
        )
    return {ability: tuple(selected[:limit]) for ability, selected in tasks.items()}


def own_tasks(questions: OwnQuestions, limit: int | None) -> Tasks:
    """The questions of a user's own file by ability, the first `limit` of each, with the hashes of their media, which
    are there."""
    hashes: dict[str, str | None] = {}
    tasks: dict[str, list[Question]] = {ability: [] for ability in questions.benchmark.abilities}
    for record in questions.records:
        asked = tasks[record["ability"]]
        if limit is None or len(asked) < limit:
            for media in record["media"]:
                hashes[media["path"]] = hashes.get(media["path"]) or _file_hash(Path(media["path"]))
            shown = [{**media, "sha256": hashes[media["path"]]} for media in record["media"]]
            asked.append(question_of({**record, "media": shown}))
    return {ability: tuple(asked) for ability, asked in tasks.items()}


def _file_hash(path: Path) -> str | None:
    """sha256 of a file; None of a folder of pictures."""
    if path.is_dir():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _problem(benchmark: Benchmark, question: Question, keys: set[tuple[str, str]]) -> str | None:
    name = (question.ability, question.key)
    if question.ability not in benchmark.abilities:
        return f"unknown ability {question.ability!r}"
    if name in keys:
        return f"a second {question.ability} question of that key"
    keys.add(name)
    if not 2 <= len(question.options) <= len(LETTERS) or len(set(question.options)) < len(question.options):
        return f"between 2 and {len(LETTERS)} different options are needed"
    if not 0 <= question.answer < len(question.options):
        return f"answer {question.answer} of {len(question.options)} options"
    if not all(option.strip() for option in question.options):
        return "an option is empty"
    return None


def prompt(form: Form, question: Question) -> str:
    """The user's turn as sent, with a tag for each media that the text does not place itself."""
    tags = [f"<media:{i}>" for i in range(len(question.media))]
    lead = "".join(f"{tag}\n" for tag in tags if tag not in question.text)
    if form == "options":
        return f"{lead}{question.text}"
    if form == "short":
        return f"{lead}{question.text}\nAnswer with a word or a short phrase."
    listed = "".join(f"\n{LETTERS[i]}. {option}" for i, option in enumerate(question.options))
    how = "the letter of the right option" if form == "letter" else "the right option"
    return f"{lead}{question.text}{listed}\nAnswer with {how}."


def prompt_hash(rows: Iterable[tuple[str, str, str, Sequence[str]]]) -> str:
    """Hash of (task, key, prompt, continuations) of every item, in the order of tasks and keys."""
    return digest(sorted([task, key, text, list(options)] for task, key, text, options in rows))


def expected_prompt_hash(benchmark: Benchmark, tasks: Tasks) -> str:
    """`prompt_hash` of what should be sent."""
    scored = benchmark.form == "options"
    return prompt_hash(
        (benchmark.task(ability), q.key, prompt(benchmark.form, q), q.options if scored else ())
        for ability, questions in tasks.items()
        for q in questions
    )


def questions_hash(tasks: Tasks) -> str:
    """Hash of the questions, their answers and the contents of their media; where the files lie is not in it."""
    return digest(
        [
            [q.ability, q.key, q.text, list(q.options), q.answer]
            + [[m.kind, m.sha256 or m.path.name, m.start, m.end] for m in q.media]
            for questions in tasks.values()
            for q in questions
        ]
    )


def question_record(question: Question) -> dict[str, Any]:
    """A question as plain values; `question_of` reads them back."""
    media = [
        {"kind": m.kind, "path": str(m.path), "start": m.start, "end": m.end, "sha256": m.sha256}
        for m in question.media
    ]
    names = ("key", "ability", "text", "answer")
    return {**{name: getattr(question, name) for name in names}, "options": list(question.options), "media": media}


def question_of(record: Mapping[str, Any]) -> Question:
    """The question that `question_record` wrote down."""
    media = tuple(media_of(fields) for fields in record["media"])
    return Question(**{**record, "options": tuple(record["options"]), "media": media})


def media_of(record: Mapping[str, Any]) -> Media:
    return Media(**{**record, "path": Path(record["path"])})


def parse_answer(form: Form, text: str, options: Sequence[str]) -> int | None:
    """Which option a generated answer names; None where it names none or more than one.

    A letter stands first, alone or set off by punctuation ("B", "(B)", "B. Two.", but not the article of "A cat");
    a sentence is compared without case, punctuation and spacing; a short answer also without articles and with
    numbers up to ten as digits, and is 0 where it is any of the accepted ones.
    """
    if form == "letter":
        letter = re.match(r"\s*\(?([A-Za-z])(?:[).:,]|\s*$)", text)
        index = LETTERS.find(letter.group(1).upper()) if letter else -1
        return index if 0 <= index < len(options) else None
    if form == "short":
        return 0 if _short(text) in map(_short, options) else None
    same = [i for i, option in enumerate(options) if _plain(option) == _plain(text)]
    return same[0] if len(same) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _short(text: str) -> str:
    words = [word for word in _plain(text).split() if word not in _ARTICLES]
    return " ".join(_DIGITS.get(word, word) for word in words)


def summarise(benchmark: Benchmark, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of the tasks, their mean and the counts, from the items alone.

    The mean is over tasks (each ability weighs the same); its error takes the tasks as independent.
    `value_per_token` ranks the options by their mean instead of their summed loss.
    """
    factor = 100.0 if benchmark.scale == "percent" else 1.0
    tasks = []
    for ability in benchmark.abilities:
        own_items = [item for item in items if item["task"] == benchmark.task(ability)]
        if not own_items:
            continue
        value, error = _mean([item["correct"] for item in own_items])
        entry = {
            "task": benchmark.task(ability),
            "ability": ability,
            "metric": benchmark.metric,
            "value": value * factor,
            "stderr": None if error is None else error * factor,
            "n": len(own_items),
            "in_mean": ability not in benchmark.left_out,
        }
        if benchmark.form == "options":
            entry["value_per_token"] = _mean([per_token_correct(item) for item in own_items])[0] * factor
        tasks.append(entry)
    counts = {
        "scored": len(items),
        "empty": sum(bool(item.get("empty")) for item in items),
        # Any words are a short answer.
        "unparsable": sum(
            item["prediction"] is None and not item.get("empty") and benchmark.form != "short" for item in items
        ),
    }
    return {"tasks": tasks, "mean": _macro(tasks), "counts": counts}


def per_token_correct(item: Mapping[str, Any]) -> int:
    """Whether the option with the least mean loss is the right one."""
    means = [loss / tokens for loss, tokens in zip(item["option_loss"], item["option_tokens"], strict=True)]
    return int(means.index(min(means)) == item["answer"])


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (sample deviation over the root of n); no error from a single value."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def _macro(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counted = [task for task in tasks if task["in_mean"]]
    errors = [task["stderr"] for task in counted]
    known = bool(counted) and None not in errors
    return {
        "value": sum(task["value"] for task in counted) / len(counted) if counted else None,
        "stderr": math.sqrt(sum(error**2 for error in errors)) / len(counted) if known else None,
        "n": sum(task["n"] for task in counted),
    }
