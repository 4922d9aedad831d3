"""Published benchmarks through the whole evaluation: a checkpoint of this project and a model of lmms-eval's own."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import ANY

import pytest
import torch
from PIL import Image

from harness.benchmarks import BENCHMARKS, PaperBenchmark
from harness.cli.items.show_item import asked_again, asked_lines
from harness.cli.items.trace import item_lines, told
from harness.cli.status import run_status
from harness.common.errors import DataError, EnvironmentProblem, HarnessError, RecipeError, StaleError
from harness.common.progress import Progress
from harness.config.evaluation import EvaluationRecipe
from harness.config.load import EVALUATION, kind_of, load, shipped
from harness.config.weight_files import missing_checkpoint
from harness.data.loading.video import read_frames
from harness.data.sample import Media, Sample, Turn
from harness.evaluation.evaluate import checkpoint_digest
from harness.evaluation.files import open_published
from harness.evaluation.lmms.visuals import shown
from harness.evaluation.standalone import evaluate_standalone
from harness.evaluation.task import LmmsEvalTask
from harness.models import evaluated_for
from harness.records.record import read_items, read_record
from tests.harness.worlds.known_models import KnownAdapter
from tests.harness.worlds.paper_data import make_cases, picture
from tests.harness.worlds.videollama2 import FIXTURE
from tests.warm import warm_python

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from harness.data.loading.frames import FrameRule
    from tests.harness.worlds.paper_data import Case

CHILD = ("-m", "tests.harness.worlds.offline_child")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, Case]:
    return make_cases(folder / "data" / "benchmarks")


def document(folder: Path, **fields: Any) -> EvaluationRecipe:
    weights = {"data": str(folder / "data"), "weights": str(FIXTURE.parent), "results": str(folder / "results")}
    videollama2 = {"adapter": "videollama2", "checkpoint": FIXTURE.name, "vision_tower": tower()}
    content = {"kind": "evaluation", "name": "alone", "model": videollama2, "frames": 4, "paths": weights, **fields}
    return EvaluationRecipe.model_validate_json(json.dumps(content))


def tower() -> str:
    return f"{FIXTURE.name}/{json.loads((FIXTURE / 'config.json').read_text())['mm_vision_tower']}"


def run(recipe: EvaluationRecipe, cases: dict[str, Case], python: str | None = None) -> dict[str, Any]:
    child = (python or warm_python(), *CHILD)
    known = {name: case.benchmark for name, case in cases.items()}
    path = evaluate_standalone(recipe, Progress(quiet=True), benchmarks=known, child=child)
    return read_record(path)


WHOLE = ("scienceqa", "mme_cognition", "mvbench")


@pytest.fixture(scope="module")
def whole(folder: Path, cases: dict[str, Case]) -> dict[str, Any]:
    """The record of a checkpoint that is evaluated as it is."""
    return run(document(folder, benchmarks=WHOLE, limit=2, batch=3), cases, python=sys.executable)


@pytest.mark.slow
def test_a_whole_checkpoint_is_evaluated_as_it_is(folder: Path, whole: dict[str, Any]) -> None:
    """Pictures and videos as the official tasks give them reach the model; the answers are its own."""
    recipe, record = document(folder, benchmarks=WHOLE, limit=2, batch=3), whole
    assert (record["status"], record["totals"], record["plan"]) == ("evaluated", None, None)
    assert record["provenance"]["weights"] == checkpoint_digest(FIXTURE)
    assert [evaluation["benchmark"] for evaluation in record["evaluations"]] == sorted(WHOLE)
    for evaluation in record["evaluations"]:
        counts = evaluation["counts"]
        assert counts["expected"] == counts["scored"] > 0
        assert counts["errors"] == 0
        assert (evaluation["prompts"], evaluation["lmms_eval"]) == ("task", "0.7.3")
    answer_of = plain_answers(recipe)
    clip = Media("video", Path("clip"))
    frames = read_frames(Media("video", next((folder / "data/benchmarks/mvbench").rglob("*.mp4"))), frames=4)
    for line in lines_of(folder, record, "mvbench.answers-0.jsonl")[:3]:
        assert line["answer"] == answer_of(clip, frames, line["prompt"])
    for line in lines_of(folder, record, "scienceqa.answers-0.jsonl"):
        seen = shown([picture(int(line["key"]))], no_video, 4, "a picture")
        assert line["answer"] == answer_of(seen.media[0], seen.frames[0], line["prompt"])


def ask(folder: Path, record: dict[str, Any], item: str, **places: Path) -> dict[str, Any]:
    """`harness show RUN ITEM`, and that what it prints can be printed."""
    paths = {"results": folder / "results", "data": folder / "data", "weights": FIXTURE.parent, **places}
    overrides = [f"paths.{name}={place}" for name, place in paths.items()]
    answer = asked_again(record["id"], item, overrides, Progress(quiet=True), child=(warm_python(), *CHILD))
    assert all(asked_lines(json.loads(json.dumps(answer))))
    return answer


@pytest.mark.slow
def test_an_item_of_a_published_benchmark_is_asked_again_alone(folder: Path, whole: dict[str, Any]) -> None:
    clip = ask(folder, whole, "mvbench_moving_count/1")
    assert (clip["form"], clip["again"]) == ("published", clip["stored"])
    assert clip["item"]["right_option"] == "It closes."
    assert clip["item"]["options"] == ["It opens.", "It closes.", "Nothing."]
    (medium,) = clip["item"]["media"]
    assert (medium["kind"], Path(medium["path"]).name) == ("video", "moving_count1.mp4")
    (asked,) = {  # of that task, not of another one's second item
        line["prompt"]
        for line in lines_of(folder, whole, "mvbench.answers-0.jsonl")
        if (line["task"], line["key"]) == ("mvbench_moving_count", "1")
    }
    assert clip["item"]["prompt"] == asked
    assert f"  sent      {asked.splitlines()[0]}" in asked_lines(clip)


@pytest.mark.slow
def test_an_item_of_a_published_benchmark_is_told_with_what_was_sent(folder: Path, whole: dict[str, Any]) -> None:
    run_dir = folder / "results/runs" / whole["id"]
    evaluation = next(entry for entry in whole["evaluations"] if entry["benchmark"] == "scienceqa")
    item = (read_items(run_dir, evaluation) or [])[1]
    known = told(run_dir, evaluation, item)
    assert known["right_option"] == "two"
    assert known["media"] == [{"kind": "image", "path": ANY, "start": None, "end": None, "row": 1}]
    assert "[scienceqa 1]" in known["prompt"]
    lines = item_lines(known)
    assert f"  answer    {item['text']!r}" in lines
    assert "test-0.parquet, row 1, counted from 0" in "\n".join(lines)


def test_one_item_is_one_row_of_its_part(folder: Path, cases: dict[str, Case]) -> None:
    """Of MME, whose parts are one task of lmms-eval and whose rows hold another benchmark's, too."""
    benchmark = cases["mme_cognition"].benchmark
    task = LmmsEvalTask(open_published(benchmark, folder / "data" / "benchmarks"), "task")
    alone = task.alone({"task": "mme_cognition_text_translation", "key": "3"})
    assert (alone.data.row, alone.expected, list(alone.benchmark.parts)) == (9, 1, ["text_translation"])
    with pytest.raises(DataError, match="item 3 is of mme_cognition_text_translation, not of mme_cognition_code"):
        task.alone({"task": "mme_cognition_code_reasoning", "key": "3"})
    gone = replace(task, data=replace(task.data, digest="other"))
    with pytest.raises(StaleError, match="are others than those that were asked"):
        gone.alone({"task": "mme_cognition_text_translation", "key": "3"})


