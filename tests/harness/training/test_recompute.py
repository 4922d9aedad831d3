"""`train.recompute`: how many layers are computed a second time changes neither losses nor gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.common.errors import RecipeError
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import MODELS, adapter_for, device
from harness.plan import Planner
from harness.plan.memory import USABLE, gpu_figures, recomputed_layers
from harness.plan.work import lengths_of
from harness.training.loop import Loop, TrainJob
from harness.training.recompute import recompute_first
from regate.wrapping import decoder_of
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("recompute"))


def train_two_steps(folder: Path, *changes: str) -> tuple[list[float], int]:
    """Losses, gradient norms and operations of a dense and a sparse step, and the layers that the loop recomputes."""
    recipe = user_supplied(folder, "train.precision=float32", "devices.sharding=none", *changes)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    video = next(sample for sample in data.samples if sample.media and sample.media[0].kind == "video")
    window = [adapter.processor().collate([load(video, data, adapter.processor())])]
    gate = regate.GateConfig(selection="random", warmup_steps=0, cycle_steps=4, dense_steps=1)
    job = TrainJob(recipe, 10, (), adapter, data, lambda: regate.Gate(gate, None), folder, Progress(quiet=True))
    loop = Loop(job)
    reports = [loop.send(loop.step(window, step), window, stop=False).read()[0] for step in (3, 5)]
    return [report[name] for report in reports for name in ("loss", "grad_norm", "flops")], loop.recomputed


def test_losses_and_gradients_are_those_of_full_recomputation(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, recomputed = train_two_steps(world, "train.gradient_checkpointing=true")
    assert recomputed == LAYERS
    # The last layer is limited to what is read, and never recomputed.
    for count in (0, 1, 2):
        some, recomputed = train_two_steps(
            world, "train.gradient_checkpointing=true", f"train.recompute={count}"
        )
        assert recomputed == count
        assert (some[0::3], some[1::3]) == (every[0::3], every[1::3])
        assert (some[2] < every[2]) == (count < LAYERS - 1), "the ledger's operations say what is done"
    automatic = train_two_steps(world, "train.gradient_checkpointing=true", "train.recompute=auto")
    assert automatic[0] == every
    assert automatic[1] == LAYERS, "all of them where there is no GPU"
    monkeypatch.setattr(device, "memory_bytes", lambda _: 80 * 10**9)
    roomy = train_two_steps(world, "train.gradient_checkpointing=true", "train.recompute=auto", "hardware=null")
    assert roomy[1] < LAYERS


def test_only_the_first_layers_are_computed_again(world: Path) -> None:
    recipe = user_supplied(world, "train.precision=float32")
    student: Any = adapter_for(recipe, None).student()
    student.gradient_checkpointing_enable({"use_reentrant": False})
    decoder: Any = decoder_of(student)
    assert recompute_first(student, 1) == 1
    assert [layer.gradient_checkpointing for layer in decoder.layers] == [True, False, False]
    runs = [0] * LAYERS
    for place, layer in enumerate(decoder.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, place=place: runs.__setitem__(place, runs[place] + 1))
    student.train()
    embeds = torch.randn(1, 5, decoder.config.hidden_size, requires_grad=True)
    decoder(inputs_embeds=embeds, use_cache=False).last_hidden_state.sum().backward()
    assert runs == [2, 1, 1]
    student.gradient_checkpointing_disable()
    with pytest.raises(RecipeError, match=r"train\.recompute: 1: Qwen2Model recomputes all of its 3 layers or none"):
        recompute_first(student, 1)


def test_auto_recomputes_as_few_layers_as_fit() -> None:
    recipe = load_recipe("videollama2_baseline", ["train.recompute=auto"])
    footprint, planner = MODELS["videollama2"].footprint(recipe), Planner()
    lengths = lengths_of(recipe, planner.plan(recipe), footprint, None)
    counts = [recomputed_layers(recipe, footprint, lengths, 4, memory) for memory in (None, 1.0, 60.0, 80.0, 141.0)]
    assert counts[:2] == [28, 28]
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[3] < 28
    assert counts[4] < counts[3]
    by_name = {figure.name: figure for figure in gpu_figures(recipe, footprint, lengths, 4, 80.0)}
    assert by_name["together"].high <= USABLE * 80
    assert f"inputs of the first {counts[3]} layers" in by_name["decoder's activations"].source
    shown = {figure.name: figure for figure in planner.costs(recipe).figures["memory of a GPU in training"]}
    assert shown["together"] == by_name["together"], "the recipe's `hardware` names GPUs of 80 GB"


def test_the_key_leaves_run_ids_as_they_are_at_its_default() -> None:
    recipe = load_recipe("videollama2_baseline")
    assert load_recipe("videollama2_baseline", ["train.recompute=all"]).run_id == recipe.run_id
    assert "recompute" not in recipe.identity()["train"]
    assert load_recipe("videollama2_baseline", ["train.recompute=14"]).run_id != recipe.run_id


@pytest.mark.parametrize("value", ["-1", "some", "1.5", "true"])
def test_another_value_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"train\.recompute"):
        load_recipe("videollama2_baseline", [f"train.recompute={value}"])


def test_without_checkpointing_there_is_nothing_to_choose() -> None:
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing does, which is off"):
        load_recipe("tiny_baseline", ["train.recompute=2"])
