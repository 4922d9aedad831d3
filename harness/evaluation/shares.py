"""An evaluation in shares: several children side by side, on this machine's GPUs and on those of other nodes.

Each answers its share of the questions and writes no result. An answer is on the shared disk as soon as it is there,
so that whoever scores afterwards finds all of them.
"""

from __future__ import annotations

import os
import queue
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from harness.common.errors import HarnessError
from harness.evaluation.lmms.process import run_child

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path


class OtherNodes(Protocol):
    """Further nodes of a job that answer their shares.

    Attributes:
        nodes: how many there are, with this one.
    """

    nodes: int

    def check_shared(self, folders: Sequence[Path]) -> None:
        """Raises EnvironmentProblem where one of them does not see the same folder as this one."""
        ...

    def answer(
        self, folder: Path, job: Mapping[str, Any], processes: int, threads: int | None
    ) -> AbstractContextManager[list[Iterator[dict[str, Any]]]]:
        """Have each of them answer, with so many processes.

        Returns:
            The events of each node, which are those of a child; they end with this block.
        """
        ...


def of_node(
    job: Mapping[str, Any], gpus: Sequence[str | None], node: int, nodes: int, threads: int | None
) -> list[tuple[dict[str, Any], str | None]]:
    """The shares of one node, each with its GPU.

    Args:
        job: as for a child that answers all.
        gpus: of the node: see `harness.evaluation.lmms.process.visible_gpus`.
        threads: of a process; None shares out those of the machine.
    """
    each = threads or max(1, (os.cpu_count() or 1) // len(gpus))
    world = nodes * len(gpus)
    return [({**job, "share": [node * len(gpus) + i, world], "threads": each}, gpu) for i, gpu in enumerate(gpus)]


def answer(
    child: Sequence[str],
    folder: Path,
    shares: Sequence[tuple[Mapping[str, Any], str | None]],
    others: Sequence[Iterator[dict[str, Any]]] = (),
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """Start a child for each share; the events of all, each with a number of its source.

    Args:
        others: events of other nodes.

    Raises:
        HarnessError: what the first one that fails says. It ends all; what was answered stays on disk.
    """
    with ExitStack() as stack:
        sources: list[tuple[str | None, Iterator[dict[str, Any]]]] = []
        for number, (job, gpu) in enumerate(shares):
            process = job["share"][0]
            events = stack.enter_context(run_child(child, folder, job, log_name=f"lmms_eval-{process}.log", gpu=gpu))
            where = f"process {number + 1} of {len(shares)}" + ("" if gpu is None else f" (GPU {gpu})")
            sources.append((where, events))
        sources += [(None, events) for events in others]
        yield from _merged(sources)


def _merged(sources: Sequence[tuple[str | None, Iterator[dict[str, Any]]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events of all sources as they come, until the last has ended."""
    received: queue.SimpleQueue[tuple[int, dict[str, Any] | Exception | None]] = queue.SimpleQueue()

    def receive(number: int, events: Iterator[dict[str, Any]]) -> None:
        try:
            for event in events:
                received.put((number, event))
            received.put((number, None))
        except Exception as error:  # noqa: BLE001 - the thread that listens raises it
            received.put((number, error))

    for number, (_, events) in enumerate(sources):
        threading.Thread(target=receive, args=(number, events), daemon=True, name=f"events-{number}").start()
    working = set(range(len(sources)))
    while working:
        number, event = received.get()
        where = sources[number][0]
        if isinstance(event, HarnessError) and where is not None:
            raise type(event)(f"{where}: {event}", hint=event.hint) from event
        if isinstance(event, Exception):
            raise event
        if event is None:
            working.discard(number)
        else:
            yield number, event
