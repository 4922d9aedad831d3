"""Weights in parts on two processes: the model of one process, also where one of them has text alone."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.common.errors import RecipeError
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training import checkpoint, processes
from harness.training.agent import free_port
from harness.training.loop import Loop, TrainJob
from harness.training.processes import check_split
from tests import forked
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sample import Batch

STEPS = 3


@dataclass(frozen=True)
class World:
    """A training in one process, its reports, and what two processes of the same training saved."""

    folder: Path
    loop: Loop
    alone: list[tuple[float, float]]
    parts: list[dict[str, Any]]


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
        report, stop = loop.send(loop.step(window, step), window, stop=loop.accelerator.process_index == 1).read()
        assert stop == (loop.accelerator.num_processes > 1), "a request to stop one process is one to all"
        found.append((report["loss"], report["grad_norm"]))
    return found


def resumed(folder: Path, path: Path, window: list[int]) -> list[tuple[float, float]]:
    """The last two steps from a checkpoint, over some of the micro-batches."""
    loop, batches = loop_of(folder)
    step, _ = checkpoint.load(loop.parallel, path, identity="a")
    return reports(loop, [batches[number] for number in window], range(step, STEPS + 2))


def keep(loop: Loop, folder: Path) -> Path:
    return checkpoint.save(loop.parallel, folder, step=STEPS, gate_state={"difficulty": None}, identity="a")


def worker(rank: int, world: int, folder: Path, port: int) -> None:
    """Three steps, a checkpoint, two more; the last two again from this checkpoint and from that of one process."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    processes.init_process_group(timeout_minutes=30)
    loop, batches = loop_of(folder)
    window = [batches[rank]]
    held = sum(value.to_local().numel() for value in loop.model.parameters())
    done = reports(loop, window, range(STEPS))
    loop.parallel.export(lambda model: loop.job.adapter.save(model, folder / "exported"))
    path = keep(loop, folder / "kept")
    done += reports(loop, window, range(STEPS, STEPS + 2))
    again = resumed(folder, path, [rank])
    of_one = resumed(folder, folder / "alone" / path.name, [rank])
    torch.save({"done": done, "again": again, "of_one": of_one, "held": held}, folder / f"reports-{rank}.pt")
    processes.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    if sys.platform != "linux":
        pytest.skip("gloo over a file is for Linux here")
    folder = write_world(tmp_path_factory.mktemp("sharded"))
    recipe = recipe_of(folder)
    adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed)).prepare(Progress(quiet=True))
    loop, batches = loop_of(folder)
    alone = reports(loop, batches, range(STEPS))
    keep(loop, folder / "alone")
    assert forked.run(worker, 2, folder, free_port()) == [0, 0]
    return World(folder, loop, alone, [torch.load(folder / f"reports-{rank}.pt") for rank in (0, 1)])


@pytest.mark.slow
def test_two_processes_train_the_model_of_one(world: World) -> None:
    one, other = world.parts
    assert one["done"] == other["done"]
    torch.testing.assert_close(torch.tensor(one["done"][:STEPS]), torch.tensor(world.alone), rtol=1e-5, atol=0)
    whole: list[Any] = []
    world.loop.parallel.export(whole.append)
    total = sum(value.numel() for value in whole[0].parameters())
    assert one["held"] + other["held"] == total
    assert max(one["held"], other["held"]) < 0.6 * total
    # What the main process gathered is an ordinary checkpoint of all weights, the frozen tower's too.
    saved = world.loop.job.adapter.load(world.folder / "exported").state_dict()
    assert saved.keys() == whole[0].state_dict().keys()
    for name, value in whole[0].state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_resumed_training_is_the_same_training_also_in_another_number_of_processes(world: World) -> None:
    """Two processes from their own checkpoint, two sharded ones from that of one whole model, and the other way."""
    part = world.parts[0]
    wanted = torch.tensor(part["done"][STEPS:])
    assert part["again"] == part["done"][STEPS:]
    torch.testing.assert_close(torch.tensor(part["of_one"]), wanted, rtol=1e-5, atol=0)
    alone = resumed(world.folder, world.folder / "kept" / f"resume-{STEPS:06d}", [0, 1])
    torch.testing.assert_close(torch.tensor(alone), wanted, rtol=1e-5, atol=0)


def test_loss_scaling_and_sharding_are_not_combined(tmp_path: Path) -> None:
    recipe = user_supplied(tmp_path, "devices.sharding=full", "train.precision=float16")
    check_split(recipe, 1)
    with pytest.raises(RecipeError, match="float16"):
        check_split(recipe, 2)
    with pytest.raises(RecipeError, match="2 x 3"):
        check_split(user_supplied(tmp_path), 3)
