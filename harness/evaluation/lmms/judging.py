"""What a published benchmark's task says of an item, in our words: right or not, and whether it was a guess.

Nothing is judged here. Right is what the task's own aggregation counts as right, in the output of the task's own
`process_results`. Whether an answer could be read at all is found by asking the same function what it would have
said, had another option been the right one. A task that guesses where it cannot read draws a number to do so.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from harness.common.errors import DataError
from harness.evaluation.items import VERDICT
from harness.evaluation.rows import part_of, unit_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from harness.benchmarks import Published

Doc = dict[str, Any]
_IDS: Final = ("question_id", "id", "index", "qid", "question_idx")
"""Columns that name an item in one data set or another."""
_PICTURES: Final = (".jpg", ".jpeg", ".png")


def judged(
    benchmark: Published, part: str, results: Callable[..., Doc], module: ModuleType
) -> Callable[[Doc, list[str]], Doc]:
    """A task's `process_results`, with our words on the item under VERDICT.

    Args:
        part: of the task, where each part is a task.
        results: the task's own function, and its module.
    """

    def process_results(doc: Doc, answers: list[str]) -> Doc:
        text = answers[0]
        before = random.getstate()
        # Vinoground's aggregation reads the first letter of every answer; a blank is no letter that is right.
        said = results(doc, [text or " "] if benchmark.name == "vinoground" else [text])
        guessed = random.getstate() != before
        letter = _right_letter(doc, module) if benchmark.name == "vinoground" else ""
        readable = not guessed and (not text.strip() or _readable(benchmark, doc, text, results))
        verdict: Doc = {
            "task": benchmark.part_task(part or part_of(benchmark, doc) or ""),
            "correct": _correct(benchmark, said, letter),
            "unparsable": bool(text.strip()) and not readable,
            "guessed": guessed,
        }
        unit = unit_of(benchmark, doc)
        if unit is not None:
            verdict["unit"] = unit
        name = next((doc[column] for column in _IDS if doc.get(column) is not None), None)
        if name is not None:
            verdict["id"] = str(name)
        return {**said, VERDICT: verdict}

    return process_results


def _correct(benchmark: Published, said: Doc, letter: str = "") -> float:
    """0 to 1, as the task's aggregation counts it.

    Args:
        letter: the right one, where the task does not say it of an item.
    """
    found = said[benchmark.metric]
    match benchmark.task:
        case "scienceqa_img" | "vizwiz_vqa_val" | "nextqa_mc_test":
            return float(found)
        case "mme" | "pope" | "mvbench":
            return float(found["score"])
        case "seedbench":
            return float(found["pred"].lower().strip() == found["answer"].lower().strip())
        case "videomme" | "mlvu_dev":
            return float(found["pred_answer"] == found["answer"])
        case "longvideobench_val_v":
            return float(found["parsed_pred"] == found["answer"])
        case "egoschema_subset":
            return float(str(found["pred"]) == str(found["ground_truth"]))
        case "perceptiontest_val_mc":
            return float(found["correct"] == 1)
        case "vinoground":
            return float(found["pred"][0].lower() == letter.lower())
    raise ValueError(f"{benchmark.name}: how {benchmark.task} says what is right is not known")


def _right_letter(doc: Doc, module: ModuleType) -> str:
    """Vinoground keeps its answers beside the videos; its module has read them to ask the question."""
    if not module.videoscore_dict:
        module.prep_data()
    return str(module.videoscore_dict["_".join(doc["index"].split("_")[:2])]["GT"])


def _readable(benchmark: Published, doc: Doc, text: str, results: Callable[..., Doc]) -> bool:
    """Whether the answer would have been right, had another option been."""
    if benchmark.task == "vinoground":
        return text[0].lower() in "ab"
    if benchmark.task not in _OTHERS:
        return True  # what it cannot read it guesses; or any words are an answer, as in VizWiz
    return any(_correct(benchmark, results(other, [text])) == 1 for other in _others(benchmark, doc))


_OTHERS: Final[dict[str, str]] = {
    "scienceqa_img": "answer",
    "mme": "answer",
    "pope": "answer",
    "seedbench": "answer",
    "videomme": "answer",
    "mlvu_dev": "answer",
    "mvbench": "answer",
    "perceptiontest_val_mc": "answer_id",
}
"""Task -> the field that holds the right option."""


def _others(benchmark: Published, doc: Doc) -> Iterator[Doc]:
    """The document with each option as the right one."""
    match benchmark.task:
        case "scienceqa_img":
            options: Sequence[Any] = range(len(doc["choices"]))
        case "perceptiontest_val_mc":
            options = range(len(doc["options"]))
        case "mvbench":
            options = doc["candidates"]
        case "mme" | "pope":
            options = ("yes", "no")
        case _:
            options = "ABCD"
    field = _OTHERS[benchmark.task]
    yield from ({**doc, field: option} for option in options)


def seen(doc_to_visual: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """A task's `doc_to_visual`; a folder of pictures as its pictures in the order of their names.

    Some clips of MVBench are such folders, which its task hands on as if they were videos. Some tasks end the process
    where a video is missing; here that is an error as any other.
    """

    @functools.wraps(doc_to_visual)  # lmms-eval counts the parameters
    def visuals(*arguments: Any) -> list[Any]:
        try:
            found = doc_to_visual(*arguments)
        except SystemExit as error:
            raise DataError(str(error.code)) from None
        return [one for visual in found for one in _pictures(visual)]

    return visuals


def _pictures(visual: Any) -> list[Any]:
    if not isinstance(visual, str) or not Path(visual).is_dir():
        return [visual]
    paths = sorted(path for path in Path(visual).iterdir() if path.suffix.lower() in _PICTURES)
    if not paths:
        raise DataError(f"{visual}: is a folder without pictures")
    return [Image.open(path) for path in paths]
