"""The whole evaluation through the real lmms-eval, offline, with models whose answers are known.

The tests share a folder: each works on what the ones before it left, as a user's repeated command does. The first
child is started by the interpreter itself, which takes five to ten seconds; the others by a warm python.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.common.errors import DataError, HarnessError
from harness.common.progress import Progress
from harness.config.recipe import Devices
from harness.data.loading.video import read_frames
from harness.data.sample import Sample, Turn
from harness.evaluation.evaluate import Job, checkpoint_digest, evaluate_checkpoints
from harness.evaluation.multiple_choice import prompt
from harness.records.evaluations import read_item_lines
from tests.harness.worlds import known_models as known
from tests.harness.worlds.evaluation import COLOUR_OPTIONS, KNOWN, make_data, make_recipe
from tests.warm import warm_python

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Question
    from harness.data.sources import DataSet

pytestmark = pytest.mark.slow

CHILD = ("-m", "tests.harness.worlds.known_models")
WORDS = {
    "<|assistant|>": {"it": 0.4, "b": 0.5},
    "it": {"is": 0.8},
    "is": {"red": 0.2, "blue": 0.5, "very": 0.25},
    "b": {".": 0.9},
    ".": {known.END: 0.9},
}
"""Says "B." when it generates; of the colours it finds blue the likeliest."""


class Lines(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass
class World:
    folder: Path
    data: DataSet

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def run(
        self,
        *benchmarks: str,
        steps: tuple[int, ...] = (0, 5),
        lines: Lines | None = None,
        processes: int = 1,
        place: str = "run",
        python: str | None = None,
        dtype: str = "auto",
    ) -> list[dict[str, Any]]:
        jobs = [Job(step, step / 10, self.checkpoint(step)) for step in steps]
        recipe = make_recipe(*benchmarks)
        devices = Devices(processes=processes, threads=1)
        asked = recipe.evaluate.model_copy(update={"dtype": dtype})
        return evaluate_checkpoints(
            recipe.model_copy(update={"devices": devices, "evaluate": asked}),
            self.folder / place,
            jobs,
            data=self.data,
            progress=lines or Lines(),
            benchmarks=KNOWN,
            child=(python or warm_python(), *CHILD),
        )

    def result(self, step: int, name: str) -> Path:
        return self.folder / "run" / "eval" / f"step-{step:06d}" / f"{name}.json"

    def items(self, step: int, name: str) -> list[dict[str, Any]]:
        return read_item_lines(self.result(step, name).with_name(f"{name}.items.jsonl.gz"))

    def answers(self, step: int, name: str, process: int = 0, place: str = "run") -> list[dict[str, Any]]:
        """What a process has answered; a checksum in each line, no verdict."""
        path = self.folder / place / "eval" / f"step-{step:06d}" / f"{name}.answers-{process}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def forwards(self, step: int) -> Counter[str]:
        """Forward passes of a checkpoint, by process."""
        return Counter((self.checkpoint(step) / "forwards").read_text().splitlines())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("evaluation")
    world = World(folder, make_data(folder))
    adapter = known.KnownAdapter()
    adapter.save(known.random_model(1), world.checkpoint(0))
    adapter.save(known.bigram_model(WORDS), world.checkpoint(5))
    return world


def by_hand(question: Question) -> list[float]:
    """Losses of the bigram model, from its table."""
    table_VV = known.log_table(known.processor(), WORDS)
    losses = []
    for option in question.options:
        ids = [known.token(known.processor(), word) for word in known.words(option)]
        losses.append(-sum(float(table_VV[a, b]) for a, b in pairwise(ids)))
    return losses


def by_plain_forward(question: Question) -> list[float]:
    """Losses of the random model, one option at a time, by torch's own cross entropy on all logits."""
    model, processor = known.random_model(1), known.processor()
    frames = [read_frames(media, frames=known.FRAMES) for media in question.media]
    losses = []
    for option in question.options:
        turns = (Turn("user", prompt("options", question)), Turn("assistant", option))
        row = processor.encode(Sample(1, "k", question.media, turns), frames)
        with torch.no_grad():
            logits_SV = model(**processor.collate([row]).model_inputs()).logits[0]
        losses.append(float(torch.nn.functional.cross_entropy(logits_SV[:-1], row.labels_S[1:], reduction="sum")))
    return losses


