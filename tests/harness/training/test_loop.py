"""The loop's steps on packed rows and on padded ones, for a baseline and for a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import regate
from harness.common.errors import RecipeError
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.records.ledger import read_steps
from harness.training.loop import Loop, TrainJob, train
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.slow

LAYERS = 3  # of the decoder of this world
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


def run(
    folder: Path, gate: regate.GateConfig | None, progress: Progress, *changes: str
) -> list[dict[str, Any]]:
    """Reports of some steps on one window: a micro-batch of a video and of text alone."""
    recipe = user_supplied(
        folder, "train.precision=float32", "train.optimizer.lr=1e-3", "devices.sharding=none", *changes
    )
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


@pytest.mark.parametrize("gate", [None, SPARSE], ids=["baseline", "gated"])
def test_packed_rows_train_as_padded_ones(world: Path, gate: regate.GateConfig | None) -> None:
    packed = run(world, gate, Progress(quiet=True))
    reference = run(world, gate, Progress(quiet=True), "train.rows=padded")
    assert [row["loss"] for row in packed] == pytest.approx([row["loss"] for row in reference], abs=1e-5)
    assert [row["grad_norm"] for row in packed] == pytest.approx([row["grad_norm"] for row in reference], rel=1e-4)
    assert [row["counts"] for row in packed] == [row["counts"] for row in reference]
    for report, other in zip(packed, reference, strict=True):
        assert (report["rows"], report["kernel"]) == ("packed", "sdpa")
        assert (other["rows"], other["kernel"]) == ("padded", None)
        assert report["executed"] == report["counts"]["active"] < other["executed"]
        assert report["padding"] == 0
        assert other["padding"] == other["executed"] - other["counts"]["active"]
    sparse = [row["counts"]["active"] < row["counts"]["valid"] for row in packed]
    assert sparse == [gate is not None and step > 0 for step in range(STEPS)]


def test_a_named_kernel_computes_what_the_chosen_one_does(world: Path) -> None:
    chosen = run(world, SPARSE, Progress(quiet=True))
    eager = run(world, SPARSE, progress := Said(), "model.attention=eager")
    named = run(world, SPARSE, Progress(quiet=True), "model.attention=sdpa", "train.rows=packed")
    assert named == [{**row, "peak_bytes": other["peak_bytes"]} for row, other in zip(chosen, named, strict=True)]
    assert [row["loss"] for row in eager] == pytest.approx([row["loss"] for row in chosen], abs=1e-5)
    assert [row["rows"] for row in eager] == ["padded"] * STEPS
    assert [line[:55] for line in progress.lines] == ['rows are padded: attention "eager" does not compute pac']


def test_rows_that_must_be_packed_and_cannot_are_refused(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(decoder: nn.Module) -> None:
        raise regate.UnsupportedModelError("Qwen2Model is not causal")

    monkeypatch.setattr("regate.elision.check_packable", refuse)
    with pytest.raises(RecipeError, match=r"train\.rows packed: Qwen2Model is not causal"):
        run(world, SPARSE, Progress(quiet=True), "train.rows=packed")


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


def test_layers_that_compute_less_stand_in_the_ledger(world: Path) -> None:
    """The last layer is `deep` at its last layer: the same run with fewer operations the earlier it begins."""
    loss_only = run(world, replace(SPARSE, execution="loss_only"), Progress(quiet=True))
    last = run(world, replace(SPARSE, deep=LAYERS - 1), Progress(quiet=True))
    # In float32 and after updates; that both are the same function is held in float64 (tests/regate/test_depth.py).
    assert [row["loss"] for row in last] == pytest.approx([row["loss"] for row in loss_only], abs=1e-5)
    leaves = run(world, replace(SPARSE, from_layer=1), Progress(quiet=True))
    paper = run(world, SPARSE, Progress(quiet=True))
    assert leaves[0]["flops"] == paper[0]["flops"] == last[0]["flops"]  # a dense step
    assert paper[1]["flops"] < leaves[1]["flops"] < loss_only[1]["flops"]
    assert last[1]["flops"] < loss_only[1]["flops"]  # queries that nobody reads
    assert paper[1]["executed"] < leaves[1]["executed"] < loss_only[1]["executed"]


def test_lower_layers_that_keep_more_stand_in_the_ledger(world: Path) -> None:
    paper = run(world, SPARSE, Progress(quiet=True))
    nested = run(world, replace(SPARSE, keep_below=(regate.KeepBelow(1, 0.75),)), Progress(quiet=True))
    leaves = run(world, replace(SPARSE, from_layer=1), Progress(quiet=True))
    for key in ("flops", "executed"):
        assert paper[1][key] < nested[1][key] < leaves[1][key]
        assert paper[0][key] == nested[0][key]
    assert nested[1]["counts"] == paper[1]["counts"]


def test_a_ramp_by_loss_goes_by_the_losses_of_the_ledger(world: Path, tmp_path: Path) -> None:
    recipe = user_supplied(world, "train.precision=float32")
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    ramp = regate.RampConfig(to=0.25, loss=(12.0, 2.0))
    config = replace(SPARSE, cycle_steps=2, keep_ratio=0.75, ramp=ramp)
    adapter, progress = adapter_for(recipe, data), Progress(quiet=True)
    job = TrainJob(recipe, 6, (), adapter, data, lambda: regate.Gate(config, None), tmp_path, progress)
    train(job)
    rows = sorted(read_steps(job.ledger_path), key=lambda row: row["step"])
    assert [row["keep_ratio"] for row in rows[:3]] == [1.0, 0.75, 1.0]
    for dense, sparse in ((0, 3), (2, 5)):
        part = (12.0 - rows[dense]["loss"]) / 10.0
        assert 0 < part < 1
        assert rows[sparse]["keep_ratio"] == pytest.approx(0.75 - 0.5 * part)


def test_settings_that_a_model_cannot_carry_out_end_before_the_first_step(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(regate.ConfigError, match=f"the decoder has {LAYERS} layers"):
        run(world, replace(SPARSE, deep=LAYERS + 1), Progress(quiet=True))

    def refuse(decoder: nn.Module) -> None:
        raise regate.UnsupportedModelError("Qwen2Model is not causal")

    monkeypatch.setattr("regate.elision.check_packable", refuse)
    with pytest.raises(regate.ConfigError, match="needs packed rows"):
        run(world, replace(SPARSE, deep=1), Progress(quiet=True))


def test_dense_steps_that_distil_stand_in_the_ledger(world: Path) -> None:
    """A second forward pass in dense steps: its divergence, positions and operations; sparse steps are as without."""
    pictures = replace(SPARSE, keep_ratio=1.0, visual=regate.VisualConfig(0.25, "diverse"))
    plain = run(world, pictures, Progress(quiet=True))
    distilled = run(world, replace(pictures, distil=1.0), Progress(quiet=True))
    assert ["distil" in row for row in plain] == [False] * STEPS
    assert ["distil" in row for row in distilled] == [True, False, False, False]
    assert distilled[0]["distil"] > 0
    assert distilled[0]["loss"] == plain[0]["loss"]  # of the targets alone
    assert distilled[0]["counts"] == plain[0]["counts"]
    assert distilled[0]["executed"] == plain[0]["executed"] + plain[1]["executed"]
    # The second pass has no backward pass, and reads the tower as the first one does.
    assert plain[1]["flops"] / 4 < distilled[0]["flops"] - plain[0]["flops"] < plain[1]["flops"]
    assert distilled[1]["flops"] == plain[1]["flops"]
