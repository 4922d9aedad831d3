"""Items that flip, and what the gate left out of their training neighbours."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.analysis.choices import replay
from harness.analysis.choices.elided_words import Chosen, Token
from harness.analysis.choices.needed_words import (
    BOTH,
    LOST,
    NEIGHBOURS,
    NEITHER,
    WON,
    Item,
    Neighbours,
    items_of,
    read_needed,
    study,
    words_asked_for,
    words_of,
)
from harness.analysis.choices.selection import read_selection
from harness.analysis.choices.word_classes import word_class
from harness.analysis.runs import Pair, load_runs
from harness.benchmarks import Benchmark
from harness.common.errors import StaleError
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.data.sample import Question, Sample, Turn
from harness.evaluation.task import MultipleChoiceTask
from harness.report.figures.build import build_figures
from harness.report.pages.build import write_report
from tests.harness.worlds.run_builder import ABILITIES, build_run, finish

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.worlds.choices import World

QUIET = Progress(quiet=True)
COLOURS = ("red", "green", "blue", "yellow")


def question(place: int, colours: tuple[str, ...]) -> Question:
    """The question of the builder's item of that number, whose right option is place modulo their number."""
    options = tuple(f"The circle in this video is {colour}." for colour in colours)
    return Question(f"colour-{place:04d}", "colour", (), "<media:0> What colour is the circle?", options,
                    place % len(colours))  # fmt: skip


@pytest.fixture(scope="module")
def task() -> MultipleChoiceTask:
    colours = COLOURS[: ABILITIES["colour"]]
    assert len(colours) == ABILITIES["colour"]
    questions = tuple(question(place, colours) for place in range(120))
    return MultipleChoiceTask(Benchmark("shapes", "shapes", ("colour",)), {"colour": questions})


