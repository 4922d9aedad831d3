"""Held-out questions of a user's own, from a JSON file: what is refused, what is asked, how an answer is judged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.benchmarks.question_file import QuestionFile, QuestionFileProblem
from harness.common.errors import DataError
from harness.config.load import EVALUATION, RECIPE, check, load_recipe
from harness.config.recipe import Recipe
from harness.evaluation.multiple_choice import expected_prompt_hash, parse_answer, prompt
from harness.evaluation.task import MultipleChoiceTask, build_tasks, task_of
from harness.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

CHOICE = {"key": "k1", "question": "Which colour?", "media": "a.mp4", "options": ["red", "blue"], "answer": "blue"}
SHORT = {"key": 7, "question": "How many?", "media": ["a.mp4", {"file": "b.png"}], "answer": ["2", "a pair"]}


def write(folder: Path, questions: Any, **top: Any) -> str:
    path = folder / "my_eval.json"
    path.write_text(json.dumps({"schema": 1, "name": "kitchen", "questions": questions, **top}))
    return str(path)


def task(file: str, limit: int | None = None) -> MultipleChoiceTask:
    entry = QuestionFile(file)
    (built,) = build_tasks([entry], {}, data=None, data_folder="", prompts="task", limit=limit)
    assert isinstance(built, MultipleChoiceTask)
    return built


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "green"}, r"question 2 \(key k2\): answer 'green' is none of its options \['red', 'blue'\]"),
        ({"key": "k1"}, "question 2 has key 'k1', which question 1 has too"),
        ({"key": None}, "key is None, a text or a number is wanted"),
        ({"speed": 3}, "question 2: unknown key 'speed'; known are ability, answer"),
        ({"options": ["red"]}, "between 2 and 10 different options"),
        ({"options": ["red", "red"], "answer": "red"}, "between 2 and 10 different options"),
        ({"options": ["red", ""]}, r"options are \['red', ''\], a list of texts"),
        ({"question": " "}, "question is ' ', a text is wanted"),
        ({"ability": "two words"}, "ability is 'two words'"),
        ({"media": [3]}, "media 3 is int, an object is wanted"),
        ({"media": [{"path": "a.mp4"}]}, "unknown key 'path'; known are end, file, start"),
        ({"media": [{"file": "a.mp4", "start": 3, "end": 2}]}, "end 2 is not after start 3"),
        ({"media": [{"file": "a.mp4", "start": "0:03"}]}, "seconds from 0, not '0:03'"),
    ],
)
def test_a_wrong_record_is_told_by_file_and_record(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    file = write(tmp_path, [CHOICE, {**CHOICE, "key": "k2", **record}])
    with pytest.raises(QuestionFileProblem, match=message) as caught:
        QuestionFile(file)
    assert str(caught.value).startswith(f"file {file}: question 2")


@pytest.mark.parametrize(
    ("questions", "top", "message"),
    [
        ([], {}, "at least one record"),
        ([CHOICE], {"schema": 2}, "schema is 2, this version reads 1"),
        ([CHOICE], {"name": "my eval"}, "name is 'my eval'; letters"),
        ([CHOICE], {"name": "mvbench"}, "name mvbench is that of a benchmark that comes with the harness"),
        ([CHOICE], {"form": "essay"}, "form is 'essay', not one of options, letter, short"),
        ([CHOICE], {"questoins": []}, "unknown key 'questoins'"),
        ([CHOICE, SHORT], {}, r"question 2 \(key 7\): options are None, .* not both"),
        ([SHORT, CHOICE], {}, r"question 2 \(key k1\): has options, but this file's answers are short"),
        ([{**SHORT, "answer": []}], {}, r"answer is \[\], a text or a list"),
        (["What?"], {}, "question 1 is str, an object is wanted"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, questions: Any, top: dict[str, Any], message: str) -> None:
    with pytest.raises(QuestionFileProblem, match=message):
        QuestionFile(write(tmp_path, questions, **top))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is list, an object is wanted"),
        ("{}", "name, questions, schema is missing"),
        ('{"name": "a", "name": "b"}', "is not JSON: key 'name' stands twice"),
    ],
)
def test_a_file_that_is_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(QuestionFileProblem, match=message):
        QuestionFile(str(tmp_path / "e.json"))


def test_the_recipe_tells_the_mistake_at_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, [{**CHOICE, "answer": "green"}])
    for kind, name, key in (
        (RECIPE, "tiny_regate", "evaluate.benchmarks"),
        (EVALUATION, "evaluate/videollama2_official", "benchmarks"),
    ):
        (problem,) = check(kind, name, [f"{key}=[{{file: {file}}}]"]).problems
        assert problem.message.startswith(f"{key}[0].file {file}: question 1 (key k1): answer 'green'")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, [CHOICE])
    (problem,) = check(RECIPE, "tiny_regate", [f"evaluate.benchmarks=[{{file: {file}}}, {{file: {file}}}]"]).problems
    assert "benchmarks has kitchen twice" in problem.message


def test_the_content_makes_the_run_and_the_folder_does_not(tmp_path: Path) -> None:
    def run_id(file: str) -> str:
        return load_recipe("tiny_regate", [f"evaluate.benchmarks=[shapes, {{file: {file}}}]"]).run_id

    first = run_id(write(tmp_path, [CHOICE]))
    (tmp_path / "other").mkdir()
    assert run_id(write(tmp_path / "other", [CHOICE])) == first
    assert run_id(write(tmp_path / "other", [SHORT])) != first
    assert first != load_recipe("tiny_regate").run_id


def test_a_file_that_changed_since_the_run_was_started_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, [CHOICE])
    written = load_recipe("tiny_regate", [f"evaluate.benchmarks=[{{file: {file}}}]"]).model_dump_json()
    assert Recipe.model_validate_json(written).evaluate.names == ("kitchen",)
    write(tmp_path, [SHORT])
    with pytest.raises(ValueError, match="is not the one that this run was started with"):
        Recipe.model_validate_json(written)


def test_missing_media_are_named_with_their_question_before_anything_runs(media: Path) -> None:
    (media / "b.png").unlink()
    file = write(media, [SHORT])
    line = f"{media / 'b.png'}: shown by question 7 of {file}"
    plan = make_plan(load_recipe("tiny_regate", [f"evaluate.benchmarks=[{{file: {file}}}]"]))
    assert line in plan.missing_data
    with pytest.raises(DataError, match="1 media files of kitchen are missing") as caught:
        task(file)
    assert line in str(caught.value)


def test_what_is_asked_is_hashed_with_the_content_of_its_media(media: Path) -> None:
    file = write(media, [CHOICE, {**CHOICE, "key": "k2"}])
    built = task(file)
    assert built.expected == 2
    assert task(file, limit=1).expected == 1
    assert task_of(json.loads(json.dumps(built.job()))).identity() == built.identity()
    (media / "a.mp4").write_bytes(b"another clip")
    assert task(file).identity()["questions"] != built.identity()["questions"]
    assert expected_prompt_hash(built.benchmark, built.tasks) == task(file).identity()["prompt_hash"]


def test_short_answers_are_asked_for_in_words(media: Path) -> None:
    ((question,),) = task(write(media, [SHORT])).tasks.values()
    assert question.media[1].kind == "image"
    sent = prompt("short", question)
    assert sent == "<media:0>\n<media:1>\nHow many?\nAnswer with a word or a short phrase."


@pytest.mark.parametrize(
    ("text", "prediction"),
    [("2", 0), ("Two.", 0), ("A pair!", 0), ("pair", 0), (" the  PAIR ", 0), ("two of them", None), ("", None)],
)
def test_a_short_answer_is_right_where_it_is_one_of_those_accepted(text: str, prediction: int | None) -> None:
    assert parse_answer("short", text, ("2", "a pair")) == prediction


def test_a_wrong_short_answer_is_wrong_and_not_unparsable(media: Path) -> None:
    built = task(write(media, [SHORT, {**SHORT, "key": 8}]))
    items = [
        {"task": "kitchen_all", "key": key, "ability": "all", "answer": 0, "text": text, "empty": not text,
         "prediction": found, "correct": int(found == 0)}
        for key, text, found in (("7", "three", None), ("8", "two", 0))
    ]  # fmt: skip
    summary = built.summary(items)
    assert summary["counts"] == {"expected": 2, "scored": 2, "empty": 0, "unparsable": 0, "guessed": 0, "errors": 0}
    assert summary["mean"]["value"] == 0.5
