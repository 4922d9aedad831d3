"""This machine's processes of a run, started and watched by torch's elastic agent.

The agent starts the processes, tells each its rank and keeps the store by which they meet. It runs in a thread, so
that requests to stop come here: a wish to save is passed on to the processes as SIGUSR1, and after a failure the
others are killed. The agent would send SIGTERM for both, which they ignore, and wait half a minute.

The processes' job is plain files: the run's recipe.json, and workers/job.json beside it. Each writes its id there
when it starts (`pid-<rank>`), what it prints (`log-<rank>.txt`, but for the first), and how it ended
(`outcome-<rank>.json`).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import EnvironmentProblem, Preempted
from harness.common.files import is_alive, read_json
from harness.common.signals import PASSED_ON
from harness.common.threads import settle
from harness.training.launching.place_in_job import PREFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

FOLDER: Final = "workers"
"""Below a run's folder: what its processes are started with, and how they ended."""
JOB: Final = "job.json"
_POLL_S: Final = 0.1
"""Seconds between two looks at the processes."""
_FAILURE_GRACE_S: Final = 2.0
"""Seconds in which the others may still say what happened to them, once one has failed."""
_SHUTDOWN_GRACE_S: Final = 60.0
"""Seconds in which the others may finish what they write, once one has stopped as it was asked to."""
_ABANDON_S: Final = 10.0
"""Seconds that the agent is given once its processes are dead. It may still wait for another machine's, which will
never come; processes that it would start then find their lifeline gone."""
_FOREIGN: Final = (*PREFIXES, "MASTER_")
"""Environment variables that would change what a worker does."""


@dataclass(frozen=True, slots=True)
class Group:
    """The machines whose processes compute together, as one of them sees it.

    Attributes:
        node, nodes: which machine this is, and how many there are.
        address, port: where the processes meet: on machine 0.
        processes: on each machine.
        threads: computing threads of a process on the CPU; None shares out those that torch chose.
    """

    node: int
    nodes: int
    address: str
    port: int
    processes: int
    threads: int | None

    @property
    def ranks(self) -> range:
        """Of this machine's processes."""
        return range(self.node * self.processes, (self.node + 1) * self.processes)


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def run(
    run_dir: Path, group: Group, stop: Callable[[], bool], over: Callable[[], bool] = lambda: False
) -> dict[int, tuple[int, float]]:
    """Run this machine's processes to their end.

    They end with this call, however it is left, and by themselves when this process dies.

    Args:
        stop: whether they are asked to stop; each is told once.
        over: whether those of another machine have failed: these here would wait for them, and are killed.

    Returns:
        Exit code and time of every process that did not end with 0, by rank; without those that were killed here
        because others had failed or stopped. The time is this machine's, and says nothing beside another one's.

    Raises:
        EnvironmentProblem: the processes of all machines did not meet.
    """
    folder = run_dir / FOLDER
    with tempfile.TemporaryDirectory(prefix="regate-") as own, _environment(group), _lifeline(Path(own)) as lifeline:
        agent = _Agent(group, folder, [str(run_dir), str(lifeline)])
        try:
            agent.start()
            killed = _watch(agent, folder, group.ranks, stop, over)
        finally:
            gives_up = time.monotonic() + _ABANDON_S
            while agent.is_alive() and time.monotonic() < gives_up:  # it may be about to start some
                _signal(folder, group.ranks, signal.SIGKILL)
                agent.join(_POLL_S)
            _signal(folder, group.ranks, signal.SIGKILL)  # also those that load data for them
    if agent.error is not None:
        raise EnvironmentProblem(
            f"the training processes of {group.nodes} nodes did not meet at {group.address}:{group.port}: "
            f"{agent.error}",
            hint="node 0 must be reached from the others by that name and on any port above 1024",
        ) from agent.error
    failures = {rank: (failure.exitcode, float(failure.timestamp)) for rank, failure in agent.failures.items()}
    return {rank: ending for rank, ending in failures.items() if rank not in killed}