@pytest.mark.slow
def test_what_an_item_needs_and_is_not_here_is_named(folder: Path, whole: dict[str, Any]) -> None:
    item = "scienceqa/1"
    with pytest.raises(DataError, match=r"scienceqa: no rows .*; fetch lmms-lab-encoder/ScienceQA"):
        ask(folder, whole, item, data=folder / "nowhere")
    with pytest.raises(EnvironmentProblem, match=r"weights are missing\n.*config\.json: of a whole VideoLLaMA2"):
        ask(folder, whole, item, weights=folder / "nowhere")
    with pytest.raises(RecipeError, match="1 is the key of several items; write one of mme_cognition_"):
        ask(folder, whole, "1")


def lines_of(folder: Path, record: dict[str, Any], file: str) -> list[dict[str, Any]]:
    text = (folder / "results" / "runs" / record["id"] / "eval" / "step-000000" / file).read_text()
    return [json.loads(line) for line in text.splitlines()]


def plain_answers(recipe: EvaluationRecipe) -> Callable[[Media, Tensor, str], list[Any]]:
    """One prompt at a time through transformers' own loop: its text, and the number of tokens."""
    model = evaluated_for(recipe)
    processor = model.processor()
    loaded: Any = model.load(FIXTURE).eval()

    def answer(media: Media, frames: Tensor, prompt: str) -> list[Any]:
        sample = Sample(1, "k", (media,), (Turn("user", f"<media:0>\n{prompt}"),))
        row = processor.encode_prompt(sample, [frames])
        settings = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": processor.end_id}
        with torch.no_grad():
            ids = loaded.generate(**processor.collate([row]).model_inputs(), **settings)
        new = [int(i) for i in ids[0, len(row.input_ids_S) :] if int(i) != processor.end_id]
        return [processor.decode(new).split("\n\n")[0], len(new)]

    return answer


