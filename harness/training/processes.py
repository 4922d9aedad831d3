"""The processes that compute one run together: how many there are, and the process group that they form.

`harness.training.launch` starts them, on this machine and, where the command was started on several nodes, on those.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from harness.common.errors import EnvironmentProblem, RecipeError

if TYPE_CHECKING:
    from harness.config.recipe import Recipe

def count(recipe: Recipe, nodes: int = 1) -> int:
    """How many processes the recipe's training gets on each node, of which this is one.

    Raises:
        EnvironmentProblem: more are asked for than there are GPUs.
        RecipeError: the global batch cannot be split evenly over them.
    """
    gpus = torch.cuda.device_count()
    processes = recipe.devices.processes or max(1, gpus)
    if gpus and processes > gpus:
        raise EnvironmentProblem(
            f"devices.processes is {processes}, and {gpus} GPUs are visible: each process needs its own",
            hint="leave devices.processes out to use every visible GPU",
        )
    check_split(recipe, processes * nodes)
    return processes


def check_split(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where the global batch is not a whole number of micro-batches for each process, or the
    weights cannot be sharded."""
    train = recipe.train
    if recipe.devices.sharding == "full" and train.precision == "float16" and processes > 1:
        raise RecipeError(
            "devices.sharding is full and train.precision float16: its loss scaling does not know sharded gradients",
            hint="take train.precision bfloat16",
        )
    if train.global_batch % (train.micro_batch * processes):
        raise RecipeError(
            f"train.global_batch {train.global_batch} is not a multiple of micro_batch x processes = "
            f"{train.micro_batch} x {processes}",
            hint="choose micro_batch so that it divides global_batch / processes, or set devices.processes",
        )


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
