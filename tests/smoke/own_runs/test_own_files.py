"""A selection rule and questions of a user's own, from their files to the tables, by the command line."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.harness.worlds.tiny import tiny_recipe
from tests.smoke.conftest import harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
RULE = '''
def score(difficulty_BS, reference_BS, random_BS):
    """The reference loss, ties and all, with a little chance."""
    return reference_BS + 0.1 * difficulty_BS + 0.01 * random_BS
'''
GATE = {
    "keep_ratio": 0.5,
    "cycle_steps": 2,
    "dense_steps": 1,
    "warmup_steps": 0,
    "selection": {"file": "my_rule.py", "function": "score"},
}


def command(folder: Path, *arguments: str, status: int = 0) -> str:
    done = harness(folder, *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def write_questions(folder: Path) -> None:
    """Two files about clips of the test set: with options, and with short answers."""
    (listed,) = (folder / "data").rglob("questions.json")
    questions = json.loads(listed.read_text())["questions"]
    choice = [
        {**{name: question[name] for name in ("key", "ability")}, "question": question["question"],
         "media": [str(listed.parent / question["video"])], "options": question["options"],
         "answer": question["options"][question["answer"]]}
        for question in questions
    ]  # fmt: skip
    short = [
        {"key": entry["key"], "question": entry["question"], "media": entry["media"], "answer": entry["answer"]}
        for entry in choice[:3]
    ]
    for name, entries in (("choice", choice), ("short", short)):
        (folder / f"{name}.json").write_text(json.dumps({"schema": 1, "name": name, "questions": entries}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both arms of a pair whose gate is the user's rule, asked the user's questions."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_rule.py").write_text(RULE)
    recipe = {**tiny_recipe(folder).model_dump(mode="json"), "track": {"mlflow": False}}
    recipe["train"]["steps"] = 4
    recipe["paths"] = {name: name for name in ("data", "weights", "stores", "results")}
    for name, gate in (("base", None), ("own", GATE)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "name": name, "gate": gate}))
    command(folder, "prepare", "base.yaml")
    write_questions(folder)
    asked = "evaluate.benchmarks=[{file: choice.json}, {file: short.json}]"
    command(folder, "run", "base.yaml", "own.yaml", asked)
    return folder


def record(folder: Path, name: str) -> dict[str, Any]:
    (path,) = (folder / "results" / "runs").glob(f"{name}-*/record.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_sparse_steps_went_by_the_rule_and_the_record_names_it(folder: Path) -> None:
    own = record(folder, "own")
    counts = own["totals"]["counts"]
    assert 0 < counts["scored"] < counts["target"]
    sha256 = hashlib.sha256(RULE.encode()).hexdigest()
    assert own["recipe"]["gate"]["selection"] == {"file": "my_rule.py", "function": "score", "sha256": sha256}
    assert own["reference"] is not None, "the rule reads reference losses"
    kept = folder / "results" / "runs" / own["id"] / "own"
    assert {path.name for path in kept.iterdir()} == {"my_rule.py", "choice.json", "short.json"}
    assert (kept / "my_rule.py").read_text() == RULE


def test_every_item_of_the_users_questions_is_kept_and_scored(folder: Path) -> None:
    own = record(folder, "own")
    by_name = {entry["benchmark"]: entry for entry in own["evaluations"]}
    assert by_name.keys() == {"choice", "short"}
    assert [task["ability"] for task in by_name["choice"]["tasks"]] == [
        "colour", "shape", "direction", "count", "order", "change", "collision",
    ]  # fmt: skip
    assert by_name["short"]["counts"]["scored"] == 3
    assert by_name["short"]["counts"]["unparsable"] == 0


def test_the_arms_are_compared_on_the_users_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # wide enough that no name is broken over lines
    compared = command(folder, "compare", record(folder, "base")["id"], record(folder, "own")["id"])
    assert "score of my_rule.py" in compared
    assert "choice" in compared
    tables = folder / "results" / "tables"
    assert {"accuracy_choice.json", "accuracy_short.json"} <= {path.name for path in tables.iterdir()}
    for path in (tables / "paper").glob("*.json"):
        for row in json.loads(path.read_text())["rows"]:
            assert not any(isinstance(value, str) and "own-" in value for value in row.values()), path


def test_a_number_leads_to_question_clip_options_and_answer(folder: Path) -> None:
    own = record(folder, "own")["id"]
    told = command(folder, "trace", "accuracy_choice", own, "colour", "--item", "colour/000000")
    (question, *_) = json.loads((folder / "choice.json").read_text())["questions"]
    for words in (own, "record.json", question["question"], question["media"][0], *question["options"], "(right"):
        assert words in told


def test_an_item_is_asked_again_by_the_kept_checkpoint_and_refused_where_it_is_gone(folder: Path) -> None:
    run_id = record(folder, "own")["id"]
    shown = ("show", run_id, "choice_colour/colour/000000")
    answer = json.loads(command(folder, *shown, "--json"))
    assert answer["again"]["option_loss"] == pytest.approx(answer["stored"]["option_loss"], abs=1e-4)
    assert answer["item"]["right_option"] == answer["item"]["options"][answer["stored"]["answer"]]
    spoken = json.loads(command(folder, "show", run_id, "short_all/colour/000000", "--json"))
    assert spoken["again"]["text"] == spoken["stored"]["text"]
    (checkpoint,) = (folder / "results" / "runs" / run_id / "checkpoints").glob("step-000004")
    aside = checkpoint.rename(checkpoint.with_name("aside"))
    message = command(folder, *shown, status=5)
    aside.rename(checkpoint)
    assert "is gone: the model that answered choice_colour/colour/000000 is not kept" in message


def test_a_finished_run_is_asked_more_and_not_trained_again(folder: Path) -> None:
    before = record(folder, "own")
    command(folder, "eval", before["id"], "evaluate.benchmarks=[shapes]", "evaluate.limit=1")
    after = record(folder, "own")
    assert after["recipe"] == before["recipe"], "the run stays what it is"
    more = [entry for entry in after["evaluations"] if entry not in before["evaluations"]]
    assert [(entry["benchmark"], entry["counts"]["scored"]) for entry in more] == [("shapes", 7)]
    assert len(after["evaluations"]) == len(before["evaluations"]) + 1
    ledger = folder / "results" / "runs" / before["id"] / "ledger.jsonl"
    events = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [event["event"] for event in events].count("start") == 1, "it is not trained again"
    assert [event.get("stage") for event in events].count("eval") == 2, "the time of both is written down"


def test_a_rule_that_fails_in_a_sparse_step_ends_the_run_with_its_name(folder: Path) -> None:
    (folder / "bad_rule.py").write_text("def score(reference_BS):\n    return reference_BS[:, 1:]\n")
    message = command(
        folder, "train", "own.yaml", "name=bad", "gate.selection={file: bad_rule.py, function: score}", status=2
    )
    assert "selection score of bad_rule.py gives float32 of shape" in message
    assert "Traceback" not in message


def test_two_processes_select_by_the_rule_what_one_does(folder: Path) -> None:
    command(folder, "train", "own.yaml", "name=two", "train.micro_batch=2", "devices.processes=2")
    counts = []
    for name in ("own", "two"):
        (ledger,) = (folder / "results" / "runs").glob(f"{name}-*/ledger.jsonl")
        events = map(json.loads, ledger.read_text().splitlines())
        counts.append([event["counts"]["scored"] for event in events if event["event"] == "step"])
    assert counts[0] == counts[1]
    assert len(counts[0]) == 4