def no_video(media: Media) -> Tensor:
    raise AssertionError(media)


@pytest.mark.slow
def test_a_model_of_lmms_evals_own_is_asked(folder: Path, cases: dict[str, Case]) -> None:
    """It says B to everything, which is right in every question of one benchmark."""
    model = {"adapter": "lmms_eval", "name": "dummy", "args": {"response": "B"}}
    recipe = document(folder, name="says_b", model=model, benchmarks=["scienceqa", "pope"])
    record = run(recipe, cases)
    pope, scienceqa = record["evaluations"]
    assert scienceqa["mean"]["value"] == 1.0
    assert pope["mean"]["value"] == 0.0
    assert scienceqa["scoring"] == {"unit": "item", "combine": "mean", "scale": "fraction"}
    assert pope["beside"].keys() == {"pope_f1_score", "pope_precision", "pope_recall"}
    assert len(lines_of(folder, record, "pope.answers-0.jsonl")) == pope["counts"]["expected"]
    assert run(recipe, cases)["evaluations"] == record["evaluations"], "current: nothing is asked"
    status = run_status(folder / "results" / "runs" / record["id"])
    assert (status["state"], len(status["evaluations"])) == ("complete", 2)
    other = document(folder, name="nobody", model={**model, "name": "dumy"}, benchmarks=["scienceqa"])
    with pytest.raises(RecipeError, match=r"no model 'dumy'; did you mean dummy\?"):
        run(other, cases)


# --- what can be said before anything starts -------------------------------------------------------------


def test_missing_weights_and_another_models_are_named(folder: Path, cases: dict[str, Case]) -> None:
    recipe = document(folder, benchmarks=["scienceqa"])
    assert missing_checkpoint(recipe) == []
    absent = recipe.model_copy(update={"paths": recipe.paths.model_copy(update={"weights": str(folder / "none")})})
    with pytest.raises(EnvironmentProblem, match=r"config\.json: of a whole VideoLLaMA2(.|\n)*preprocessor_config"):
        run(absent, cases)
    foreign = folder / "foreign"
    foreign.mkdir()
    for file in FIXTURE.glob("*.*"):
        (foreign / file.name).symlink_to(file)
    (foreign / "config.json").unlink()
    (foreign / "config.json").write_text(json.dumps({"model_type": "llava"}))
    model = {**recipe.model.model_dump(), "checkpoint": str(foreign)}
    other = document(folder, model=model, benchmarks=["scienceqa"])
    with pytest.raises(EnvironmentProblem, match="model_type is 'llava'; known are videollama2_qwen2"):
        evaluated_for(other).processor()


def test_missing_data_are_named_before_anything_is_loaded(folder: Path) -> None:
    recipe = document(folder / "empty", benchmarks=["pope"])
    with pytest.raises(DataError, match="pope"):
        evaluate_standalone(recipe, Progress(quiet=True), child=("/nonexistent",))


@pytest.mark.parametrize("name", sorted(shipped(EVALUATION)))
def test_a_shipped_evaluation_loads(name: str) -> None:
    recipe = load(EVALUATION, name)
    assert name == f"evaluate/{recipe.name}"
    assert recipe.model.checkpoint is not None
    assert len(missing_checkpoint(recipe)) >= 1


def test_mistakes_in_an_evaluation_have_their_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: evaluation\nname: mine\nmodel: {adapter: lmms_eval, nme: dummy}\n"
        "benchmarks: [pope, pop, shapes, pope]\n"
    )
    assert kind_of(path) is EVALUATION
    assert kind_of("tiny_regate") is not EVALUATION
    with pytest.raises(RecipeError) as caught:
        load(EVALUATION, str(path), ["batch=none"])
    message = str(caught.value)
    assert "mine.yaml:3:29: unknown key nme under model; did you mean name?" in message
    assert "unknown benchmark pop; did you mean pope?" in message
    assert "shapes asks the held-out questions" in message
    assert "pope is given twice" in message
    assert "batch" in message


# --- a model of lmms-eval's that goes wrong --------------------------------------------------------------


class Inner:
    """Answers, or fails as lmms-eval's models do: it logs an error and says nothing."""

    def __init__(self, say: Any) -> None:
        self.say = say
        self.task_dict: dict[str, Any] = {}

    def generate_until(self, requests: list[Any]) -> Any:
        return self.say(requests)


