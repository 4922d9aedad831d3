"""Every file that the project reads back, damaged in every way: what was written is read, or the damage is told in
one message with the exit code that belongs to it. Never a traceback, and never other values from a file that has a
checksum.

Checkpoints have a test of their own (`training/test_checkpoint.py`), files of users too.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import regate
from harness.analysis.attention.study import read_attention, write_attention
from harness.analysis.choices.needed_words import read_needed, write_needed
from harness.analysis.choices.selection import read_selection, write_selection
from harness.benchmarks.question_file import QuestionFile
from harness.cli.status import run_status
from harness.common.exits import explained
from harness.common.files import read_json, write_json
from harness.data.loading.tower_features import TowerFeatures, write_features
from harness.evaluation.evaluate import keep_questions, kept_task, questions_file
from harness.evaluation.lmms.answer_cache import Answers
from harness.evaluation.lmms.child import read_job, write_result
from harness.evaluation.task import build_tasks
from harness.models.artifacts import ArtifactFolder
from harness.pipeline import _read_provenance
from harness.records import provenance, tracking
from harness.records.evaluations import read_evaluations
from harness.records.ledger import BESIDE, Ledger, read_events
from harness.records.record import read_record
from harness.records.run_folder import check_ledger_kept, pin, read_recipe, stage
from harness.training.launching.agent import pid_of, read_outcome
from harness.training.stores.arrays_of_samples import read_arrays, write_arrays
from tests.harness.worlds.run_builder import build_run, finish, recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A file of ours.

    Attributes:
        make: writes it below a folder, and gives its path.
        read: reads it, and gives plain values.
        remade: what `read` gives where the file is only a copy that is made anew.
        part: a file that is cut short gives what stands before the cut.
        checksum: a changed byte is seen wherever it is.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    remade: tuple[Any, ...] = ()
    part: bool = False
    checksum: bool = True


def ledger(folder: Path) -> Path:
    with Ledger(folder / "ledger.jsonl") as ledger:
        ledger.append("start", step=0, steps=2)
        for step in range(2):
            ledger.append("step", step=step, loss=1.25 + step, counts={"valid": 10})
        ledger.append("end", step=2)
    return folder / "ledger.jsonl"


def ledger_beside(folder: Path) -> Path:
    for _ in range(2):
        with stage(folder, "eval", "eval", ledger_file=BESIDE):
            pass
    return folder / BESIDE


def read_beside(path: Path) -> Any:
    check_ledger_kept(path.parent)
    return read_events(path.with_name("ledger.jsonl"))


def record(folder: Path) -> Path:
    made = recipe(folder, gate=True)
    run_dir = build_run(made)
    finish(made, run_dir)
    return run_dir / "record.json"


def evaluation(folder: Path) -> Path:
    path = build_run(recipe(folder)) / "eval" / "step-000020" / "shapes.json"
    lines = path.with_name("shapes.items.jsonl").read_text().splitlines()
    write_result(path, {}, json.loads(path.read_text()), [json.loads(line) for line in lines])
    return path


def items(folder: Path) -> Path:
    return evaluation(folder).with_name("shapes.items.jsonl.gz")


def earlier_items(folder: Path) -> Path:
    return build_run(recipe(folder)) / "eval" / "step-000020" / "shapes.items.jsonl"


def read_run_evaluations(path: Path) -> Any:
    return read_evaluations(path.parents[2])


def asked(folder: Path) -> Path:
    write_json(folder / "recipe.json", recipe(folder).model_dump(mode="json"), sealed=True)
    return folder / "recipe.json"


def status_of(path: Path) -> Any:
    status = run_status(path.parent)
    assert (status["state"] == "unreadable") == (status["problem"] is not None)
    return "unreadable" if status["problem"] else "readable"


def inputs(folder: Path) -> Path:
    pin(folder, "data", "d" * 64)
    return folder / "inputs.json"


def cost(folder: Path) -> Path:
    write_json(folder / "cost.json", {"schema": 1, "seconds": 12.5, "devices": 2}, sealed=True)
    return folder / "cost.json"


def read_cost(path: Path) -> Any:
    cost = read_json(path, "the cost of reference losses", schema=1, shape={"seconds": int | float, "devices": int})
    return [cost["seconds"], cost["devices"]]


def ran_on(folder: Path) -> Path:
    write_json(folder / "provenance.json", provenance.collect(threads=1), sealed=True)
    return folder / "provenance.json"


def mirror(folder: Path) -> Path:
    tracking._write_state(folder, tracking.MirrorReport("done", "sqlite:///x"), final=True)
    return folder / tracking.STATE_FILE


def answers(folder: Path) -> Path:
    with Answers(folder / "pope.json") as kept:
        kept.add((f"name{i}", {"task": "pope", "key": str(i)}, ["yes", i]) for i in range(3))
    return folder / "pope.answers-0.jsonl"


def read_answers(path: Path) -> Any:
    kept = Answers(path.with_name("pope.json"))
    return [kept.get(f"name{i}") for i in range(3)]


def card(folder: Path) -> Path:
    (folder / "toy").mkdir()
    (folder / "toy" / "artifact.json").write_text('{"schema": 1}')
    artifacts = ArtifactFolder(folder / "made", ("tower",), "d" * 64)

    def work(place: Path) -> dict[str, Any]:
        (place / "model.safetensors").write_bytes(b"weights")
        return {}

    artifacts.make("tower", work)
    return artifacts._card_path("tower")


def read_card(path: Path) -> Any:
    return ArtifactFolder(path.parents[1], ("tower",), "d" * 64).card("tower")


def choices(folder: Path) -> Path:
    return write_selection(folder, {"schema": 1, "run": folder.name, "panels": [], "share": 0.25})


def asked_for(folder: Path) -> Path:
    return write_needed(folder, {"schema": 1, "run": folder.name, "benchmarks": {}, "keep_ratio": 0.25})


def looked(folder: Path) -> Path:
    return write_attention(folder, {"schema": 1, "run": folder.name, "benchmarks": {}, "made_from": {}})


TARGET_ARRAYS = ("sample_ids", "num_targets", "checksums")


def targets(folder: Path) -> Path:
    path = folder / "targets-0123456789abcdef.npz"
    values = np.arange(4, dtype=np.int64)
    write_arrays(path, dict(zip(TARGET_ARRAYS, (values, values + 1, values + 2), strict=True)))
    return path


def read_targets(path: Path) -> Any:
    arrays = read_arrays(path, TARGET_ARRAYS, 4)
    return None if arrays is None else [values.tolist() for values in arrays]


def reference(folder: Path) -> Path:
    writer = regate.ReferenceWriter.create(
        folder / "store", sample_ids=[3, 1], num_targets=[2, 3], checksums=[7, 8], fingerprint={"teacher": "m"}
    )
    writer.write([3, 1], [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])])
    writer.finish()
    return folder / "store" / "manifest.json"


def read_reference(path: Path) -> Any:
    store = regate.ReferenceStore.open(path.parent, expect_fingerprint={"teacher": "m"})
    return [store.values.tolist(), store.checksums_M.tolist(), store.index.ids_M.tolist()]


def beside(name: str) -> Callable[[Path], Path]:
    return lambda folder: reference(folder).with_name(name)


def begun_pass(folder: Path) -> Path:
    writer = regate.ReferenceWriter.create(folder / "store", **BEGUN)
    writer.write([3], [torch.tensor([1.0, 2.0])])
    return folder / "store" / "losses.npy"


def read_pass(path: Path) -> Any:
    """What the pass comes to when it goes on: what is damaged is scored again."""
    writer = regate.ReferenceWriter.create(path.parent, **BEGUN)
    scored = {3: torch.tensor([1.0, 2.0]), 1: torch.tensor([3.0, 4.0, 5.0])}
    left = [sample for sample in scored if sample not in writer.done_ids()]
    writer.write(left, [scored[sample] for sample in left])
    return writer.finish().values.tolist()


def begun(name: str) -> Reader:
    return Reader(lambda folder: begun_pass(folder).with_name(name), read_pass)


BEGUN: dict[str, Any] = {
    "sample_ids": [3, 1], "num_targets": [2, 3], "checksums": [7, 8], "fingerprint": {"teacher": "m"}
}  # fmt: skip


def difficulty(folder: Path) -> Path:
    regate.DifficultyStore.create(folder / "store", sample_ids=[3, 1], num_targets=[2, 3], init="zero")
    return folder / "store" / "m.e0.npy"


def features(folder: Path) -> Path:
    values_R = torch.arange(12.0).reshape(3, 4)
    write_features(folder / "tower", 3, [values_R], np.array([2, 0, 1, 0]), FEATURES)
    return folder / "tower" / "card.json"


def read_features(path: Path) -> Any:
    kept = TowerFeatures.open(path.parent, FEATURES)
    if kept is None:
        return None
    rows = [kept.of([place]) for place in range(4)]
    return [None if row is None else row.tolist() for row in rows]


def of_features(name: str, *, part: bool = False) -> Reader:
    return Reader(lambda folder: features(folder).with_name(name), read_features, remade=(None,), part=part)


FEATURES = {"tower": "t", "data": "d"}


def worker_file(name: str, content: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_json(folder / name, {"schema": 1, **content}, sealed=True)
        return folder / name

    return make


OUTCOME = {"message": "stopped", "code": 75, "time": 1.5}
JOB = {"recipe": {"name": "a"}, "share": [0, 1], "tasks": [], "results": [], "work": "w", "threads": 2}


def questions(folder: Path) -> Path:
    (folder / "a.mp4").write_bytes(b"a")
    asked = {"key": "k", "question": "Which?", "media": "a.mp4", "options": ["red", "blue"], "answer": "blue"}
    (folder / "own.json").write_text(json.dumps({"schema": 1, "name": "own", "questions": [asked]}))
    file = QuestionFile(str(folder / "own.json"))
    (task,) = build_tasks([file], {}, data=None, data_folder="", prompts="task", limit=None)
    keep_questions(folder, task)
    return questions_file(folder, "own")


def read_questions(path: Path) -> Any:
    task = kept_task(path.parents[1], "own")
    return None if task is None else task.job()


STATE = SimpleNamespace(value=None)


def read_difficulty(path: Path) -> Any:
    store = regate.DifficultyStore.open(path.parent)
    if STATE.value is None:
        STATE.value = store.state()
    store.rewind(STATE.value)
    return [store.decay, store.init, np.asarray(store._values).tolist(), store.index.ids_M.tolist()]


READERS = {
    "ledger": Reader(ledger, read_events, part=True),
    "ledger of evaluations beside": Reader(ledger_beside, read_beside),
    "note of evaluations beside": Reader(
        lambda folder: ledger_beside(folder).with_name("ledger-beside.json"), read_beside
    ),
    "record": Reader(record, read_record),
    "evaluation": Reader(evaluation, read_run_evaluations),
    "items": Reader(items, read_run_evaluations),
    "items of an earlier version": Reader(earlier_items, read_run_evaluations, checksum=False),
    "recipe of a run": Reader(asked, lambda path: read_recipe(path.parent).identity()),
    "status of a run": Reader(asked, status_of, remade=("unreadable",)),
    "choices of a gate": Reader(choices, lambda path: read_selection(path.parent)),
    "words that items ask for": Reader(asked_for, lambda path: read_needed(path.parent)),
    "attention": Reader(looked, lambda path: read_attention(path.parent)),
    "inputs": Reader(inputs, lambda path: pin(path.parent, "data", "d" * 64)),
    "cost": Reader(cost, read_cost),
    "provenance": Reader(ran_on, _read_provenance),
    "mirror": Reader(mirror, lambda path: tracking._last_state(path.parent), remade=(None,)),
    "answers": Reader(answers, read_answers, part=True),
    "card": Reader(card, read_card),
    "worker's outcome": Reader(worker_file("outcome-0.json", OUTCOME), lambda path: read_outcome(path.parent, 0)),
    "worker's id": Reader(worker_file("pid-0", {"pid": 4_000_000}), lambda path: pid_of(path.parent, 0)),
    "questions of an evaluation": Reader(questions, read_questions),
    "job of an evaluation": Reader(worker_file("job.json", JOB), read_job),
    "card of tower features": of_features("card.json"),
    "tower features": of_features("features.npy", part=True),
    "sums of tower features": of_features("sums.npy"),
    "rows of tower features": of_features("rows.npy"),
    "weights of an artifact": Reader(lambda folder: card(folder).with_name("model.safetensors"), read_card),
    "target index": Reader(targets, read_targets, remade=(None,)),
    "reference manifest": Reader(reference, read_reference),
    "reference losses": Reader(beside("losses.npy"), read_reference),
    "reference checksums": Reader(beside("checksums.npy"), read_reference),
    "reference ids": Reader(beside("ids.npy"), read_reference),
    "reference offsets": Reader(beside("offsets.npy"), read_reference),
    **{f"begun pass: {name}": begun(name) for name in ("losses.npy", "done.npy", "sums.npy", "manifest.json")},
    "difficulty values": Reader(difficulty, read_difficulty),
    "difficulty manifest": Reader(lambda folder: difficulty(folder).with_name("manifest.json"), read_difficulty),
}
"""Of every file that a run reads back; `tests/soak` goes through the folders that a run leaves."""
FLIPS = 25
TAIL = 90
WAIT_S = 20
"""After which a reader that waits for a pipe is ended; none does."""


def damages(content: bytes) -> dict[str, bytes]:
    """The file's content, harmed in each way."""
    harmed = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "last byte": content[:-1],
        "a list": b"[]\n",
        "a number in a list": b"[1]\n",
        "null": b"null\n",
        "text": b'"text"\n',
        "no UTF-8": b"\xff\xfe\x00" + content,
        "nested": b"[" * 100_000 + b"\n",
    }
    try:
        first, _, rest = content.partition(b"\n") if content.count(b"\n{") else (content, b"", b"")
        value = json.loads(first)
    except ValueError:
        value = None
    if isinstance(value, dict):
        harmed["other schema"] = json.dumps({**value, "schema": 99}).encode() + b"\n" + rest
        harmed["lacks all keys"] = b"{}\n"
        for key in value:
            harmed[f"{key} of another type"] = json.dumps({**value, key: [[]]}).encode() + b"\n" + rest
    tail = range(max(0, len(content) - TAIL), len(content), 3)  # where a checksum stands
    for place in [*np.linspace(0, len(content) - 1, FLIPS).astype(int).tolist(), *tail]:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        harmed[f"bit of byte {place}"] = bytes(changed)
    return harmed


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def allowed(reader: Reader, damage: str, value: Any, whole: Any) -> bool:
    if same(value, whole) or any(same(value, remade) for remade in reader.remade):
        return True
    if reader.part and isinstance(value, list):  # a torn tail; answers that are asked again
        return all(part is None or any(same(part, entry) for entry in whole) for part in value)
    # Without a checksum, what cannot be read at all is told; another value of a field may pass.
    return not reader.checksum and (
        damage.startswith("bit of byte") or damage.endswith("of another type") or damage == "other schema"
    )