@pytest.fixture(scope="module")
def pair(choice_world: World, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A copy of the gated run with its stores, beside a baseline that answers some items otherwise."""
    results = tmp_path_factory.mktemp("flips")
    world = choice_world
    shutil.copytree(world.run.folder, results / "runs" / world.run.id)
    content = json.loads(world.recipe.model_dump_json())
    content |= {"name": "whole", "gate": None, "paths": {**content["paths"], "results": str(results)}}
    baseline = Recipe.model_validate_json(json.dumps(content))
    finish(baseline, build_run(baseline, skill=1.2))
    runs = {run.name: run for run in load_runs(results)}
    return Pair(runs["whole"], runs["choices"])


def test_an_item_asks_for_the_words_that_another_option_lacks() -> None:
    asked = question(1, ("red", "green"))
    assert words_of("<media:0> Don't stop: the well-lit circle!") == {"don't", "stop", "the", "well-lit", "circle"}
    assert words_asked_for(asked, accepted=False) == {"green"}
    assert words_asked_for(asked, accepted=True) == words_of(asked.options[1])
    turned = replace(asked, options=("red then green", "green then red"))
    assert words_asked_for(turned, accepted=False) == {"red", "then", "green"}, "the order alone tells them apart"


def test_the_nearest_answers_and_what_is_left_out_of_them() -> None:
    """Three conversations: one with the question of the item, one with another, one without a word asked for."""
    asked = question(0, ("red", "green"))
    item = Item("shapes_colour", asked, LOST, asked.options[1], frozenset({"red"}),
                words_of(asked.text) | words_of(asked.options[0]))  # fmt: skip
    neighbours = Neighbours([item])
    for place, (spoken, answer, kept) in enumerate(
        (
            ("Describe the video.", "a red cross and a red ring", (1, 0, 1, 1, 1, 1, 1)),
            ("What colour is the circle?", "the circle is red", (1, 1, 1, 0)),
            ("What colour is the circle?", "the circle is green", (0, 0, 0, 0)),
        )
    ):
        sample = Sample(place, str(place), (), (Turn("user", f"<media:0> {spoken}"), Turn("assistant", answer)))
        words = answer.split()
        tokens = [Token(f" {word}", 0, number, word, word_class(word), None) for number, word in enumerate(words)]
        neighbours.add(sample, tokens, Chosen(place, [0] * len(words), None, {0: np.ones(len(words), dtype=bool),
                       1: np.array(kept, dtype=bool)}, None))  # fmt: skip
    assert (neighbours.targets, neighbours.left_out) == (15, 6), "of the last epoch"
    first, second = neighbours.of(0)
    assert (first.sample, first.question, first.of(item.asked_for)) == ("1", "What colour is the circle?", (1, 1))
    assert (second.sample, second.question, second.of(item.asked_for)) == ("0", "Describe the video.", (2, 1))


def test_neighbours_are_counted_as_the_gate_chose(choice_world: World, pair: Pair, task: MultipleChoiceTask) -> None:
    """On the real gate's stores: the sums are those of selection.json, the answers those of the data set."""
    paths = choice_world.recipe.paths
    assert pair.gated is not None
    assert study(pair, {"shapes": task}, paths, QUIET) is None
    file = pair.gated.folder / "needed_words.json"
    written = file.stat().st_mtime_ns
    assert study(pair, {"shapes": task}, paths, QUIET) is None
    assert file.stat().st_mtime_ns == written, "it is made once"
    needed = read_needed(pair.gated.folder)
    assert needed is not None
    found = needed["benchmarks"]["shapes"]

    items = items_of(pair, "shapes", task)
    groups = {item.question.key: item.group for item in items}
    assert {row["key"]: row["group"] for row in found["items"]} == groups
    assert len(groups) == 120
    assert {BOTH, LOST} <= set(groups.values()) <= {BOTH, LOST, WON, NEITHER}
    for row in found["items"]:
        assert row["neighbours"] <= NEIGHBOURS
        assert row["left_out"] <= row["targets"]
        assert bool(row["targets"]) is bool(row["neighbours"]), "a neighbour says a word that is asked for"

    data = {sample.key: sample for sample in choice_world.data.samples}
    for example in found["examples"]:
        assert groups[example["key"]] == LOST
        for neighbour in example["neighbours"]:
            assert any(word["asked_for"] for word in neighbour["words"])
            said = " ".join(word["text"] for word in neighbour["words"])
            turns = data[neighbour["sample"]].turns
            assert words_of(said) in [words_of(turn.text) for turn in turns if turn.role == "assistant"]
    assert found["examples"]
    assert replay.study(pair.gated, paths, QUIET) is None
    selection = read_selection(pair.gated.folder)
    assert selection is not None
    assert found["targets"] == selection["targets"]
    assert found["left_out"] == sum(kind["left_out"][-1] for kind in selection["kinds"])


def test_the_figure_shows_the_flipped_items(choice_world: World, pair: Pair, task: MultipleChoiceTask) -> None:
    assert pair.gated is not None
    assert study(pair, {"shapes": task}, choice_world.recipe.paths, QUIET) is None
    needed = read_needed(pair.gated.folder)
    assert needed is not None
    results = pair.gated.folder.parent.parent
    drawn = {path.name: path for path in build_figures(results)}
    svg = drawn[f"needed_words_{pair.gated.id}_shapes.svg"].read_text()
    rows = [row for row in needed["benchmarks"]["shapes"]["items"] if row["targets"]]
    for group in (BOTH, LOST):
        assert f">{sum(row['group'] == group for row in rows)}</text>" in svg, "how many items a mark stands for"
    for example in needed["benchmarks"]["shapes"]["examples"]:
        for word in (word for neighbour in example["neighbours"] for word in neighbour["words"]):
            assert f">{word['text'] if word['kept'] else '[' + word['text'] + ']'}</text>" in svg
    page = write_report(results, list(pair.runs)).read_text()
    assert f"What {pair.gated.id} left out of the words that items ask for" in page


def test_what_cannot_be_looked_up_says_why(choice_world: World, pair: Pair, task: MultipleChoiceTask) -> None:
    paths = choice_world.recipe.paths
    assert "no baseline" in (study(Pair(None, pair.gated), {"shapes": task}, paths, QUIET) or "")
    assert "questions kept" in (study(pair, {}, paths, QUIET) or "")


def test_a_file_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "needed_words.json").write_text(json.dumps({"schema": 1, "run": "another"}))
    with pytest.raises(StaleError, match="expected 1 of"):
        read_needed(tmp_path)
