"""Every benchmark of the literal: what it says of itself holds, and its items become the right score."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.benchmarks import BENCHMARKS, Benchmark, find
from harness.common.errors import DataError, RecipeError
from harness.config.data import SHAPES_VERSIONS
from harness.data.sample import Media, Question
from harness.data.shapes.questions import ASKED
from harness.data.shapes.text import ABILITIES
from harness.evaluation.lmms.own_tasks import process_results, write_tasks
from harness.evaluation.multiple_choice import (
    LETTERS,
    expected_prompt_hash,
    parse_answer,
    prompt,
    question_of,
    question_record,
    questions_hash,
    select,
    summarise,
)

OWN = {name: entry for name, entry in BENCHMARKS.items() if isinstance(entry, Benchmark)}


def questions(benchmark: Benchmark, each: int = 3) -> tuple[Question, ...]:
    return tuple(
        Question(
            key=f"{ability}/{i}",
            ability=ability,
            media=(Media("video", Path(f"/clips/{ability}{i}.mp4"), sha256=f"{i}"),),
            text=f"What {ability} is it?",
            options=("It is one.", "It is two.", "It is three.")[: 2 + i % 2],
            answer=i % 2,
        )
        for i in range(each)
        for ability in benchmark.abilities
    )


@pytest.fixture(params=sorted(OWN))
def benchmark(request: pytest.FixtureRequest) -> Benchmark:
    return OWN[request.param]


def test_an_entry_is_named_as_it_is_found_and_counts_something(benchmark: Benchmark) -> None:
    assert find(benchmark.name) is benchmark
    assert len(set(benchmark.abilities)) == len(benchmark.abilities)
    assert set(benchmark.left_out) < set(benchmark.abilities)


def test_shapes_asks_every_ability_that_its_data_have() -> None:
    assert set(OWN["shapes"].abilities) == set(ABILITIES) == set(ASKED[1])
    assert set(OWN["shapes_2"].abilities) == set(ASKED[2])
    assert {name for name, benchmark in OWN.items() if benchmark.source == "shapes"} == set(SHAPES_VERSIONS)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(RecipeError, match="'shape'; did you mean shapes"):
        find("shape")


def test_the_module_needs_no_torch() -> None:
    code = "import sys, harness.benchmarks; sys.exit('torch' in sys.modules or 'lmms_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_task_files_hold_the_questions_under_one_name_each(benchmark: Benchmark, tmp_path: Path) -> None:
    asked = questions(benchmark)
    names = write_tasks(tmp_path / "t", benchmark, select(benchmark, benchmark.source, asked, None))
    assert len(set(names)) == len(names) == len(benchmark.abilities)
    for name in names:
        text = (tmp_path / "t" / f"{name}.yaml").read_text().replace("!function ", "")
        task = yaml.safe_load(text)
        assert task["task"] == name
        assert Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().count("\n") == 3


def test_a_limit_takes_the_first_of_each_ability(benchmark: Benchmark) -> None:
    tasks = select(benchmark, benchmark.source, questions(benchmark), 2)
    assert {ability: [q.key for q in selected] for ability, selected in tasks.items()} == {
        ability: [f"{ability}/0", f"{ability}/1"] for ability in benchmark.abilities
    }


SHAPES = OWN["shapes"]
GOOD = questions(SHAPES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ability": "taste"}, "unknown ability 'taste'"),
        ({"key": GOOD[7].key, "ability": GOOD[7].ability}, "a second colour question"),
        ({"options": ("It is one.", "It is one.")}, "different options"),
        ({"options": ("It is one.",)}, "different options"),
        ({"options": ("It is one.", " ")}, "empty"),
        ({"answer": 2}, "answer 2 of 2 options"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(change: dict[str, object], message: str) -> None:
    wrong = replace(GOOD[0], **change)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        select(SHAPES, "shapes", (*GOOD[1:], wrong), None)
    assert wrong.key in str(caught.value)


def test_a_missing_ability_is_named() -> None:
    with pytest.raises(DataError, match="no question of order"):
        select(SHAPES, "shapes", [q for q in GOOD if q.ability != "order"], None)
    with pytest.raises(RecipeError, match=r"data.source shapes, this recipe has llava"):
        select(SHAPES, "llava", GOOD, None)


def test_a_question_survives_the_job_file() -> None:
    assert [question_of(question_record(q)) for q in GOOD] == list(GOOD)


def test_the_hashes_see_what_matters_and_not_where_the_files_lie() -> None:
    tasks = select(SHAPES, "shapes", GOOD, None)
    first = GOOD[0]

    def hashes(changed: Question, benchmark: Benchmark = SHAPES) -> tuple[str, str]:
        altered = select(benchmark, "shapes", (changed, *GOOD[1:]), None)
        return questions_hash(altered), expected_prompt_hash(benchmark, altered)

    base = questions_hash(tasks), expected_prompt_hash(SHAPES, tasks)
    moved = replace(first, media=(replace(first.media[0], path=Path("/elsewhere/x.mp4")),))
    assert hashes(moved) == base
    other_clip = hashes(replace(first, media=(replace(first.media[0], sha256="other"),)))
    assert other_clip[0] != base[0]
    assert other_clip[1] == base[1]
    other_answer = hashes(replace(first, answer=1))
    assert other_answer[0] != base[0]
    assert other_answer[1] == base[1]
    for change in ({"text": "Which?"}, {"options": ("It is one.", "It is four.")}):
        changed = hashes(replace(first, **change))  # type: ignore[arg-type]
        assert changed[0] != base[0]
        assert changed[1] != base[1]
    assert hashes(first, replace(SHAPES, form="letter"))[1] != base[1]


def test_media_are_placed_before_the_text_unless_the_text_places_them() -> None:
    assert prompt("options", GOOD[0]) == "<media:0>\nWhat colour is it?"
    placed = replace(GOOD[0], text="Look: <media:0> What is it?")
    assert prompt("options", placed) == placed.text
    listed = prompt("letter", GOOD[0])
    assert listed.startswith("<media:0>\nWhat colour is it?\nA. It is one.\nB. It is two.\n")


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("letter", "B", 1),
        ("letter", " (b) ", 1),
        ("letter", "A. It is two.", 0),
        ("letter", "C:", 2),
        ("letter", "D", None),  # only three options
        ("letter", "A red ball", None),  # an article, not a letter
        ("letter", "", None),
        ("letter", "Because", None),
        ("sentence", "it is  two", 1),
        ("sentence", "It is two. Yes.", None),
        ("sentence", "", None),
    ],
)
def test_answers_are_read_strictly(form: str, text: str, expected: int | None) -> None:
    options = ("It is one.", "It is two.", "It is three.")
    assert parse_answer(form, text, options) == expected  # type: ignore[arg-type]
    doc = {"form": form, "options": options, "answer": 1, "metric": "acc"}
    assert process_results(doc, [text]) == {"acc": float(expected == 1)}


def test_two_options_that_only_differ_in_punctuation_are_unclear() -> None:
    assert parse_answer("sentence", "yes", ("Yes!", "Yes?")) is None
    assert len(LETTERS) == len(set(LETTERS))


def test_the_summary_equals_numpy_and_leaves_out_what_it_should() -> None:
    small = Benchmark("b", "shapes", ("x", "y", "z"), left_out=("z",))
    rng = np.random.default_rng(0)
    correct = {"x": rng.integers(0, 2, 40), "y": rng.integers(0, 2, 9), "z": np.ones(5, dtype=int)}
    items = [
        {"task": f"b_{name}", "prediction": 0, "answer": 0, "correct": int(c), "option_loss": [2.0, 3.0]}
        | {"option_tokens": [1, 3]}
        for name, values in correct.items()
        for c in values
    ]
    summary = summarise(small, items)
    errors = {name: values.std(ddof=1) / len(values) ** 0.5 for name, values in correct.items()}
    for task in summary["tasks"]:
        assert task["value"] == pytest.approx(correct[task["ability"]].mean())
        assert task["stderr"] == pytest.approx(errors[task["ability"]])
        assert task["value_per_token"] == 0.0  # 2 / 1 against 3 / 3: the mean loss prefers the other option
        assert task["in_mean"] == (task["ability"] != "z")
    assert summary["mean"]["value"] == pytest.approx((correct["x"].mean() + correct["y"].mean()) / 2)
    assert summary["mean"]["stderr"] == pytest.approx((errors["x"] ** 2 + errors["y"] ** 2) ** 0.5 / 2)
    assert summary["mean"]["n"] == 49
    percent = summarise(replace(small, scale="percent"), items)
    assert percent["mean"]["value"] == pytest.approx(100 * summary["mean"]["value"])


def test_empty_and_unparsable_answers_are_counted_apart() -> None:
    spoken = Benchmark("b", "shapes", ("x",), form="letter")
    rows = [(1, False, 1), (None, True, 0), (None, False, 0), (0, False, 0)]
    items = [{"task": "b_x", "prediction": p, "answer": 1, "correct": c, "empty": e} for p, e, c in rows]
    assert summarise(spoken, items)["counts"] == {"scored": 4, "empty": 1, "unparsable": 1}
    assert summarise(spoken, items)["mean"]["value"] == 0.25