def ask_inner(tmp_path: Path, say: Any) -> list[Any]:
    from lmms_eval.api.instance import Instance

    from harness.evaluation.lmms.answer_cache import AnswerCollector, Answers
    from harness.evaluation.lmms.model import BuiltinModel

    def request(i: int) -> Any:
        arguments = (f"What {i}?", {"max_new_tokens": 4}, None, i, "pope", "test")
        metadata: Any = {"task": "pope", "doc_id": i, "repeats": 1}
        return Instance("generate_until", arguments, i, metadata)

    with Answers(tmp_path / "pope.json") as answers:
        collector = AnswerCollector(answers, {}, lambda done: None)
        model = BuiltinModel(collector, lambda: Inner(say), is_simple=True, batch_size=2)
        return [given.text for given in model.generate_until([request(i) for i in range(3)])]


def test_a_swallowed_error_and_a_missing_answer_are_named(tmp_path: Path) -> None:
    from loguru import logger

    def swallows(requests: list[Any]) -> list[str]:
        logger.error("CUDA error in generating")
        return [""] * len(requests)

    with pytest.raises(HarnessError, match="Inner failed at pope 0, pope 1: CUDA error in generating"):
        ask_inner(tmp_path, swallows)
    with pytest.raises(HarnessError, match="Inner gave 1 answers to 2: pope 0, pope 1"):
        ask_inner(tmp_path, lambda requests: ["yes"])
    assert ask_inner(tmp_path, lambda requests: ["yes"] * len(requests)) == ["yes"] * 3

    def refuses(requests: list[Any]) -> list[str]:
        raise AssertionError("asked again")

    assert ask_inner(tmp_path, refuses) == ["yes"] * 3


def test_several_pictures_are_one_clip_and_strangers_are_named() -> None:
    pictures = [Image.new("RGB", (6, 4), (i, 0, 0)) for i in range(9)]
    seen = shown(pictures, no_video, 3, "a film")
    assert [media.kind for media in seen.media] == ["video"]
    assert seen.frames[0].shape == (3, 3, 4, 6)
    assert seen.frames[0][:, 0, 0, 0].tolist() == [1, 4, 7]
    with pytest.raises(DataError, match="a film: 9 pictures of one clip differ in size"):
        shown([*pictures[:-1], Image.new("RGB", (8, 8))], no_video, 9, "a film")
    with pytest.raises(DataError, match="a sound: shows dict among 1 media"):
        shown([{"array": []}], no_video, 3, "a sound")
    assert shown(None, no_video, 3, "text alone").media == ()
    assert shown(pictures, no_video, 3, "a film", "mvbench").frames[0][:, 0, 0, 0].tolist() == [1, 4, 6]


def test_what_names_a_medium_is_a_column_of_its_benchmark() -> None:
    published = {name: entry for name, entry in BENCHMARKS.items() if isinstance(entry, PaperBenchmark)}
    named = {name: entry.medium_columns for name, entry in published.items()}
    assert all(set(columns) <= set(published[name].columns.split()) for name, columns in named.items())
    assert (named["videomme"], named["nextqa"], named["mme_cognition"]) == (["videoID"], ["video"], ["question_id"])
    assert named["scienceqa"] == [] == named["vinoground"]


@pytest.mark.parametrize("rule", ["spread", "mvbench"])
def test_a_model_sees_the_frames_of_its_own_rule(folder: Path, cases: dict[str, Case], rule: FrameRule) -> None:
    """Two rules never share an answer: the rule is among what the answers are kept by."""
    from harness.evaluation.lmms.answer_cache import AnswerCollector, Answers
    from harness.evaluation.lmms.subjects import Checkpoints

    adapter = KnownAdapter()
    adapter.frame_rule = rule
    checkpoints = Checkpoints(adapter, 3, 1, torch.device("cpu"), None)
    assert checkpoints.made_by()["frame_rule"] == rule
    collector = AnswerCollector(Answers(folder / "none.json"), {}, lambda done: None)
    model: Any = checkpoints.model(folder, collector, BENCHMARKS["scienceqa"])
    clip = Media("video", next((folder / "data/benchmarks/mvbench").rglob("*.mp4")))
    assert torch.equal(model.checkpoint.frames(clip), read_frames(clip, frames=3, rule=rule))
    model.task_dict = {"film": {"test": [[Image.new("RGB", (6, 4), (i, 0, 0)) for i in range(9)]]}}
    request = model._request("What?", lambda pictures: pictures, 0, "film", "test")
    assert request.show().frames[0][:, 0, 0, 0].tolist() == {"spread": [1, 4, 7], "mvbench": [1, 4, 6]}[rule]