def test_scores_are_those_worked_out_by_hand(world: World) -> None:
    lines = Lines()
    untrained, trained = world.run("known", lines=lines, python=sys.executable)
    assert (untrained["step"], untrained["fraction"], trained["step"]) == (0, 0.0, 5)
    for result, losses_of in ((untrained, by_plain_forward), (trained, by_hand)):
        items = world.items(result["step"], "known")
        assert [item["key"] for item in items] == [q.key for q in world.data.questions]
        for item, question in zip(items, world.data.questions, strict=True):
            losses = losses_of(question)
            assert item["option_loss"] == pytest.approx(losses, abs=1e-3)
            assert item["prediction"] == losses.index(min(losses))
            assert item["answer"] == question.answer
            assert item["correct"] == int(item["prediction"] == item["answer"])
            assert item["option_tokens"] == [len(known.words(option)) - 1 for option in question.options]
            assert (item["task"], item["ability"]) == (f"known_{question.ability}", question.ability)
        assert result["checkpoint"] == checkpoint_digest(world.checkpoint(result["step"]))
        assert result["counts"] == {
            "expected": 11,
            "scored": 11,
            "empty": 0,
            "unparsable": 0,
            "guessed": 0,
            "errors": 0,
        }
        assert result["versions"] == {"lmms_eval": "0.7.3", "task": 1}
        assert result["seconds"] > 0
    blue = COLOUR_OPTIONS.index("It is blue.")
    assert [item["prediction"] for item in world.items(5, "known")[:6]] == [blue] * 6
    colour, motion = trained["tasks"]
    assert colour["value"] == pytest.approx(2 / 6)
    assert (colour["n"], motion["n"], motion["in_mean"]) == (6, 5, False)
    assert trained["mean"]["value"] == colour["value"]
    assert any("step 5: known 0.333" in line for line in lines.said)
    assert not list((world.folder / "run" / "eval").glob(".work-*"))


def test_a_killed_evaluation_goes_on_at_the_next_item(world: World) -> None:
    """SIGKILL in the middle of a checkpoint: what is current stands, what was answered is not asked again."""
    world.run("known")
    before = {step: world.result(step, "known").stat().st_mtime_ns for step in (0, 5)}
    known.KnownAdapter().save(known.random_model(2), world.checkpoint(0))
    shutil.copytree(world.checkpoint(5), world.checkpoint(10))
    (world.checkpoint(10) / "forwards").unlink()
    (world.checkpoint(10) / "killed").write_text("2")
    lines = Lines()
    with pytest.raises(HarnessError, match="ended early"):
        world.run("known", steps=(0, 5, 10), lines=lines)
    assert any("step 0 again" in line and "another checkpoint" in line for line in lines.said)
    stale, kept = (world.result(step, "known").stat().st_mtime_ns for step in (0, 5))
    assert stale != before[0]
    assert kept == before[5]
    assert json.loads(world.result(0, "known").read_text())["checkpoint"] == checkpoint_digest(world.checkpoint(0))
    assert not world.result(10, "known").exists()
    answered = world.answers(10, "known")
    assert 0 < len(answered) < 11
    store = world.result(10, "known").with_name("known.answers-0.jsonl")
    store.write_text(store.read_text() + '{"id": "half a li')  # a kill may tear the last line

    silent = known.bigram_model({"<|assistant|>": {known.END: 0.9}})
    known.KnownAdapter().save(silent, world.checkpoint(20))
    with pytest.raises(HarnessError, match="letters_colour c0: the answer is empty"):
        world.run("known", "letters", steps=(5, 10, 20))
    assert world.result(5, "known").stat().st_mtime_ns == before[5]
    resumed = json.loads(world.result(10, "known").read_text())
    finished = json.loads(world.result(5, "known").read_text())
    assert resumed["tasks"] == finished["tasks"]
    assert world.items(10, "known") == world.items(5, "known")
    asked = world.answers(10, "known")
    assert asked[: len(answered)] == answered
    assert len({line["id"] for line in asked}) == len({line["key"] for line in asked}) == len(asked) == 11
    assert len(world.forwards(10)) == 2
    assert sum(world.forwards(10).values()) == sum(world.forwards(5).values())
    letters = json.loads(world.result(5, "letters").read_text())
    assert [item["text"] for item in world.items(5, "letters")] == ["b."] * 11
    assert letters["tasks"][0]["value"] == pytest.approx(2 / 6)  # B is right for two of six colours
    assert letters["tasks"][1]["value"] == pytest.approx(2 / 5)
    assert letters["mean"]["value"] == pytest.approx((2 / 6 + 2 / 5) / 2)


