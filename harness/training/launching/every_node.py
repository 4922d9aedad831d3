"""What a command of the command line calls to work on every node that it was started on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.common.errors import EnvironmentProblem
from harness.training.launching.nodes import Coordinator, open_store
from harness.training.launching.place_in_job import PREFIXES, VARIABLES, node_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.training.launching.place_in_job import Node


def here() -> Node:
    """The place of this process, as its environment tells."""
    return node_of(os.environ)


def on_every_node(work: Callable[[Coordinator | None], None], say: Callable[[str], None]) -> int:
    """Do a command's work once for all nodes of a job.

    Node 0 does it; the others do what it tells them. Further processes of a node have nothing to do.

    Args:
        work: the whole of it; it gets the other nodes, None where there are none.
        say: tells the user a line.

    Returns:
        The exit code: 0, or on the other nodes that of node 0.

    Raises:
        EnvironmentProblem: the launcher does not tell the nodes' places, they do not meet, or they are not alike.
    """
    node = here()
    if node.local > 0:
        return 0
    _forget_launcher()
    if node.note:
        say(node.note)
    check_gpus(node)
    if node.nodes == 1:
        work(None)
        return 0
    store = open_store(node)
    if node.rank > 0:
        from harness.training.launching.follower import follow

        return follow(node, store, say)
    with Coordinator(node, store) as nodes:
        say(f"{node.nodes} nodes, started by {node.launcher}")
        work(nodes)
    return 0


def _forget_launcher() -> None:
    """Take the launcher's variables out of this process's environment: it is one agent now and no rank of theirs."""
    for name in list(os.environ):
        if name in VARIABLES or name.startswith(PREFIXES):
            del os.environ[name]


def check_gpus(node: Node) -> None:
    """Raises EnvironmentProblem where the launcher shows this process a part of its node's GPUs alone."""
    if node.gpus is None:
        return
    import torch

    seen = torch.cuda.device_count()
    if 0 < seen < node.gpus:
        raise EnvironmentProblem(
            f"node {node.rank}: {node.launcher} started a process for each GPU and shows this one {seen} of "
            f"{node.gpus}; one process works for its whole node",
            hint="give the step its GPUs: srun --ntasks-per-node 1 --gpus-per-node N, without --gpus-per-task",
        )
