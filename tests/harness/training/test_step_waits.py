"""A whole step of the loop, forward and backward, optimizer and the ledger's report, waits for an accelerator once,
when its report is read; counted on the CPU. What is read late is written as what is read at once."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

import regate
from harness.common.errors import HarnessError
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training.loop import Loop, TrainJob, train
from tests.harness.worlds import videochat2, videollama2
from tests.regate.host_waits import HostWaits, counting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sample import Batch

SPARSE = regate.GateConfig(selection="random", warmup_steps=0, cycle_steps=4, dense_steps=1)
BY_LOSS = regate.GateConfig(selection="loss", execution="loss_only", warmup_steps=0, cycle_steps=4, dense_steps=1)
FAMILIES = {"videollama2": videollama2, "videochat2": videochat2}
CHANGES = {"videollama2": ("train.precision=float32", "data.frames=4"), "videochat2": ("data.frames=2",)}
SMALL = {"checkpoint_every": 2, "workers": 0, "global_batch": 2, "micro_batch": 1}
QFORMER = "transformers.models.instructblipvideo.modeling_instructblipvideo"


@pytest.fixture(scope="module", params=FAMILIES)
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    family = FAMILIES[request.param]
    folder = family.write_world(tmp_path_factory.mktemp(request.param))
    made: Recipe = family.user_supplied(folder, *CHANGES[request.param])
    adapter_for(made, open_data(made.data, made.paths, made.seed)).prepare(Progress(quiet=True))
    return made


class Event:
    """Stands for a CUDA event: waiting for it is counted."""

    def __init__(self, waits: HostWaits, name: str) -> None:
        self.waits, self.name = waits, name

    def synchronize(self) -> None:
        self.waits.names.append(self.name)


def device_rules(waits: HostWaits, patch: pytest.MonkeyPatch) -> None:
    """The harness's copies as they are with an accelerator: those to it are marked, and wait where they are not from
    pinned memory; those from it come with an event."""

    def pinned(value: Tensor, device: Any) -> Tensor:
        return value if waits.holds(value) else marked(value)

    def marked(value: Tensor) -> Tensor:
        copy = value.clone()
        waits.mark(copy)
        return copy

    def pageable(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(value: Any, *args: Any, **kwargs: Any) -> Tensor:
            out = function(value, *args, **kwargs)
            moved = any(isinstance(given, torch.device) for given in (*args, *kwargs.values()))
            # The method's arrays are on the host until `on_device`, which its own test of waits sees to.
            host = sys._getframe(1).f_globals["__name__"].startswith("regate")
            if not moved or host or waits.holds(value):
                return out
            waits.names.append(name)
            return marked(out)

        return made

    def late(name: str) -> Callable[[Tensor], tuple[Tensor, Event]]:
        return lambda values: (waits.unmark(values.detach().clone()), Event(waits, name))

    # From pinned memory where there is a GPU.
    patch.setattr("harness.data.loading.pixels.to_device", pinned)
    patch.setattr("harness.models.forward.to_device", pinned)
    patch.setattr("harness.training.loop.on_device", pinned)
    patch.setattr("harness.training.loss_norm.on_device", pinned)
    patch.setattr("harness.training.step_report.on_device", pinned)
    patch.setattr("harness.training.step_report._to_host", late("report"))
    patch.setattr("regate.gate._to_cpu", late("losses"))
    patch.setattr(Tensor, "to", pageable("to", Tensor.to))
    patch.setattr(torch, "tensor", pageable("tensor", torch.tensor))


def set_apart(waits: HostWaits, patch: pytest.MonkeyPatch) -> list[str]:
    """The waits in which transformers makes the mask of VideoChat2's QFormer, which is its class: not counted among
    the others."""
    apart: list[str] = []
    make_mask = importlib.import_module(QFORMER).create_bidirectional_mask

    def made(*args: Any, **kwargs: Any) -> Any:
        before = len(waits.names)
        mask = make_mask(*args, **kwargs)
        apart.extend(waits.names[before:])
        del waits.names[before:]
        return mask

    patch.setattr(f"{QFORMER}.create_bidirectional_mask", made)
    return apart


def window_of(recipe: Recipe, loop: Loop) -> list[Batch]:
    """A micro-batch of a video and a picture, and one of text alone where the data have it."""
    data, processor = loop.job.data, loop.job.adapter.processor()
    kinds = {sample.media[0].kind if sample.media else "text": sample for sample in data.samples}
    parts = [[kinds["video"], kinds["image"]], [kinds.get("text", kinds["video"])]]
    return [processor.collate([load(sample, data, processor) for sample in part]) for part in parts]


def loop_of(recipe: Recipe, gate: regate.GateConfig | None, folder: Path) -> Loop:
    devices = recipe.devices.model_copy(update={"sharding": "none"})
    recipe = recipe.model_copy(update={"gate": gate, "devices": devices})
    data = open_data(recipe.data, recipe.paths, recipe.seed)

    def make_gate() -> regate.Gate | regate.DenseGate:
        return regate.DenseGate() if gate is None else regate.Gate(gate, None)

    progress = Progress(quiet=True)
    return Loop(TrainJob(recipe, 10, (), adapter_for(recipe, data), data, make_gate, folder, progress))


@pytest.mark.parametrize(
    ("gate", "norm"),
    [(None, "global_tokens"), (SPARSE, "square"), (BY_LOSS, "micro_batch")],
    ids=["baseline", "gated", "by loss"],
)
def test_a_step_waits_once_when_its_report_is_read(
    recipe: Recipe, gate: regate.GateConfig | None, norm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    normed = recipe.model_copy(update={"train": recipe.train.model_copy(update={"loss_norm": norm})})
    loop = loop_of(normed, gate, tmp_path)
    window = window_of(recipe, loop)
    loop.send(loop.step(window, 1), window, stop=False).read()
    with counting(monkeypatch) as waits:
        device_rules(waits, monkeypatch)
        masks = set_apart(waits, monkeypatch)
        waits.mark(*loop.model.parameters(), *loop.model.buffers())
        waits.mark(*(value for state in loop.parallel.optimizer.state.values() for value in state.values()))
        result = loop.step(window, 2)
        assert waits.holds(result.loss_sum)
        assert waits.holds(result.grad_norm)
        sent = loop.send(result, window, stop=False)
        # The gate reads the losses of the micro-batch before the one that is queued.
        assert waits.names == ["losses"] * (len(window) - 1 if gate is not None else 0)
        waits.names.clear()
        sent.read()
    assert waits.names == ["report"]
    assert bool(masks) == (recipe.model.adapter == "videochat2"), "transformers' own, and of this family alone"


def ledger_of(path: Path) -> list[dict[str, Any]]:
    """Its lines without their times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: line[name] for name in line if name not in TIMES} for line in lines]


