"""What counts as a result is decided by counting: every way in which a file can be wrong is found and named."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tenacity
import torch

from harness.common.errors import DataError, HarnessError, RecipeError, StaleError
from harness.common.progress import Progress
from harness.config.recipe import Devices
from harness.evaluation.evaluate import Job, checkpoint_digest, evaluate_checkpoints, make_wanted, read_result
from harness.evaluation.lmms.child import report, write_result
from harness.evaluation.lmms.process import run_child
from harness.evaluation.multiple_choice import select, summarise
from harness.evaluation.task import MultipleChoiceTask
from harness.records.evaluations import read_item_bytes
from tests.harness.worlds.evaluation import KNOWN, make_data, make_recipe
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.data.sources import DataSet
    from harness.evaluation.evaluate import Wanted

Items = list[dict[str, Any]]
COUNTS = {"expected": 11, "scored": 11, "empty": 0, "unparsable": 0, "guessed": 0, "errors": 0}
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_data(tmp_path_factory.mktemp("world"))


def checkpoint(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def wanted_of(data: DataSet, folder: Path, name: str = "known") -> Wanted:
    tasks = select(KNOWN[name], data.source, data.questions, None)
    job = Job(3, 0.5, checkpoint(folder / "step-3"))
    return make_wanted(folder / "run", job, MultipleChoiceTask(KNOWN[name], tasks), checkpoint_digest(job.checkpoint))


def task(wanted: Wanted) -> MultipleChoiceTask:
    assert isinstance(wanted.task, MultipleChoiceTask)
    return wanted.task


def option_items(wanted: Wanted) -> Items:
    """Every first option is the likeliest."""
    items = []
    for ability, questions in task(wanted).tasks.items():
        for q in questions:
            losses = [1.0 + i for i in range(len(q.options))]
            scored = {"option_loss": losses, "option_tokens": [4] * len(losses)}
            head = {"task": task(wanted).benchmark.task(ability), "key": q.key, "ability": ability}
            items.append({**head, "prediction": 0, "answer": q.answer, "correct": int(q.answer == 0), **scored})
    return items


def text_items(wanted: Wanted) -> Items:
    items = option_items(wanted)
    return [{k: v for k, v in item.items() if "option" not in k} | {"text": "A", "empty": False} for item in items]


def write(wanted: Wanted, items: Items, numbers: dict[str, Any] | None = None, **changed: Any) -> None:
    summary = numbers or summarise(task(wanted).benchmark, items)
    counts = {"expected": wanted.task.expected, **summary["counts"], "guessed": 0, "errors": 0}
    result = {"tasks": summary["tasks"], "mean": summary["mean"], "counts": counts, "seconds": 1.0}
    write_result(wanted.path, wanted.identity, {**result, **changed}, items)


def test_a_whole_result_is_read_in_the_form_that_records_expect(data: DataSet, tmp_path: Path) -> None:
    wanted = wanted_of(data, tmp_path)
    write(wanted, option_items(wanted))
    result = read_result(wanted)
    assert wanted.path == tmp_path / "run" / "eval" / "step-000003" / "known.json"
    assert result["schema"] == 2
    assert result["scoring"] == {"unit": "item", "combine": "mean", "scale": "fraction"}
    assert result["checkpoint"] == hashlib.sha256(b"weights").hexdigest()
    assert (result["benchmark"], result["step"], result["fraction"]) == ("known", 3, 0.5)
    assert result["mean"]["value"] == pytest.approx(2 / 6)
    assert result["counts"] == COUNTS
    lines = read_item_bytes(wanted.path.parent / result["items"]).splitlines()
    assert json.loads(lines[1])["key"] == "c1"
    assert {path.name for path in wanted.path.parent.iterdir()} == {"known.json", "known.items.jsonl.gz"}


def test_another_checkpoint_question_prompt_or_scoring_is_stale(data: DataSet, tmp_path: Path) -> None:
    wanted = wanted_of(data, tmp_path)
    write(wanted, option_items(wanted))
    for name in ("checkpoint", "questions", "prompt_hash", "definition", "fraction"):
        other = replace(wanted, identity={**wanted.identity, name: "other"})
        with pytest.raises(StaleError, match=f"made from another {name}"):
            read_result(other)
    newer = replace(KNOWN["known"], version=2)
    asked = MultipleChoiceTask(newer, task(wanted).tasks)
    again = make_wanted(tmp_path / "run", wanted.job, asked, wanted.identity["checkpoint"])
    with pytest.raises(StaleError, match="another definition"):
        read_result(again)


def flip(items: Items) -> None:
    items[4]["correct"] = 1 - items[4]["correct"]


def short_loss(items: Items) -> None:
    del items[4]["option_loss"][2], items[4]["option_tokens"][2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda items: items.pop(), "10 items scored, 11 asked"),
        (lambda items: items.append(items[0]), "12 items scored, 11 asked"),
        (lambda items: items.reverse(), "others than those"),
        (lambda items: items[4].update(key="c9"), "others than those"),
        (lambda items: items[4].update(answer=0), "known_colour c4: its answer or verdict is wrong"),
        (flip, "known_colour c4: its answer or verdict is wrong"),
        (short_loss, "known_colour c4: not every option has a loss"),
        (lambda items: items[4]["option_loss"].__setitem__(1, float("nan")), "c4: not every option has a loss"),
        (lambda items: items[4]["option_tokens"].__setitem__(1, 0), "c4: not every option has a loss"),
        (lambda items: items[4]["option_loss"].__setitem__(2, 0.5), "c4: its prediction is not the likeliest"),
    ],
)
def test_wrong_items_are_named(data: DataSet, tmp_path: Path, spoil: Callable[[Items], Any], message: str) -> None:
    wanted = wanted_of(data, tmp_path)
    items = option_items(wanted)
    numbers = summarise(task(wanted).benchmark, items)
    spoil(items)
    write(wanted, items, numbers)
    with pytest.raises(HarnessError, match=message):
        read_result(wanted)


def test_numbers_that_the_items_do_not_give_are_refused(data: DataSet, tmp_path: Path) -> None:
    wanted = wanted_of(data, tmp_path)
    items = option_items(wanted)
    right = summarise(task(wanted).benchmark, items)
    better = {**right["mean"], "value": 0.9}
    write(wanted, items, mean=better)
    with pytest.raises(HarnessError, match=r"mean are .*0\.9"):
        read_result(wanted)
    write(wanted, items, counts={**COUNTS, "errors": 1})
    with pytest.raises(HarnessError, match=r"counts are .*'errors': 1"):
        read_result(wanted)


def test_an_empty_answer_is_named_unless_the_benchmark_counts_it(data: DataSet, tmp_path: Path) -> None:
    wanted = wanted_of(data, tmp_path, "letters")
    items = text_items(wanted)
    items[7].update(text=" ", empty=True, prediction=None, correct=0)
    write(wanted, items)
    with pytest.raises(HarnessError, match="letters_motion m1: the answer is empty"):
        read_result(wanted)
    lenient = replace(KNOWN["letters"], empty="count")
    asked = MultipleChoiceTask(lenient, task(wanted).tasks)
    counting = make_wanted(tmp_path / "run", wanted.job, asked, wanted.identity["checkpoint"])
    write(counting, items)
    assert read_result(counting)["counts"]["empty"] == 1


def test_a_torn_or_exchanged_file_is_refused(data: DataSet, tmp_path: Path) -> None:
    wanted = wanted_of(data, tmp_path)
    items = option_items(wanted)
    with pytest.raises(HarnessError, match=r"known\.json: not written"):
        read_result(wanted)
    write(wanted, items)
    place = wanted.path.with_name("known.items.jsonl.gz")
    packed = place.read_bytes()
    place.write_bytes(packed[:-20])
    with pytest.raises(HarnessError, match="damaged"):
        read_result(wanted)
    whole = gzip.decompress(packed).decode()
    for torn in (whole[:-20], whole.replace("1.0", "1.5")):
        place.write_bytes(gzip.compress(torn.encode()))
        with pytest.raises(HarnessError, match=r"damaged|not the one it was made from"):
            read_result(wanted)
    place.write_bytes(gzip.compress(whole.replace("1.0", "1.5").encode()))
    with pytest.raises(HarnessError, match="not the one it was made from"):
        read_result(wanted)
    place.unlink()
    with pytest.raises(HarnessError, match=r"known\.items\.jsonl\.gz: not written"):
        read_result(wanted)
    wanted.path.write_text("{")
    with pytest.raises(HarnessError, match="damaged"):
        read_result(wanted)


def test_the_digest_is_that_of_the_weights(tmp_path: Path) -> None:
    single = checkpoint(tmp_path / "one")
    assert checkpoint_digest(single) == hashlib.sha256(b"weights").hexdigest()
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name in ("model-00001-of-00002", "model-00002-of-00002"):
        (sharded / f"{name}.safetensors").write_bytes(name.encode())
    before = checkpoint_digest(sharded)
    (sharded / "model-00002-of-00002.safetensors").write_bytes(b"other")
    assert checkpoint_digest(sharded) != before
    with pytest.raises(HarnessError, match="holds no"):
        checkpoint_digest(tmp_path)


# --- the parent, with children that are not lmms-eval ----------------------------------------------------


def python(code: str) -> tuple[str, ...]:
    """A child that gets the job file and the events' descriptor as the real one does."""
    lead = "import json, os, sys, time\njob = json.load(open(sys.argv[1]))\n"
    lead += "events = os.fdopen(int(sys.argv[2]), 'w')\n"
    return (sys.executable, "-c", lead + code)


