"""Trainings of a few steps, in one process or as one of several: what the tests of placements compare."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import regate
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from harness.training import checkpoint
from harness.training.launching import processes
from harness.training.loop import Loop, TrainJob
from tests.harness.worlds.videollama2 import user_supplied

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sample import Batch

STEPS = 3


def recipe_of(folder: Path, *more: str) -> Recipe:
    """A global batch of two micro-batches: two passes of one process, or one of each of two. One holds it whole."""
    changes: tuple[str, ...] = ("train.loss_norm=global_tokens", "train.precision=float32", "train.optimizer.lr=1e-3")
    if not any(change.startswith("devices.sharding=") for change in more):
        changes += (f"devices.sharding={'full' if dist.is_initialized() else 'none'}",)
    return user_supplied(folder, *changes, *more)


def loop_of(folder: Path, *more: str, micro_batches: int = 2) -> tuple[Loop, list[Batch]]:
    """A dense training of steps of so many micro-batches, and two of them: a video's, and one of text alone."""
    recipe = recipe_of(folder, *more)
    if dist.is_initialized() and dist.get_world_size() > 2:  # no more samples than that
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": 1})})
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    text = next(sample for sample in data.samples if not sample.media)
    video = next(sample for sample in data.samples if sample.media and sample.media[0].kind == "video")
    batches = [adapter.processor().collate([load(sample, data, adapter.processor())]) for sample in (video, text)]
    job = TrainJob(recipe, 10, (), adapter, data, regate.DenseGate, folder / "run", Progress(quiet=True))
    loop = Loop(job)
    loop.accelerator.gradient_accumulation_steps = micro_batches // loop.accelerator.num_processes
    return loop, batches


def reports(loop: Loop, window: list[Batch], steps: range) -> list[tuple[float, float]]:
    losses_and_norms = []
    for step in steps:
        report, stop = loop.send(loop.step(window, step), window, stop=loop.accelerator.process_index == 1).read()
        assert stop == (loop.accelerator.num_processes > 1), "a request to stop one process is one to all"
        losses_and_norms.append((report["loss"], report["grad_norm"]))
    return losses_and_norms


def resumed(folder: Path, path: Path, window: list[int], *more: str) -> list[tuple[float, float]]:
    """The last two steps from a checkpoint, over some of the micro-batches."""
    loop, batches = loop_of(folder, *more)
    step, _ = checkpoint.load(loop.parallel, path, identity="a")
    return reports(loop, [batches[number] for number in window], range(step, STEPS + 2))


def keep(loop: Loop, folder: Path, step: int = STEPS) -> Path:
    return checkpoint.save(loop.parallel, folder, step=step, gate_state={"difficulty": None}, identity="a")


def meet(rank: int, world: int, port: int, *, local: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank % local)}
    os.environ |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    processes.init_process_group(timeout_minutes=30)
