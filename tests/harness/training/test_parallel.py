"""Weights in parts on two processes: the model of one process, also where one of them has text alone."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.common.errors import RecipeError
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training.loop import Loop, TrainJob
from harness.training.processes import check_split
from tests import forked
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sample import Batch

STEPS = 3


def recipe_of(folder: Path) -> Recipe:
    """A global batch of two micro-batches: two passes of one process, or one of each of two."""
    changes = ("train.loss_norm=global_tokens", "train.precision=float32", "train.optimizer.lr=1e-3")
    return user_supplied(folder, *changes, "devices.sharding=full")


def loop_of(folder: Path) -> tuple[Loop, list[Batch]]:
    """A dense training, and the two micro-batches of its step: a video's, and one of text alone."""
    recipe = recipe_of(folder)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    text = next(sample for sample in data.samples if not sample.media)
    video = next(sample for sample in data.samples if sample.media and sample.media[0].kind == "video")
    batches = [adapter.processor().collate([load(sample, data, adapter.processor())]) for sample in (video, text)]
    job = TrainJob(recipe, 10, (), adapter, data, regate.DenseGate, folder / "run", Progress(quiet=True))
    return Loop(job), batches


def reports(loop: Loop, window: list[Batch], steps: range) -> list[tuple[float, float]]:
    found = []
    for step in steps:
        report, stop = loop.report(loop.step(window, step), window, stop=loop.accelerator.process_index == 1)
        assert stop == (loop.accelerator.num_processes > 1), "a request to stop one process is one to all"
        found.append((report["loss"], report["grad_norm"]))
    return found


def worker(rank: int, world: int, folder: Path) -> None:
    """Three steps, a checkpoint, two more; then the last two again from the checkpoint."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    from harness.training import checkpoint, processes

    processes.init_process_group(rendezvous=folder / "rendezvous", rank=rank, world=2)
    loop, batches = loop_of(folder)
    window = [batches[rank]]
    held = sum(value.to_local().numel() for value in loop.model.parameters())
    done = reports(loop, window, range(STEPS))
    loop.parallel.export(lambda model: loop.job.adapter.save(model, folder / "exported"))
    path = checkpoint.save(loop.parallel, folder / "kept", step=STEPS, gate_state={"difficulty": None}, identity="a")
    done += reports(loop, window, range(STEPS, STEPS + 2))
    other, _ = loop_of(folder)
    step, _ = checkpoint.load(other.parallel, path, identity="a")
    again = reports(other, window, range(step, STEPS + 2))
    torch.save({"done": done, "again": again, "held": held}, folder / f"reports-{rank}.pt")
    processes.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux":
        pytest.skip("gloo over a file is for Linux here")
    folder = write_world(tmp_path_factory.mktemp("sharded"))
    recipe = recipe_of(folder)
    adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed)).prepare(Progress(quiet=True))
    assert forked.run(worker, 2, folder) == [0, 0]
    return folder


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(world: Path) -> None:
    loop, batches = loop_of(world)
    wanted = reports(loop, batches, range(STEPS))
    one, other = (torch.load(world / f"reports-{rank}.pt") for rank in (0, 1))
    assert one["done"] == other["done"]
    torch.testing.assert_close(torch.tensor(one["done"][:STEPS]), torch.tensor(wanted), rtol=1e-5, atol=0)
    whole: list[Any] = []
    loop.parallel.export(whole.append)
    total = sum(value.numel() for value in whole[0].parameters())
    assert one["held"] + other["held"] == total
    assert max(one["held"], other["held"]) < 0.6 * total
    # What the main process gathered is an ordinary checkpoint of all weights, the frozen tower's too.
    saved = loop.job.adapter.load(world / "exported").state_dict()
    assert saved.keys() == whole[0].state_dict().keys()
    for name, value in whole[0].state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_resumed_sharded_training_is_the_same_training(world: Path) -> None:
    found = torch.load(world / "reports-0.pt")
    assert found["again"] == found["done"][STEPS:]


def test_loss_scaling_and_sharding_are_not_combined(tmp_path: Path) -> None:
    recipe = user_supplied(tmp_path, "devices.sharding=full", "train.precision=float16")
    check_split(recipe, 1)
    with pytest.raises(RecipeError, match="float16"):
        check_split(recipe, 2)
    with pytest.raises(RecipeError, match="2 x 3"):
        check_split(user_supplied(tmp_path), 3)