def evaluate(
    data: DataSet, folder: Path, child: tuple[str, ...], *names: str, processes: int = 1
) -> list[dict[str, Any]]:
    jobs = [Job(3, 0.5, checkpoint(folder / "step-3"))]
    recipe = make_recipe(*(names or ("known",)))
    recipe = recipe.model_copy(update={"devices": Devices(processes=processes)})
    quiet = Progress(quiet=True)
    return evaluate_checkpoints(
        recipe, folder / "run", jobs, data=data, progress=quiet, benchmarks=KNOWN, child=child
    )


def test_a_current_result_starts_no_child(data: DataSet, tmp_path: Path) -> None:
    wanted = wanted_of(data, tmp_path)
    write(wanted, option_items(wanted))
    assert evaluate(data, tmp_path, ("/nonexistent",)) == [read_result(wanted)]


def test_a_missing_clip_is_named_before_anything_starts(data: DataSet, tmp_path: Path) -> None:
    gone = replace(data.questions[0].media[0], path=tmp_path / "gone.mp4")
    question = replace(data.questions[0], media=(gone,))
    with pytest.raises(DataError, match=r"1 media files .* missing: .*gone\.mp4"):
        evaluate(replace(data, questions=(question, *data.questions[1:])), tmp_path, ("/nonexistent",))


