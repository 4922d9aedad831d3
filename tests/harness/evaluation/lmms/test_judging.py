"""What is said of an item, with tasks that say little. The real tasks are in test_paper_benchmarks."""

from __future__ import annotations

import random
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from harness.benchmarks import PAPER_BENCHMARKS, PaperBenchmark
from harness.benchmarks.spec import Correct
from harness.common.errors import DataError
from harness.evaluation.items import VERDICT
from harness.evaluation.lmms.judging import CORRECT, judged, seen

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = {"7_pos": "A", "7_neg": "B"}


def verdict(name: str, doc: dict[str, Any], text: str, results: Any, part: str = "") -> dict[str, Any]:
    item: dict[str, Any] = judged(PAPER_BENCHMARKS[name], part, results, {})(doc, [text])[VERDICT]
    return item


def test_a_task_that_draws_a_number_has_guessed() -> None:
    def guesses(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
        read = answers[0] if answers[0] in "ABC" else random.choice("ABC")
        return {"exact_match": read == "A"}

    read = verdict("nextqa", {"qid": 7}, "A", guesses)
    assert read == {"task": "nextqa", "correct": 1.0, "unparsable": False, "guessed": False, "id": "7"}
    guessed = verdict("nextqa", {}, "the boy", guesses)
    assert (guessed["unparsable"], guessed["guessed"]) == (True, True)
    empty = verdict("egoschema", {}, "", lambda doc, answers: {"score": _guess()})
    assert (empty["unparsable"], empty["guessed"]) == (False, True), "an empty answer is counted as empty"


def _guess() -> dict[str, Any]:
    return {"pred": random.randrange(5), "ground_truth": "9"}


def test_an_answer_that_no_option_makes_right_cannot_be_read() -> None:
    def compares(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
        return {"mvbench_accuracy": {"score": int(doc["answer"].startswith(answers[0][0]))}}

    doc = {"candidates": ["It opens.", "None.", "He."], "answer": "None."}
    part = "moving_count"
    assert verdict("mvbench", doc, "N", compares, part)["correct"] == 1.0
    other = verdict("mvbench", doc, "H", compares, part)
    assert (other["task"], other["correct"], other["unparsable"]) == ("mvbench_moving_count", 0.0, False)
    assert verdict("mvbench", doc, "x", compares, part)["unparsable"] is True
    assert doc["answer"] == "None.", "asking what if changes nothing"


def test_what_is_scored_together_is_named() -> None:
    doc = {"question_id": "art/3.png", "category": "artwork", "answer": "Yes"}

    def says(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
        return {"mme_perception_score": {"score": float(answers[0] == doc["answer"])}}

    item = verdict("mme_perception", doc, "Yes", says)
    assert (item["task"], item["unit"], item["correct"]) == ("mme_perception_artwork", "art/3.png", 1.0)


def test_an_entry_can_name_only_what_is_known_as_right() -> None:
    assert set(get_args(Correct)) == set(CORRECT)
    wrong = {**asdict(PAPER_BENCHMARKS["pope"]), "correct": "guess"}
    with pytest.raises(ValidationError, match="correct"):
        TypeAdapter(PaperBenchmark).validate_python(wrong)


def test_the_right_letter_of_a_pair_comes_from_the_index() -> None:
    vinoground = PAPER_BENCHMARKS["vinoground"]
    process_results = judged(vinoground, "", lambda doc, answers: {"vinoground_score": {"pred": answers[0]}}, LETTERS)
    verdicts = [("a.", 1.0, False), ("B", 0.0, False), ("Cannot", 0.0, True), ("", 0.0, False)]
    for answer, correct, unparsable in verdicts:
        item = process_results({"index": "7_pos_video"}, [answer])[VERDICT]
        assert (item["correct"], item["unparsable"], item["unit"]) == (correct, unparsable, "7")
    assert process_results({"index": "7_neg_video"}, ["b"])[VERDICT]["correct"] == 1.0


# --- what is shown ---------------------------------------------------------------------------------------


def test_a_task_that_would_end_the_process_is_an_error() -> None:
    def leaves(doc: Any) -> list[Any]:
        sys.exit("video path:/x.mp4 does not exist, please check")

    with pytest.raises(DataError, match=r"/x.mp4 does not exist"):
        seen(leaves)({})


def test_a_folder_of_frames_is_its_pictures_in_order(tmp_path: Path) -> None:
    for name, red in (("00010.jpg", 230), ("00002.JPG", 130), ("notes.txt", 0)):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no picture")
        else:
            Image.new("RGB", (4, 4), (red, 0, 0)).save(tmp_path / name)
    shown = seen(lambda doc: [str(tmp_path), "clip.mp4"])({})
    assert [picture.getpixel((0, 0))[0] // 100 for picture in shown[:2]] == [1, 2]
    assert shown[2:] == ["clip.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: is a folder without pictures"):
        seen(lambda doc: [str(tmp_path / "empty")])({})
