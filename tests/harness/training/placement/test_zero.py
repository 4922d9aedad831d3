"""DeepSpeed's ZeRO on two processes: the model of one whole process, also where some have text alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.common.progress import Progress
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training.launching import processes
from harness.training.launching.agent import free_port
from tests import forked
from tests.harness.training.placement.trainings import STEPS, keep, loop_of, meet, recipe_of, reports, resumed
from tests.harness.worlds.videollama2 import write_world

if TYPE_CHECKING:
    from pathlib import Path

STAGES = ("zero1", "zero2")

pytestmark = pytest.mark.slow
pytest.importorskip("deepspeed", reason='DeepSpeed is an extra, built from source: pip install "regate[deepspeed]"')


def worker(rank: int, world: int, folder: Path, port: int) -> None:
    """Three steps, a checkpoint, two more; the last two again from this checkpoint and from that of one process."""
    meet(rank, world, port, local=world)
    for stage in STAGES:
        more = f"devices.sharding={stage}"
        loop, batches = loop_of(folder, more)
        window = [batches[rank]]
        done = reports(loop, window, range(STEPS))
        path = keep(loop, folder / stage)
        loop.parallel.export(partial(loop.job.adapter.save, directory=folder / f"exported-{stage}"))
        done += reports(loop, window, range(STEPS, STEPS + 2))
        again = resumed(folder, path, [rank], more)
        of_one = resumed(folder, folder / "alone" / path.name, [rank], more)
        held = sum(value.numel() for state in loop.parallel.optimizer.state.values() for value in state.values())
        report = {"done": done, "again": again, "of_one": of_one, "held": held}
        torch.save(report, folder / f"{stage}-{rank}.pt")
    processes.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process did, and its model after it; two processes have left their reports beside them."""
    folder = write_world(tmp_path_factory.mktemp("zero"))
    recipe = recipe_of(folder)
    adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed)).prepare(Progress(quiet=True))
    loop, batches = loop_of(folder)
    alone = reports(loop, batches, range(STEPS))
    whole: list[Any] = []
    loop.parallel.export(lambda model: whole.append({name: v.clone() for name, v in model.state_dict().items()}))
    keep(loop, folder / "alone")
    alone += reports(loop, batches, range(STEPS, STEPS + 2))
    assert forked.run(worker, 2, folder, free_port()) == [0, 0]
    return {"folder": folder, "alone": torch.tensor(alone), "whole": whole[0], "adapter": loop.job.adapter}


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_train_the_model_of_one(world: dict[str, Any], stage: str) -> None:
    one, other = (torch.load(world["folder"] / f"{stage}-{rank}.pt") for rank in (0, 1))
    assert one["done"] == other["done"]
    torch.testing.assert_close(torch.tensor(one["done"]), world["alone"], rtol=1e-5, atol=0)
    student = world["adapter"].student()
    trained = sum(value.numel() for value in student.parameters() if value.requires_grad)
    assert max(one["held"], other["held"]) < 0.6 * 2 * trained, "each has about half of two moments"
    saved = world["adapter"].load(world["folder"] / f"exported-{stage}").state_dict()
    for name, value in world["whole"].items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_its_checkpoints_are_for_any_number_of_processes(world: dict[str, Any], stage: str) -> None:
    """Two processes from their own and from that of one whole model; one whole model, and one alone, from theirs."""
    folder, report = world["folder"], torch.load(world["folder"] / f"{stage}-0.pt")
    wanted = torch.tensor(report["done"][STEPS:])
    assert report["again"] == report["done"][STEPS:]
    torch.testing.assert_close(torch.tensor(report["of_one"]), wanted, rtol=1e-5, atol=0)
    path = folder / stage / f"resume-{STEPS:06d}"
    alone = resumed(folder, path, [0, 1])
    torch.testing.assert_close(torch.tensor(alone), wanted, rtol=1e-5, atol=0)
    assert resumed(folder, path, [0, 1], f"devices.sharding={stage}") == alone