def test_an_unknown_benchmark_is_a_mistake_in_the_recipe(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'knwon'; did you mean known"):
        evaluate(data, tmp_path, ("/nonexistent",), "knwon")


def test_a_child_that_succeeds_without_a_result_has_failed(data: DataSet, tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"known\.json: not written by the evaluation"):
        evaluate(data, tmp_path, python('events.write(\'{"event": "end"}\\n\')'))


def test_a_childs_last_words_are_shown(data: DataSet, tmp_path: Path) -> None:
    code = "print('it began'); sys.stdout.flush(); raise RuntimeError('it burst')"
    with pytest.raises(HarnessError, match=r"ended early \(exit 1\)(.|\n)*it began(.|\n)*it burst") as caught:
        evaluate(data, tmp_path, python(code))
    assert caught.value.exit_code == 1
    with pytest.raises(HarnessError, match=r"ended early \(exit -9\)"):
        evaluate(data, tmp_path, python("events.write('{\"ev'); events.flush(); os.kill(os.getpid(), 9)"))
    assert not list((tmp_path / "run" / "eval").glob(".work-*"))


def test_what_is_no_event_is_shown(data: DataSet, tmp_path: Path) -> None:
    """A broken plugin may print into the events, or tell of nothing that there is."""
    for line in (
        "garbage",
        "[1]",
        '{"event": "done"}',
        '{"event": "done", "result": "0", "done": 1}',
        '{"event": 7}',
    ):
        with pytest.raises(HarnessError, match=r"sent something that is no event: ") as caught:
            evaluate(data, tmp_path, python(f"events.write({line!r} + '\\n')"))
        assert line in str(caught.value)
    with pytest.raises(HarnessError, match="a result that was not asked for: 7"):
        evaluate(data, tmp_path, python('events.write(\'{"event": "done", "result": 7, "done": 1}\\n\')'))


def test_a_share_that_dies_is_named_and_the_others_answers_stay(data: DataSet, tmp_path: Path) -> None:
    code = "from pathlib import Path\nfolder = Path(job['results'][0]['path']).parent\n"
    code += "folder.mkdir(parents=True, exist_ok=True)\nplace = folder / 'known.answers-1.jsonl'\n"
    code += "if job['share'] == [1, 2]:\n    (folder / 'x').write_text('kept')\n    (folder / 'x').rename(place)\n"
    code += "    time.sleep(3600)\nwhile not place.exists():\n    time.sleep(0.02)\nos.kill(os.getpid(), 9)"
    with pytest.raises(HarnessError, match=r"process 1 of 2: evaluation failed: .*ended early \(exit -9\)"):
        evaluate(data, tmp_path, python(code), processes=2)
    assert (tmp_path / "run" / "eval" / "step-000003" / "known.answers-1.jsonl").read_text() == "kept"


def test_the_childs_errors_keep_their_kind_and_hint(data: DataSet, tmp_path: Path) -> None:
    failure = report(DataError("clip 7 is damaged", hint="fetch it again"))
    code = f"events.write(json.dumps({{'event': 'error', **{failure!r}}}) + '\\n')"
    with pytest.raises(DataError, match="clip 7 is damaged") as caught:
        evaluate(data, tmp_path, python(code))
    assert caught.value.hint == "fetch it again"
    assert report(ValueError("seven")) == {"message": "ValueError: seven", "hint": None, "exit_code": 1}


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "shapes.items"), "shapes.items: a folder"),
        (PermissionError(errno.EACCES, "Permission denied", "eval"), "eval: permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    ],
)
def test_a_fault_of_the_machine_in_the_child_comes_with_advice(error: OSError, advice: str) -> None:
    told = report(error)
    assert told["exit_code"] == 3
    assert advice in told["message"]