TIMES = {"time", "seconds", "cpu", "clock", "crc32", "peak_bytes"}


def job_of(recipe: Recipe, folder: Path, steps: int) -> TrainJob:
    training = recipe.train.model_copy(update=SMALL)
    recipe = recipe.model_copy(update={"gate": None, "train": training})
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    return TrainJob(recipe, steps, (3,), adapter, data, regate.DenseGate, folder, Progress(quiet=True))


def test_steps_that_are_read_late_are_written_as_others(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job_of(recipe, tmp_path / "at-once", 4))
    monkeypatch.setattr(Loop, "reads_late", True)
    train(job_of(recipe, tmp_path / "late", 4))
    at_once, late = (ledger_of(tmp_path / name / "ledger.jsonl") for name in ("at-once", "late"))
    assert [line for line in late if line["event"] == "step"] == [line for line in at_once if line["event"] == "step"]
    assert late == at_once, "and a checkpoint's line comes after those of its steps"
    kept = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("at-once", "late")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("broken", [2, 3], ids=["before a checkpoint", "between two"])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_last_checkpoint(
    recipe: Recipe, broken: int, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "reads_late", late)
    step = Loop.step

    def step_with_a_broken_loss(loop: Loop, window: list[Batch], number: int) -> Any:
        if number == broken - 1:
            with torch.no_grad():
                next(iter(loop.model.parameters())).fill_(float("nan"))
        return step(loop, window, number)

    # Checkpoints are due after 2 and 4 steps: the broken step's own one must not be written.
    monkeypatch.setattr(Loop, "step", step_with_a_broken_loss)
    with pytest.raises(HarnessError, match="training diverged: loss nan"):
        train(job_of(recipe, tmp_path, 6))
    folder = tmp_path / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    assert names == (["resume-000002"] if broken == 3 else [])
    steps = [line["step"] for line in ledger_of(tmp_path / "ledger.jsonl") if line["event"] == "step"]
    assert steps == list(range(broken - 1)), "no line of the step that broke"


@pytest.mark.parametrize(("late", "expected"), [(False, [3, 6]), (True, [3, 7])], ids=["at once", "late"])
def test_a_checkpoint_is_written_when_its_time_has_come(
    recipe: Recipe, late: bool, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every 30 minutes, steps of 11 minutes. Where a step's report is read after the next, the answer comes so; but a
    model is kept after step 3, for which all is read."""
    monkeypatch.setattr(Loop, "reads_late", late)
    step, minutes = Loop.step, [0.0]

    def slow_step(loop: Loop, window: list[Batch], number: int) -> Any:
        minutes[0] += 11
        return step(loop, window, number)

    monkeypatch.setattr(Loop, "step", slow_step)
    job = job_of(recipe, tmp_path, 8)
    training = job.recipe.train.model_copy(update={"checkpoint_every": 100})
    job = replace(job, recipe=job.recipe.model_copy(update={"train": training}))
    train(job, now=lambda: 60.0 * minutes[0])
    saved = [line["step"] for line in ledger_of(tmp_path / "ledger.jsonl") if line.get("stage") == "checkpoint"]
    assert saved == [*expected, 8], "the last line is that of the end, at which nothing is to be resumed"
    folders = sorted(path.name for path in (tmp_path / "checkpoints").glob("resume-*"))
    assert folders == [f"resume-{number:06d}" for number in expected]
