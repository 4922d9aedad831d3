"""Weights in parts on one, two and four processes: the model of one process, also where some have text alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.progress import Progress
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training import checkpoint
from harness.training.launching import processes
from harness.training.launching.agent import free_port
from harness.training.launching.processes import check_split
from regate.wrapping import unwrap
from tests import forked
from tests.harness.training.placement.trainings import STEPS, keep, loop_of, meet, recipe_of, reports, resumed
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from harness.training.loop import Loop



@dataclass(frozen=True)
class World:
    """A training in one process, its reports, and what two processes of the same training saved."""

    folder: Path
    loop: Loop
    alone: list[tuple[float, float]]
    parts: list[dict[str, Any]]


def collectives_of_tower(loop: Loop) -> int:
    from torch.distributed.tensor.debug import CommDebugMode

    tower: Any = unwrap(loop.model).model.vision_tower
    with CommDebugMode() as counted:
        tower(torch.zeros(1, 3, *[tower.vision_tower.config.image_size] * 2))
    return counted.get_total_counts()


def worker(rank: int, world: int, folder: Path, port: int) -> None:
    """Three steps, a checkpoint, two more; the last two again from this checkpoint and from that of one process."""
    meet(rank, world, port, local=world)
    loop, batches = loop_of(folder)
    window = [batches[rank]]
    held = sum(value.to_local().numel() for value in loop.model.parameters() if value.requires_grad)
    assert collectives_of_tower(loop) == 0
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
    total = sum(value.numel() for value in whole[0].parameters() if value.requires_grad)
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


def worker_of_two_machines(rank: int, world: int, folder: Path, port: int) -> None:
    """Four processes as two machines of two; two micro-batches of each."""
    meet(rank, world, port, local=2)
    done: dict[str, Any] = {}
    for reduce in ("micro_batch", "step"):
        loop, batches = loop_of(folder, "devices.sharding=node", f"devices.reduce={reduce}", micro_batches=8)
        window = [batches[rank % 2]] * 2
        done[reduce] = reports(loop, window, range(STEPS))
    loop.parallel.export(lambda model: loop.job.adapter.save(model, folder / "exported-node"))
    keep(loop, folder / "node")
    done["held"] = sum(value.to_local().numel() for value in loop.model.parameters() if value.requires_grad)
    torch.save(done, folder / f"node-{rank}.pt")
    processes.destroy_process_group()


@pytest.mark.slow
def test_two_machines_that_each_hold_a_whole_train_the_model_of_one_process(world: World) -> None:
    folder = world.folder
    loop, batches = loop_of(folder, micro_batches=8)
    alone = torch.tensor(reports(loop, batches * 4, range(STEPS)))
    assert forked.run(worker_of_two_machines, 4, folder, free_port()) == [0] * 4
    parts = [torch.load(folder / f"node-{rank}.pt") for rank in range(4)]
    for part in parts:
        for reduce in ("micro_batch", "step"):
            torch.testing.assert_close(torch.tensor(part[reduce]), alone, rtol=1e-5, atol=0)
    whole: list[Any] = []
    loop.parallel.export(whole.append)
    trained = sum(value.numel() for value in whole[0].parameters() if value.requires_grad)
    assert [sum(part["held"] for part in machine) for machine in (parts[:2], parts[2:])] == [trained, trained]
    saved = loop.job.adapter.load(folder / "exported-node").state_dict()
    for name, value in whole[0].state_dict().items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5, msg=name)
    # One process goes on with all parts in the machine's memory, and two after it.
    wanted = torch.tensor(reports(loop, batches * 4, range(STEPS, STEPS + 2)))
    aside = ("devices.sharding=full", "devices.offload=true")
    with processes.group_of_one(recipe_of(folder, *aside).devices):
        after, _ = loop_of(folder, *aside, micro_batches=8)
        step, _ = checkpoint.load(after.parallel, folder / "node" / f"resume-{STEPS:06d}", identity="a")
        losses = torch.tensor(reports(after, batches * 4, range(step, STEPS + 1)))
        keep(after, folder / "one", STEPS + 1)
    torch.testing.assert_close(losses, wanted[:1], rtol=1e-5, atol=0)
    assert forked.run(worker_after_one, 2, folder, free_port()) == [0, 0]
    for rank in (0, 1):
        last = torch.tensor(torch.load(folder / f"after-one-{rank}.pt"))
        torch.testing.assert_close(last, wanted[1:], rtol=1e-5, atol=0)


def worker_after_one(rank: int, world: int, folder: Path, port: int) -> None:
    """The step after what one process kept, with the parts over two."""
    meet(rank, world, port, local=world)
    loop, batches = loop_of(folder, micro_batches=8)
    step, _ = checkpoint.load(loop.parallel, folder / "one" / f"resume-{STEPS + 1:06d}", identity="a")
    torch.save(reports(loop, [batches[rank]] * 4, range(step, STEPS + 2)), folder / f"after-one-{rank}.pt")
    processes.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_one_process_holds_all_parts_also_in_the_memory_of_the_machine(world: World, offload: bool) -> None:
    sharding = ("devices.sharding=full", f"devices.offload={offload}")
    with processes.group_of_one(recipe_of(world.folder, *sharding).devices):
        loop, batches = loop_of(world.folder, *sharding)
        assert loop.parallel.sharding == "full"
        done = reports(loop, batches, range(STEPS))
        folder = world.folder / f"one-{offload}"
        step, _ = checkpoint.load(loop.parallel, keep(loop, folder), identity="a")
        done += reports(loop, batches, range(step, STEPS + 2))
    assert not dist.is_initialized()
    torch.testing.assert_close(torch.tensor(done[:STEPS]), torch.tensor(world.alone), rtol=1e-6, atol=0)
    after = resumed(world.folder, folder / f"resume-{STEPS:06d}", [0, 1])
    torch.testing.assert_close(torch.tensor(after), torch.tensor(done[STEPS:]), rtol=1e-6, atol=0)


def test_what_cannot_be_sharded_is_refused_by_name(tmp_path: Path) -> None:
    """Nothing to spread over, or nothing to put aside."""
    with pytest.raises(RecipeError, match="there is one"):
        processes.check_nodes(user_supplied(tmp_path, "devices.sharding=node").devices, 1)
    with pytest.raises(RecipeError, match="sharding is full"):
        user_supplied(tmp_path, "devices.sharding=full", "devices.reduce=step")
    with pytest.raises(RecipeError, match="offload is about weights in parts"):
        user_supplied(tmp_path, "devices.sharding=none", "devices.offload=true")
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match="no GPU is visible"):
            check_split(user_supplied(tmp_path, "devices.sharding=full", "devices.offload=true"), 1)


def test_loss_scaling_and_sharding_are_not_combined(tmp_path: Path) -> None:
    recipe = user_supplied(tmp_path, "devices.sharding=full", "train.precision=float16")
    with pytest.raises(RecipeError, match="float16"):
        check_split(recipe, 1)
    with pytest.raises(RecipeError, match="2 x 3"):
        check_split(user_supplied(tmp_path), 3)
