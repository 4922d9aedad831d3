"""The loop's steps on packed rows and on padded ones, for a baseline and for a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import regate
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training.loop import Loop, TrainJob
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.slow

STEPS = 4
SPARSE = regate.GateConfig(selection="random", warmup_steps=0, cycle_steps=4, dense_steps=1)


class Said(Progress):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("loop"))
    recipe = user_supplied(folder)
    adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed)).prepare(Progress(quiet=True))
    return folder


def run(folder: Path, gate: regate.GateConfig | None, progress: Progress) -> list[dict[str, Any]]:
    """Reports of some steps on one window: a micro-batch of a video and of text alone."""
    recipe = user_supplied(folder, "train.precision=float32", "train.optimizer.lr=1e-3")
    recipe = recipe.model_copy(update={"gate": gate})
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    text = next(sample for sample in data.samples if not sample.media)
    video = next(sample for sample in data.samples if sample.media and sample.media[0].kind == "video")
    window = [adapter.processor().collate([load(sample, data, adapter.processor()) for sample in (video, text)])]

    def make_gate() -> regate.Gate | regate.DenseGate:
        return regate.DenseGate() if gate is None else regate.Gate(gate, None)

    loop = Loop(TrainJob(recipe, 10, (), adapter, data, make_gate, folder / "run", progress))
    return [loop.send(loop.step(window, step), window, stop=False).read()[0] for step in range(STEPS)]


def padded(loop: Loop, student: nn.Module) -> regate.Elision:
    return regate.attach(student)


@pytest.mark.parametrize("gate", [None, SPARSE], ids=["baseline", "gated"])
def test_packed_rows_train_as_padded_ones(
    world: Path, gate: regate.GateConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = run(world, gate, Progress(quiet=True))
    monkeypatch.setattr(Loop, "_attach", padded)
    reference = run(world, gate, Progress(quiet=True))
    assert [row["loss"] for row in packed] == pytest.approx([row["loss"] for row in reference], abs=1e-5)
    assert [row["grad_norm"] for row in packed] == pytest.approx([row["grad_norm"] for row in reference], rel=1e-4)
    assert [row["counts"] for row in packed] == [row["counts"] for row in reference]
    for report, other in zip(packed, reference, strict=True):
        assert (report["rows"], report["kernel"]) == ("packed", "sdpa")
        assert (other["rows"], other["kernel"]) == ("padded", None)
        assert report["executed"] == report["counts"]["active"] < other["executed"]
    sparse = [row["counts"]["active"] < row["counts"]["valid"] for row in packed]
    assert sparse == [gate is not None and step > 0 for step in range(STEPS)]


def test_a_model_that_cannot_be_packed_runs_on_padded_rows_and_says_so(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(decoder: nn.Module) -> None:
        raise regate.UnsupportedModelError("Qwen2Model is not causal")

    monkeypatch.setattr("regate.elision.check_packable", refuse)
    progress = Said()
    reports = run(world, SPARSE, progress)
    assert [row["rows"] for row in reports] == ["padded"] * STEPS
    assert progress.lines == ["rows are padded: Qwen2Model is not causal"]
