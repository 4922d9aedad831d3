"""Models of transformers on two processes, one with a video and one with text alone: the training of one process."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist

import regate
from harness.common.progress import Progress
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training.launching import processes
from harness.training.launching.agent import free_port
from harness.training.loop import Loop, TrainJob
from tests import forked
from tests.harness.worlds.transformers_models import encoded, made, recipe_of, samples

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe

pytestmark = pytest.mark.slow

PARTS = {"tower": {"train": True, "lr": 3e-4}, "projector": {"train": True, "lr": 2e-3}}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # M-RoPE, and features that enter deeper layers.
    "qwen3_vl, weights in parts": ("qwen3_vl", "full", PARTS),
    "qwen2_5_vl, whole weights": ("qwen2_5_vl", "none", PARTS),
    "qwen2_5_vl, LoRA": ("qwen2_5_vl", "none", {"tower": {"train": False}, "lora": {"rank": 2, "dropout": 0.0}}),
    "llava_onevision, weights in parts": ("llava_onevision", "full", PARTS),
}
STEPS = 3
GATE = regate.GateConfig(keep_ratio=0.5, warmup_steps=1, dense_steps=0, cycle_steps=4, selection="random")


def case_recipe(folder: Path, case: str) -> Recipe:
    family, sharding, model = CASES[case]
    recipe = recipe_of(folder / family, family, **model)
    optimizer = recipe.train.optimizer.model_copy(update={"lr": 1e-3})
    changes = {"global_batch": 2, "micro_batch": 1, "precision": "float32", "optimizer": optimizer}
    train = recipe.train.model_copy(update={**changes, "gradient_checkpointing": True})
    devices = recipe.devices.model_copy(update={"sharding": sharding if dist.is_initialized() else "none"})
    return recipe.model_copy(update={"train": train, "devices": devices})


def steps(folder: Path, case: str, window: list[int]) -> tuple[list[tuple[float, float]], dict[str, Any], Any]:
    """Losses and norms of three steps, a dense and two sparse ones; the weights behind them; counts of the parts."""
    recipe = case_recipe(folder, case)
    adapter = adapter_for(recipe, open_data(recipe.data, recipe.paths, recipe.seed))
    video, _, text, _ = samples(adapter)
    batches = [adapter.processor().collate(encoded(adapter, [sample])) for sample in (video, text)]
    gate = partial(regate.Gate, GATE, None)
    job = TrainJob(recipe, 10, (), adapter, adapter.data, gate, folder / "run", Progress(quiet=True))
    loop = Loop(job)
    chosen = [batches[place] for place in window]
    done = []
    for step in range(STEPS):
        report, _ = loop.send(loop.step(chosen, step), chosen, stop=False).read()
        assert report["rows"] == "packed"
        done.append((report["loss"], report["grad_norm"]))
    weights: dict[str, torch.Tensor] = {}
    loop.parallel.export(lambda model: weights.update({n: v.clone() for n, v in model.state_dict().items()}))
    return done, weights, loop.groups


def worker(rank: int, world: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    processes.init_process_group(timeout_minutes=30)
    torch.save({case: steps(folder, case, [rank]) for case in CASES}, folder / f"done-{rank}.pt")
    processes.destroy_process_group()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    if sys.platform != "linux":
        pytest.skip("gloo over a file is for Linux here")
    folder = tmp_path_factory.mktemp("processes")
    for case, (family, _, _) in CASES.items():
        (folder / family).mkdir(exist_ok=True)
        made(case_recipe(folder, case))
    assert forked.run(worker, 2, folder, free_port()) == [0, 0]
    first, second = (torch.load(folder / f"done-{rank}.pt") for rank in (0, 1))
    return folder, first, second


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_train_the_model_of_one(world: Any, case: str) -> None:
    folder, first, second = world
    alone, weights, groups = steps(folder, case, [0, 1])
    done, together, parts = first[case]
    assert done == second[case][0]
    torch.testing.assert_close(torch.tensor(done), torch.tensor(alone), rtol=1e-4, atol=1e-6)
    assert parts == groups
    assert together.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
