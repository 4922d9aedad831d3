"""The processes that compute one run together: how many there are, and the process group that they form.

`harness.training.launching.launch` starts them, on this machine and, where the command was started on several nodes,
on those.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from harness.common.errors import EnvironmentProblem, RecipeError
from harness.config.recipe import INSTALL_DEEPSPEED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.config.recipe import Devices, Recipe


def count(recipe: Recipe, nodes: int = 1) -> int:
    """How many processes the recipe's training gets on each node, of which this is one.

    Raises:
        EnvironmentProblem: more are asked for than there are GPUs, or a package that places the weights is missing.
        RecipeError: the global batch cannot be split evenly over them, or the weights spread as the recipe says.
    """
    gpus = torch.cuda.device_count()
    processes = recipe.devices.processes or max(1, gpus)
    if gpus and processes > gpus:
        raise EnvironmentProblem(
            f"devices.processes is {processes}, and {gpus} GPUs are visible: each process needs its own",
            hint="leave devices.processes out to use every visible GPU",
        )
    check_nodes(recipe.devices, nodes)
    check_split(recipe, processes * nodes)
    check_engine(recipe.devices)
    return processes


def check_split(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where the global batch is not a whole number of micro-batches for each process, or the
    weights cannot be sharded."""
    train = recipe.train
    if recipe.devices.sharding != "none" and train.precision == "float16":
        raise RecipeError(
            f"devices.sharding is {recipe.devices.sharding} and train.precision float16: its loss scaling does not "
            "know sharded gradients",
            hint="take train.precision bfloat16",
        )
    if recipe.devices.offload and not torch.cuda.is_available():
        raise EnvironmentProblem(
            "devices.offload moves what a GPU would hold to the machine's memory, and no GPU is visible",
            hint="leave devices.offload out: the weights are in the machine's memory already",
        )
    if train.global_batch % (train.micro_batch * processes):
        raise RecipeError(
            f"train.global_batch {train.global_batch} is not a multiple of micro_batch x processes = "
            f"{train.micro_batch} x {processes}",
            hint="choose micro_batch so that it divides global_batch / processes, or set devices.processes",
        )


def nodes() -> int:
    """Machines of the process group: as many as processes that are the first of theirs. Every process comes here.

    Raises:
        EnvironmentProblem: they do not have the same number of processes, in the order of their ranks.
    """
    world = dist.get_world_size()
    gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(gathered, torch.tensor([dist.get_node_local_rank(0)]))
    local = [int(number) for number in gathered]
    machines = local.count(0)
    if local != list(range(world // max(1, machines))) * machines:
        raise EnvironmentProblem(
            f"the {world} processes are numbered {local} on their machines, not the same from 0 on for each",
            hint="start the same number of processes on each machine",
        )
    return machines


def check_nodes(devices: Devices, nodes: int) -> None:
    """Raises RecipeError where each machine is to hold a whole, and there is only one."""
    if devices.sharding == "node" and nodes == 1:
        raise RecipeError(
            "devices.sharding is node, which spreads the weights within each of several machines, and there is one",
            hint="set devices.sharding=full",
        )


def check_engine(devices: Devices) -> None:
    """Raises EnvironmentProblem where the placement is DeepSpeed's, which is not installed."""
    if devices.by_deepspeed and find_spec("deepspeed") is None:
        raise EnvironmentProblem(
            f"devices.sharding is {devices.sharding}, which DeepSpeed does, and it is not installed",
            hint=f"{INSTALL_DEEPSPEED}, or set devices.sharding=full",
        )


@contextmanager
def group_of_one(devices: Devices) -> Iterator[None]:
    """A process group for weights in parts on this process alone; nothing where there is one, or none is needed."""
    if not devices.in_parts or dist.is_initialized():
        yield
        return
    from torch._C._distributed_c10d import HashStore

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def init_process_group(timeout_minutes: float) -> None:
    """torch's default process group, with NCCL among GPUs and gloo among CPUs; this process's GPU becomes the
    current one. Rank and address are those that the agent gave.

    Args:
        timeout_minutes: how long a process waits for another one before it fails.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))


def destroy_process_group() -> None:
    """End the process group, after every process came here."""
    dist.barrier()
    dist.destroy_process_group()