class _Agent(threading.Thread):
    """torch's agent, in a thread. `failures`: by rank, when it has ended."""

    def __init__(self, group: Group, folder: Path, arguments: list[str]) -> None:
        super().__init__(daemon=True, name="elastic-agent")
        self.group, self.folder, self.arguments = group, folder, arguments
        self.failures: dict[int, ProcessFailure] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        for name in list(logging.root.manager.loggerDict):
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # the launcher says what there is to say
        group = self.group
        config = LaunchConfig(
            min_nodes=group.nodes,
            max_nodes=group.nodes,
            nproc_per_node=group.processes,
            run_id=uuid.uuid4().hex if group.nodes == 1 else f"{group.address}-{group.port}",
            rdzv_backend="static",
            rdzv_endpoint=f"{group.address}:{group.port}",
            rdzv_configs={"rank": group.node},
            max_restarts=0,
            monitor_interval=_POLL_S,
            local_addr=group.address if group.node == 0 else None,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / f"agent-{group.node}")),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "harness.training.launching.worker", *self.arguments)
        except ChildFailedError as error:
            self.failures = dict(error.failures)
        except Exception as error:  # noqa: BLE001 - the thread that waits raises it
            self.error = error


def _watch(
    agent: _Agent, folder: Path, ranks: range, stop: Callable[[], bool], over: Callable[[], bool]
) -> set[int]:
    """Until the agent has ended: pass on a request to stop, and kill what is left some time after the first end that
    was not success, here or elsewhere. The ranks that were killed."""
    asked: set[int] = set()
    killed: set[int] = set()
    until = None
    while agent.is_alive():
        if stop():
            asked |= _signal(folder, [rank for rank in ranks if rank not in asked], PASSED_ON)
        codes = [_ending(folder, rank) for rank in ranks]
        if until is None and any(codes):
            grace = _SHUTDOWN_GRACE_S if Preempted.exit_code in codes else _FAILURE_GRACE_S
            until = time.monotonic() + grace
        if until is None and over():
            until = time.monotonic() + _FAILURE_GRACE_S
        if until is not None and time.monotonic() > until:
            killed |= {rank for rank, code in zip(ranks, codes, strict=True) if code is None}
            _signal(folder, ranks, signal.SIGKILL)
            if time.monotonic() > until + _ABANDON_S:
                break
        agent.join(_POLL_S)
    return killed


def _ending(folder: Path, rank: int) -> int | None:
    """Exit code of a process that has ended, by its own account, or 1; None while it runs or has not begun."""
    pid = pid_of(folder, rank)
    if pid is None or is_alive(pid):
        return None
    outcome = read_outcome(folder, rank)
    return 1 if outcome is None else int(outcome["code"])


def read_outcome(folder: Path, rank: int) -> dict[str, Any] | None:
    """How a process says that it ended: message, code and time; None where it could not say it."""
    path = folder / f"outcome-{rank}.json"
    shape = {"message": str, "code": int, "time": int | float}
    hint = "give the command again: it resumes, and the file is written anew"
    return read_json(path, "the outcome of a worker", schema=1, shape=shape, hint=hint) if path.exists() else None


def pid_of(folder: Path, rank: int) -> int | None:
    """The id of a worker's process; None where it has not begun. Signals go to it, so that a damaged file must not
    name another process."""
    path = folder / f"pid-{rank}"
    return read_json(path, "the id of a worker", schema=1, shape={"pid": int})["pid"] if path.exists() else None


def _signal(folder: Path, ranks: range | list[int], number: signal.Signals) -> set[int]:
    """The ranks of those that were there to be signalled; SIGKILL goes to what they started, too."""
    reached = set()
    for rank in ranks:
        pid = pid_of(folder, rank)
        if pid is not None:
            with suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
            reached.add(rank)
    return reached


@contextmanager
def _lifeline(folder: Path) -> Iterator[Path]:
    """A pipe that this process holds open: who reads its end knows that this process is gone."""
    path = folder / "lifeline"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield path
    finally:
        os.close(held)


@contextmanager
def _environment(group: Group) -> Iterator[None]:
    """This process's environment while it is that of its workers, which the agent starts with a copy."""
    import torch  # not by the workers, which tell an import that fails

    before = dict(os.environ)
    kept = {name: value for name, value in before.items() if not name.startswith(_FOREIGN)}
    settle(kept)
    threads = group.threads or max(1, torch.get_num_threads() // group.processes)
    kept |= {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109 - the same packages
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        _replace_environment(kept)
        yield
    finally:
        _replace_environment(before)


def _replace_environment(content: dict[str, str]) -> None:
    for name in os.environ.keys() - content.keys():
        del os.environ[name]
    os.environ.update(content)
