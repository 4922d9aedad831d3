"""What a published benchmark's task says of an item, in our words: right or not, and whether it was a guess.

Nothing is judged here. Right is what the task's own aggregation counts as right, in the output of the task's own
`process_results`; the benchmark's entry says where it stands (`PaperBenchmark.correct`). Whether an answer could be
read at all is found by asking the same function what it would have said, had another option been the right one. A
task that guesses where it cannot read draws a random number to do so; the draws of an item depend on the item alone,
so that a guess is the same for every model and does not depend on how many guesses came before it.
"""

from __future__ import annotations

import functools
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from harness.common.errors import DataError
from harness.evaluation.items import VERDICT
from harness.evaluation.rows import index_name, options_of, part_of, unit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from harness.benchmarks import PaperBenchmark
    from harness.benchmarks.spec import Correct

Doc = dict[str, Any]
_IDS: Final = ("question_id", "id", "index", "qid", "question_idx")
"""Columns that name an item in one data set or another."""
_PICTURES: Final = (".jpg", ".jpeg", ".png")
_LABEL: Final = re.compile(r"[\s(*]*[A-Za-z0-9][*]*\s*[).:,\uFF09\u3001*]+\s*")
"""An option's letter before its text: "B. ", "(B) ", "**B** "."""
_ALONE: Final = re.compile(r"[\W_]*[A-Za-z0-9\uFF21-\uFF3A][\W_]*")
"""An option's letter and nothing beside it."""


def judged(
    benchmark: PaperBenchmark, part: str, results: Callable[..., Doc], letters: Mapping[str, str]
) -> Callable[[Doc, list[str]], Doc]:
    """A task's `process_results`, with our words on the item under VERDICT.

    Args:
        part: of the task, where each part is a task.
        results: the task's own function.
        letters: right letter by `index_name`, where the benchmark's index files name it; else empty.
    """

    def process_results(doc: Doc, answers: list[str]) -> Doc:
        # Blanks alone are no answer: lmms-eval strips them, and a task may leave "" out of what it counts.
        text = answers[0] if answers[0].strip() else ""
        # An aggregation that reads the first letter of every answer needs one; a blank is no letter that is right.
        sent = [text or " "] if benchmark.correct == "first letter" else [text]
        output, guessed = _seeded(f"{benchmark.name} {part} {_item_seed(doc)}", results, doc, sent)
        letter = letters[index_name(doc)] if benchmark.correct == "first letter" else ""
        readable = not guessed and (not text.strip() or _readable(benchmark, doc, text, results))
        verdict: Doc = {
            "task": benchmark.part_task(part or part_of(benchmark, doc) or ""),
            "correct": _correct(benchmark, output, letter),
            "unparsable": bool(text.strip()) and not readable,
            "guessed": guessed,
        }
        options = options_of(benchmark, doc)
        if options:
            verdict["beyond_option"] = bool(text.strip()) and not is_option(text, options)
        unit = unit_of(benchmark, doc)
        if unit is not None:
            verdict["unit"] = unit
        name = next((doc[column] for column in _IDS if doc.get(column) is not None), None)
        if name is not None:
            verdict["id"] = str(name)
        return {**output, VERDICT: verdict}

    return process_results


CORRECT: Final[Mapping[Correct, Callable[[Any, str], float]]] = {
    "metric": lambda value, _: float(value),
    "score": lambda value, _: float(value["score"]),
    "correct": lambda value, _: float(value["correct"] == 1),
    "pred == answer": lambda value, _: float(value["pred"].lower().strip() == value["answer"].lower().strip()),
    "pred_answer == answer": lambda value, _: float(value["pred_answer"] == value["answer"]),
    "parsed_pred == answer": lambda value, _: float(value["parsed_pred"] == value["answer"]),
    "pred == ground_truth": lambda value, _: float(str(value["pred"]) == str(value["ground_truth"])),
    "first letter": lambda value, letter: float(value["pred"][0].lower() == letter.lower()),
}
"""How the value under the metric's key, and the right letter where the task does not say it, become 0 to 1."""


def _seeded(seed: str, results: Callable[..., Doc], doc: Doc, answers: list[str]) -> tuple[Doc, bool]:
    """A task's results with draws that depend on `seed` alone, and whether it drew; the state of `random` is kept."""
    before = random.getstate()
    try:
        random.seed(seed)
        seeded = random.getstate()
        output = results(doc, answers)
        return output, random.getstate() != seeded
    finally:
        random.setstate(before)


def _item_seed(doc: Doc) -> str:
    """What names an item: every text and number of its row, in any order of the columns."""
    return json.dumps({name: value for name, value in doc.items() if _is_plain(value)}, sort_keys=True, default=str)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(entry, str | int | float) for entry in value)
    return isinstance(value, str | int | float)


def is_option(text: str, options: Sequence[str]) -> bool:
    """Whether an answer has the form of an option and nothing more: its letter or number, alone or set off by
    punctuation, its text, or both. Readers of tasks differ in what they make of more words ("The answer is B because
    A is not shown."), so that a right answer may count as wrong: such answers are counted beside the score."""
    plain = {_plain(option) for option in options} | {_plain(_LABEL.sub("", option)) for option in options}
    if _plain(text) in plain - {""}:
        return True
    label = _LABEL.match(text) or _ALONE.fullmatch(text)
    rest = text[label.end() :] if label else text
    return label is not None and _plain(rest) in plain | {""}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def _correct(benchmark: PaperBenchmark, output: Doc, letter: str = "") -> float:
    """0 to 1, as the task's aggregation counts it."""
    return CORRECT[benchmark.correct](output[benchmark.metric], letter)


def _readable(benchmark: PaperBenchmark, doc: Doc, text: str, results: Callable[..., Doc]) -> bool:
    """Whether the answer would have been right, had another option been."""
    if benchmark.correct == "first letter":
        return text[0].lower() in benchmark.options
    if benchmark.answer_field is None:
        return True  # what it cannot read it guesses; or any words are an answer
    variants = _with_each_option_right(benchmark, benchmark.answer_field, doc)
    return any(_correct(benchmark, results(variant, [text])) == 1 for variant in variants)


def _with_each_option_right(benchmark: PaperBenchmark, answer_field: str, doc: Doc) -> Iterator[Doc]:
    """The document with each option as the right one."""
    options: Sequence[Any] = benchmark.options
    if benchmark.options_column is not None:
        options = doc[benchmark.options_column]
        if benchmark.answer_index:
            options = range(len(options))
    yield from ({**doc, answer_field: option} for option in options)


def seen(doc_to_visual: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """A task's `doc_to_visual`; a folder of pictures as its pictures in the order of their names.

    Some clips of MVBench are such folders, which its task hands on as if they were videos. Some tasks end the process
    where a video is missing; here that is an error as any other.
    """

    @functools.wraps(doc_to_visual)  # lmms-eval counts the parameters
    def visuals(*arguments: Any) -> list[Any]:
        try:
            shown = doc_to_visual(*arguments)
        except SystemExit as error:
            raise DataError(str(error.code)) from None
        return [picture for visual in shown for picture in _pictures(visual)]

    return visuals


def _pictures(visual: Any) -> list[Any]:
    if not isinstance(visual, str) or not Path(visual).is_dir():
        return [visual]
    paths = sorted(path for path in Path(visual).iterdir() if path.suffix.lower() in _PICTURES)
    if not paths:
        raise DataError(f"{visual}: is a folder without pictures")
    return [Image.open(path) for path in paths]