def test_too_little_memory_in_the_child_comes_with_advice() -> None:
    memory = report(torch.OutOfMemoryError("CUDA out of memory"))
    assert (memory["exit_code"], memory["hint"]) == (1, "lower evaluate.batch")


def test_the_cause_behind_a_retry_is_the_one_that_is_told() -> None:
    @tenacity.retry(stop=tenacity.stop_after_attempt(2))
    def fails() -> None:
        raise DataError("clip 7 is damaged")

    with pytest.raises(tenacity.RetryError) as caught:
        fails()
    assert report(caught.value) == {"message": "clip 7 is damaged", "hint": None, "exit_code": 4}


def test_the_child_sees_no_network_caches_ranks_or_keys_of_others(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "LMMS_EVAL_PLUGINS", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SOME_SERVICE_KEY", "secret")
    monkeypatch.setenv("OMP_STACKSIZE", "4M")
    before = dict(os.environ)
    command = python(f"json.dump(dict(os.environ), open({str(tmp_path / 'seen.json')!r}, 'w'))")
    with pytest.raises(HarnessError, match="ended early"):
        evaluate(data, tmp_path, command)
    assert dict(os.environ) == before
    seen = json.loads((tmp_path / "seen.json").read_text())
    ours = {name: value for name, value in seen.items() if name.startswith(("HF_", "LMMS_", "TOKENIZERS"))}
    home = ours.pop("HF_HOME")
    assert home.startswith(str(tmp_path / "run" / "eval"))
    assert ours == {
        "HF_DATASETS_CACHE": f"{home}/datasets",
        "LMMS_EVAL_DATASETS_CACHE": f"{home}/datasets",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "SOME_SERVICE_KEY"} & set(seen)
    assert seen["OMP_STACKSIZE"] == "4M", "how to compute is passed on"


def test_what_a_killed_evaluation_left_is_removed(data: DataSet, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = tmp_path / "run" / "eval"
    for owner in (dead.pid, os.getpid()):
        (folder / f".work-{os.uname().nodename}-{owner}-x").mkdir(parents=True)
    with pytest.raises(HarnessError):
        evaluate(data, tmp_path, python(""))
    assert [path.name for path in folder.glob(".work-*")] == [f".work-{os.uname().nodename}-{os.getpid()}-x"]


def test_the_child_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL tells the child nothing; its stdin closing does."""
    waits = "from harness.evaluation.lmms.child import watch_parent\nwatch_parent()\n"
    waits += f"open({str(tmp_path / 'pid')!r} + '.tmp', 'w').write(str(os.getpid()))\n"
    waits += f"os.rename({str(tmp_path / 'pid')!r} + '.tmp', {str(tmp_path / 'pid')!r})\ntime.sleep(3600)"
    parent_code = (
        "import pathlib, sys; from harness.evaluation.lmms.process import run_child\n"
        f"with run_child({python(waits)!r}, pathlib.Path({str(tmp_path)!r}), {{}}) as events:\n"
        "    list(events)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code], cwd=REPOSITORY)
    until((tmp_path / "pid").exists, parent)
    child = int((tmp_path / "pid").read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not alive(child))


def alive(process: int) -> bool:
    """Running, and not a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_leaving_the_block_ends_the_child(tmp_path: Path) -> None:
    code = (
        "events.write(json.dumps({'event': 'progress', 'result': os.getpid(), 'done': 0}) + '\\n'); events.flush()\n"
    )
    code += "time.sleep(3600)"
    with run_child(python(code), tmp_path, {}) as events:
        child = next(events)["result"]
        assert alive(child)
    assert not alive(child)
