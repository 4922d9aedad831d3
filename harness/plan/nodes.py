"""What each node of a run does, in words. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.common.errors import RecipeError

if TYPE_CHECKING:
    from harness.config.recipe import Recipe


def check_split(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where the global batch is not a whole number of micro-batches for each process."""
    train = recipe.train
    if train.global_batch % (train.micro_batch * processes):
        raise RecipeError(
            f"{recipe.name}: train.global_batch {train.global_batch} is not a multiple of micro_batch x GPUs = "
            f"{train.micro_batch} x {processes}",
            hint="choose micro_batch so that it divides global_batch / GPUs, or another hardware",
        )


def node_lines(recipe: Recipe, nodes: int, each: int, *, teacher: bool) -> list[str]:
    """A line for each node, and what each of its processes has.

    Args:
        each: processes of a node.
        teacher: whether the run reads reference losses.

    Raises:
        RecipeError: see `check_split`.
    """
    processes, train = each * nodes, recipe.train
    check_split(recipe, processes)
    lines = []
    for node in range(nodes):
        ranks = f"rank {node}" if each == 1 else f"ranks {node * each} to {(node + 1) * each - 1}"
        own = "prepares, judges results, writes the record; " if node == 0 else "does what node 0 tells it; "
        lines.append(f"node {node}: {own}{_processes(each)} ({ranks})")
    share = f"{train.global_batch // (train.micro_batch * processes)} micro-batches of {train.micro_batch} of a step"
    of_all = f", 1/{processes} of {'the reference losses and of ' if teacher else ''}an evaluation's items"
    lines.append(f"each process: {share}{of_all if processes > 1 else ''}")
    lines.append(f"weights: {_lie(recipe.devices.sharding, nodes, each)}")
    if teacher:
        lines.append(f"teacher: {_lie('node' if recipe.devices.shard_teacher else 'none', nodes, each)}")
    return lines


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"


def _lie(sharding: str, nodes: int, each: int) -> str:
    """Where a model's weights lie."""
    if sharding == "none" or each * nodes == 1:
        return "whole on every process" if each * nodes > 1 else "whole"
    if sharding.startswith("zero"):
        more = " and gradients" if sharding == "zero2" else ""
        return f"whole on every process, the optimizer's state{more} spread over all {each * nodes}"
    if sharding == "full" or nodes == 1:
        return f"spread over all {each * nodes} processes"
    if each == 1:
        return "whole on every node"
    return f"spread over the {each} processes of each node, which holds a whole"