def test_weights_in_bfloat16_are_told_and_take_no_answers_of_float32(world: World) -> None:
    """The bigram model's likeliest words are far apart: what it answers does not change."""
    exact, rounded = world.result(5, "known"), world.folder / "rounded" / "eval" / "step-000005" / "known.json"
    assert json.loads(exact.read_text())["weights"] == "float32"
    rounded.parent.mkdir(parents=True)
    answers = "known.answers-0.jsonl"
    shutil.copyfile(exact.with_name(answers), rounded.with_name(answers))
    lines = Lines()
    (result,) = world.run("known", steps=(5,), place="rounded", dtype="bfloat16", lines=lines)
    assert result["weights"] == "bfloat16"
    assert any("11 questions, weights in bfloat16" in line for line in lines.said)
    items = read_item_lines(rounded.with_name("known.items.jsonl.gz"))
    assert [item["prediction"] for item in items] == [item["prediction"] for item in world.items(5, "known")]
    assert [item["option_loss"] for item in items] != [item["option_loss"] for item in world.items(5, "known")]


def test_two_processes_score_as_one(world: World) -> None:
    (world.checkpoint(5) / "forwards").unlink()
    world.run("known", "letters", steps=(5,), processes=2, place="spread")
    spread, alone = (world.folder / place / "eval" / "step-000005" for place in ("spread", "run"))
    assert len(world.forwards(5)) == 2
    assert world.forwards(5).total() == world.forwards(10).total(), "as many as one process takes"
    for name in ("known", "letters"):
        lines = [world.answers(5, name, process, "spread") for process in (0, 1)]
        assert all(lines)
        keys = [line["key"] for line in (*lines[0], *lines[1])]
        assert len(keys) == len(set(keys)) == 11
        assert (spread / f"{name}.items.jsonl.gz").read_bytes() == (alone / f"{name}.items.jsonl.gz").read_bytes()
        alone_result, spread_result = (json.loads((place / f"{name}.json").read_text()) for place in (alone, spread))
        # The checksum covers the seconds.
        measured = {"seconds": 0, "seal": ""}
        assert alone_result | measured == spread_result | measured


def test_what_goes_wrong_in_the_child_is_named(world: World, tmp_path: Path) -> None:
    """An error of the model's, and a clip that is there but cannot be decoded."""
    (world.checkpoint(5) / "broken").touch()
    for path in world.result(5, "known").parent.glob("known.*"):
        path.unlink()
    with pytest.raises(HarnessError, match=r"RuntimeError: the weights do not fit(.|\n)*, in load"):
        world.run("known", steps=(5,))
    (world.checkpoint(5) / "broken").unlink()
    (tmp_path / "damaged.mp4").write_bytes(b"not a video")
    first = world.data.questions[0]
    damaged = replace(first, media=(replace(first.media[0], path=tmp_path / "damaged.mp4", sha256="d"),))
    other = replace(world.data, questions=(damaged, *world.data.questions[1:]))
    with pytest.raises(DataError, match=r"damaged\.mp4"):
        World(world.folder, other).run("known", steps=(5,))
