"""What is said of an item, with tasks that say little. The real tasks are in test_paper_benchmarks."""

from __future__ import annotations

import random
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, get_args

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from harness.benchmarks import PAPER_BENCHMARKS, PaperBenchmark
from harness.benchmarks.spec import Correct
from harness.common.errors import DataError
from harness.evaluation.items import VERDICT, check_aggregate, items_of, summarise_published
from harness.evaluation.lmms.judging import CORRECT, is_option, judged, seen

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


def _guesses(answers: list[str]) -> list[float]:
    """Verdicts of one run on as many items of five options, the first right where the answer is A."""

    def results(doc: dict[str, Any], said: list[str]) -> dict[str, Any]:
        index = "ABCDE".index(said[0]) if said[0] in "ABCDE" else random.choice(range(5))
        return {"exact_match": float(index == doc["answer"])}

    process_results = judged(PAPER_BENCHMARKS["nextqa"], "", results, {})
    docs = [{"video": i, "question": "why?", "answer": i % 5, "qid": i} for i in range(len(answers))]
    return [
        process_results(doc, [answer])[VERDICT]["correct"] for doc, answer in zip(docs, answers, strict=True)
    ]


def test_a_guess_does_not_depend_on_the_guesses_before_it() -> None:
    """Two runs that answer alike but for one item differ on that item alone, and a guess is a fifth of a right
    answer on the whole."""
    random.seed(0)
    first = _guesses(["A"] + ["no idea"] * 999)
    random.seed(1)
    second = _guesses(["hm"] + ["cannot say"] * 999)
    assert first[1:] == second[1:]
    assert sum(first[1:]) / 999 == pytest.approx(0.2, abs=0.03)


def test_judging_leaves_the_random_numbers_of_the_process_alone() -> None:
    random.seed(7)
    expected = random.random()
    random.seed(7)
    _guesses(["no idea", "A"])
    assert random.random() == expected


OPTIONS = ["one", "two", "three"]


@pytest.mark.parametrize("options", [OPTIONS, ["A. one", "B. two", "C. three"]], ids=["texts", "labelled"])
def test_an_answer_of_an_options_form_is_told_from_one_of_more_words(options: list[str]) -> None:
    forms = ["B", "b", " B", "(B)", "(b)", "B.", "B. two", "B) two", "**B**", "two", "Two."]
    forms += ["\uff08B\uff09", "\uff22", "B\u3001two"]  # full-width signs
    more = [
        "Option B",
        "The answer is B",
        "The answer is B because A is not shown.",
        "Answer: B",
        "答案是B。",
        "A\nExplanation: B is wrong",
        "B\nThe man in A does it",
        "First, A looks right, but the final answer is B.",
        "A cat is seen, so B",
        "I think it is B",
        "B and C",
        "A, B",
        "None",
        "I cannot tell",
        "ASSISTANT: B",
        "B</s>",
        "Best option: (B",
        "!!!!!!!!",
    ]
    assert [text for text in forms if not is_option(text, options)] == []
    assert [text for text in more if is_option(text, options)] == []
    said = {text: is_option(text, ["yes", "no"]) for text in ("Yes", "YES.", "**Yes**", "Yes\n", "No", "no, yes")}
    assert list(said.values()) == [True] * 5 + [False]


def test_a_right_answer_of_more_words_keeps_the_tasks_verdict_and_is_counted() -> None:
    """The reader of such a task takes the first capital letter, so the sentence is wrong to it."""

    def first_letter(doc: dict[str, Any], said: list[str]) -> dict[str, Any]:
        letter = next((letter for letter in said[0] if letter in "ABCD"), "")
        return {"videomme_perception_score": {"pred_answer": letter, "answer": doc["answer"]}}

    doc = {"options": ["A. one", "B. two", "C. three", "D. four"], "answer": "B", "question": "How many?"}
    benchmark = replace(PAPER_BENCHMARKS["videomme"], by=None, parts={"": 1}, metric="videomme_perception_score")
    process_results = judged(benchmark, "", first_letter, {})
    item = process_results(doc, ["As B shows, it is two."])[VERDICT]
    assert (item["correct"], item["unparsable"], item["beyond_option"]) == (0.0, False, True)
    item = process_results(doc, ["B. two"])[VERDICT]
    assert (item["correct"], item["beyond_option"]) == (1.0, False)
    assert process_results(doc, [" \n"])[VERDICT]["beyond_option"] is False, "it is counted as empty"
    listed = {"question": "How many?\n(A) one\n(B) two\n", "answer": "B"}
    said = {text: process_results(listed, [text])[VERDICT]["beyond_option"] for text in ("(B) two", "B three")}
    assert said == {"(B) two": False, "B three": True}


def test_answers_of_more_than_an_option_are_counted_where_every_item_says_it() -> None:
    pope = PAPER_BENCHMARKS["pope"]
    item = {"task": "pope", "key": "0", "correct": 1.0, "text": "Yes", "empty": False}
    item |= {"unparsable": False, "guessed": False}
    old = [{**item, "key": str(key)} for key in range(3)]
    new = [{**entry, "beyond_option": key > 0} for key, entry in enumerate(old)]
    assert "beyond_option" not in summarise_published(pope, old)["counts"], "it was not recorded then"
    assert summarise_published(pope, new)["counts"]["beyond_option"] == 2


@pytest.mark.parametrize("blank", ["", " ", "\n", " \t\n"])
def test_an_answer_of_blanks_is_none_to_the_task_and_to_us(blank: str) -> None:
    """MVBench's own score leaves the empty answer out; blanks must not stand in one of the two numbers alone."""
    mvbench = replace(PAPER_BENCHMARKS["mvbench"], parts={"moving_count": 2})

    def compares(doc: dict[str, Any], answers: list[str]) -> dict[str, Any]:
        return {"mvbench_accuracy": {"pred_answer": answers[0], "score": int(answers[0] == "B")}}

    process_results = judged(mvbench, "moving_count", compares, {})
    outputs = [process_results({"candidates": ["one", "two"], "answer": "two"}, [text]) for text in ("B", blank)]
    answered = [out["mvbench_accuracy"] for out in outputs if out["mvbench_accuracy"]["pred_answer"] != ""]
    theirs = 100 * sum(answer["score"] for answer in answered) / len(answered)
    samples = [
        {"doc_id": key, "filtered_resps": [text], VERDICT: out[VERDICT]}
        for key, (text, out) in enumerate(zip(("B", blank), outputs, strict=True))
    ]
    items = items_of(mvbench, {"mvbench_moving_count": samples})
    assert [item["empty"] for item in items] == [False, True]
    check_aggregate(mvbench, items, {"mvbench_moving_count": {"mvbench_accuracy,none": theirs}})
    assert summarise_published(mvbench, items)["mean"]["value"] == 0.5, "here it stays in the denominator"


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
