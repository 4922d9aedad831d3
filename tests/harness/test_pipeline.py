"""The stages of a command: every data set is read once, and every plan made once."""

from __future__ import annotations

import fcntl
import json
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import regate
from harness import pipeline, plan
from harness.cli import main as cli
from harness.common.errors import EnvironmentProblem, StaleError
from harness.common.progress import Progress
from harness.config.data import LlavaData
from harness.config.recipe import Recipe
from harness.data import sources
from harness.data.loading.batches import windows
from harness.plan import Planner, make_plan
from harness.records import tracking
from harness.records.ledger import Ledger, read_events
from harness.records.run_folder import lock_run, run_dir_of
from harness.training import loop
from harness.training.launching import launch
from harness.training.run import join
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.common.progress import Advance

GATES = {"base": None, "gated": {"cycle_steps": 2, "dense_steps": 1, "warmup_steps": 0}}


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often annotations are read, and plans resolved, from now on."""
    calls: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(module, name)

        def counting(*arguments: Any) -> Any:
            calls[name.lstrip("_")] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, counting)

    count(sources, "_read")
    count(plan, "_resolve")
    return calls


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_calls(monkeypatch)


def harness(monkeypatch: pytest.MonkeyPatch, verb: str, folder: Path, *names: str) -> None:
    """Run a verb in this process on the recipes that `prepared` wrote."""
    monkeypatch.setattr(sys, "argv", ["harness", verb, *(str(folder / f"{name}.yaml") for name in names)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[str]]:
    """A folder with a pair of recipes on the same data, and what preparing the first in it called."""
    folder = tmp_path_factory.mktemp("pipeline")
    recipe = tiny_recipe(folder).model_dump(mode="json")
    for name, gate in GATES.items():
        content = {**recipe, "name": name, "gate": gate, "track": {"mlflow": False}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = count_calls(monkeypatch)
        harness(monkeypatch, "prepare", folder, "base")
    return folder, calls


@pytest.fixture
def folder(prepared: tuple[Path, Counter[str]]) -> Path:
    return prepared[0]


def test_a_command_that_makes_its_data_reads_them_once(prepared: tuple[Path, Counter[str]]) -> None:
    """The plan is made once without the data, and once more with them."""
    assert prepared[1] == {"read": 1, "resolve": 2}


@pytest.mark.parametrize("verb", ["plan", "prepare", "reference", "train", "run"])
def test_one_recipe(verb: str, folder: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    harness(monkeypatch, verb, folder, "gated")
    assert calls == {"read": 1, "resolve": 1}


@pytest.mark.parametrize("verb", ["plan", "prepare", "run"])
def test_a_pair_on_the_same_data(
    verb: str, folder: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness(monkeypatch, verb, folder, *GATES)
    assert calls == {"read": 1, "resolve": 2}


def test_checking_a_recipe_opens_nothing(folder: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    harness(monkeypatch, "validate", folder, *GATES)
    assert not calls


def test_another_process_of_a_run_reads_and_plans_once(folder: Path, calls: Counter[str]) -> None:
    recipe = tiny_recipe(folder)
    run = join(recipe, Progress(quiet=True))
    assert calls == {"read": 1, "resolve": 1}
    assert run.plan == make_plan(recipe)


def test_seeds_share_what_a_user_brought_and_not_what_is_made(folder: Path, calls: Counter[str]) -> None:
    recipe = tiny_recipe(folder)
    planner = Planner()
    made = planner.open_data(recipe)
    assert planner.plan(recipe.model_copy(update={"seed": 1})).to_make, "another seed makes other clips"
    assert calls.pop("read") == 1
    # The same clips as if a user had brought them.
    data = LlavaData(source="llava", annotations=(f"{made.root.name}/train.json",), media=made.root.name, frames=4)
    brought = recipe.model_copy(update={"data": data})
    first, second = (planner.open_data(brought.model_copy(update={"seed": seed})) for seed in (0, 1))
    assert first is second
    assert len(first.samples) == len(made.samples)
    assert calls["read"] == 1


def test_damaged_media_found_by_a_command_change_its_plan(tmp_path: Path, calls: Counter[str]) -> None:
    recipe = tiny_recipe(tmp_path)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"damaged": "exclude"})})
    root = sources.make_data(recipe.data, recipe.paths, recipe.seed)
    (root / "clips" / "train" / "000003.mp4").write_bytes(b"not a video")
    planner = Planner()
    before = planner.plan(recipe)
    assert planner.open_data(recipe) is planner.open_data(recipe)
    after = planner.plan(recipe)
    assert (before.excluded, after.excluded, after.samples) == (0, 3, before.samples - 3)
    assert calls == {"read": 1, "resolve": 2}
    assert after == make_plan(recipe)


def test_every_moment_of_a_training_belongs_to_a_phase(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still but for what each part of the loop is said to take: loading, computing, writing the
    ledger and the checkpoints, showing progress, ending an epoch, and ending the loader after the last step."""
    now = 1000.0
    at: dict[str, float] = {}

    def takes(seconds: float, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def slower(*arguments: Any, **options: Any) -> Any:
            nonlocal now
            if name == "append":
                at[arguments[1]] = now
            now += seconds
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, slower)

    class SlowProgress(Progress):
        @contextmanager
        def task(self, name: str, total: int, *, start: int = 0) -> Iterator[Advance]:
            nonlocal now

            def advance(done: int, words: str = "") -> None:
                nonlocal now
                now += 8

            yield advance
            now += 16

    def slow_windows(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal now
        try:
            for window in windows(*arguments, **options):
                now += 1
                yield window
        finally:
            now += 64

    recipe = tiny_recipe(folder)
    train = recipe.train.model_copy(update={"steps": 5, "checkpoint_every": 2})
    recipe = recipe.model_copy(update={"name": "clocked", "train": train})
    monkeypatch.setattr(loop, "windows", slow_windows)
    takes(2, loop.Loop, "step")
    takes(4, Ledger, "append")
    takes(32, regate.DenseGate, "end_epoch")
    takes(128, loop.checkpoint, "save")
    run = pipeline.prepare(recipe, SlowProgress(quiet=True))
    job = replace(launch._train_job(run, None), began=now - 7)
    steps_per_epoch = run.plan.steps_per_epoch
    assert (run.plan.steps, steps_per_epoch) == (5, 4)
    loop.train(job, now=lambda: now)

    events = read_events(job.ledger_path)
    first, last = (next(event for event in events if event["event"] == name) for name in ("start", "end"))
    load, *counted = events[events.index(first) + 1 : events.index(last)]
    assert load["seconds"] == {"io": 7}
    assert sum(sum(event["seconds"].values()) for event in counted) == last["clock"] - first["clock"]
    assert counted[-1]["stage"] == "unload"
    assert last["clock"] == at["end"] - 4, "only the writing of the last stage comes after the clock's last reading"
    phases: Counter[str] = Counter()
    for event in counted:
        phases.update(event["seconds"])
    appended = 4 * (len(counted) + 1)  # the counted events but the last, and `start` and `load` before them
    assert phases["train"] == 5 * 2
    assert sum(phases.values()) == 5 * (1 + 2 + 8) + 32 + 2 * 128 + 16 + 64 + appended


@pytest.mark.slow
def test_final_mirrors_go_on_beside_the_next_run_and_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run's mirror ends only when the second run is prepared, so that a command that waited for it would
    never come to its end."""
    second = threading.Event()
    mirrored: list[str] = []
    real_prepare = pipeline.prepare

    def mirror(recipe: Recipe, run_dir: Path, *, final: bool, child: tracking.MirrorChild) -> tracking.MirrorReport:
        assert not final or second.wait(120)
        mirrored.append(recipe.name)
        return tracking.MirrorReport("done", "")

    def prepare(recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        if recipe.name == "second":
            second.set()
        return real_prepare(recipe, *arguments, **options)

    monkeypatch.setattr(tracking, "mirror", mirror)
    monkeypatch.setattr(pipeline, "prepare", prepare)
    recipes = [tiny_recipe(tmp_path).model_copy(update={"name": name}) for name in ("first", "second")]
    pipeline.run(recipes, Progress(quiet=True))
    assert sorted(mirrored) == ["first", "second"]


def test_kept_models_are_evaluated_beside_the_training(
    prepared: tuple[Path, Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process holds the run's lock: what it has kept is scored, under a lock and in a ledger of its own."""
    content = {**tiny_recipe(prepared[0]).model_dump(mode="json"), "name": "beside", "track": {"mlflow": False}}
    content["evaluate"] |= {"at": [0.5, 1.0]}
    recipe = Recipe.model_validate_json(json.dumps(content))
    progress, run_dir = Progress(quiet=True), run_dir_of(recipe)
    asked: list[list[int]] = []

    def score(_: Recipe, run_dir: Path, jobs: list[Any], **options: Any) -> list[dict[str, Any]]:
        with (run_dir / ".evaluation.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with options["timed"]:
            asked.append([job.step for job in jobs])
        return []

    monkeypatch.setattr(pipeline.evaluation, "evaluate_checkpoints", score)
    with lock_run(run_dir):
        with pytest.raises(EnvironmentProblem, match="another process is working on"):
            pipeline.run_stage(recipe, "evaluate", progress, Planner())
        with Ledger(run_dir / "ledger.jsonl") as ledger:
            ledger.append("start", step=0, steps=2)
        with pytest.raises(StaleError, match=r"step-000001, .*step-000002"):
            pipeline.run_stage(recipe, "evaluate", progress, Planner())
        kept = run_dir / "checkpoints" / "step-000001"
        kept.mkdir(parents=True)
        (kept / "model.safetensors").touch()
        before = (run_dir / "ledger.jsonl").read_bytes()
        pipeline.run_stage(recipe, "evaluate", progress, Planner())
        assert (run_dir / "ledger.jsonl").read_bytes() == before
    assert asked == [[1]]
    start, scored = read_events(run_dir / "ledger.jsonl")
    assert (start["event"], scored["stage"]) == ("start", "eval")
    with pytest.raises(EnvironmentProblem, match="another process"), lock_run(run_dir):
        pipeline.run_stage(recipe, "train", progress, Planner())