@pytest.mark.parametrize("name", READERS)
def test_damage_is_told_or_harmless(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    STATE.value = None
    path = reader.make(tmp_path)
    whole, content = reader.read(path), path.read_bytes()
    wrong = []
    for damage, harmed in damages(content).items():
        path.write_bytes(harmed)
        try:
            value = reader.read(path)
        except Exception as error:  # noqa: BLE001 - whatever comes is judged
            message, code = explained(error)
            if code not in (2, 3, 4, 5) or "Traceback" in message or str(tmp_path) not in message:
                wrong.append(f"{damage}: exit {code}: {message[-300:]}")
        else:
            if not allowed(reader, damage, value, whole):
                wrong.append(f"{damage}: read as {str(value)[:200]}")
    assert not wrong, "\n".join(wrong)
    path.write_bytes(content)
    assert same(reader.read(path), whole)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_place_of_a_file_is_told(name: str, tmp_path: Path) -> None:
    """Whoever opened it would wait for ever: the alarm ends the wait."""
    reader = READERS[name]
    STATE.value = None
    path = reader.make(tmp_path)
    whole = reader.read(path)
    path.unlink()
    os.mkfifo(path)
    before = signal.signal(signal.SIGALRM, overdue)
    signal.alarm(WAIT_S)
    try:
        value = reader.read(path)
    except Exception as error:  # noqa: BLE001 - whatever comes is judged
        message, code = explained(error)
        assert code in (2, 3, 4, 5), message
        assert str(tmp_path) in message
    else:
        assert allowed(reader, "a pipe", value, whole)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def overdue(*_: object) -> None:
    pytest.fail("waits for the pipe")
