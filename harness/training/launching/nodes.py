"""One command on every node: node 0 works, and tells the agents of the others what to do for it.

    on node 0 (`Coordinator`)            on every other node (`harness.training.launching.follower`)
    begin(command)   -- do/<n> -->       do it
    Order.answers    <-- did/<n>/<node>  what came of it
    __exit__         -- end -->          end with the same code

The nodes meet in torch's TCPStore, which node 0 or the launcher keeps. Its values are JSON, and nobody waits in it:
whoever needs a value looks for it now and then. So no collective is open while one node prepares, evaluates or
writes, and a node that is gone is seen by its heartbeat.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from harness.common.errors import (
    DataError,
    EnvironmentProblem,
    HarnessError,
    Preempted,
    RecipeError,
    StaleError,
)
from harness.common.exits import FAILED, STOPPED, explained
from harness.common.files import write_json
from harness.records import provenance
from harness.records.run_folder import existing_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from harness.training.launching.agent import Group
    from harness.training.launching.place_in_job import Node

FAMILY: Final = (RecipeError, EnvironmentProblem, DataError, StaleError, Preempted)
"""Kinds of error by their exit codes: what one node raised is raised by node 0."""
JOIN_S: Final = 600.0
"""Seconds in which all nodes must have started the command."""
LOST_S: Final = 60.0
"""Seconds without a heartbeat after which a node is taken for lost."""
BEAT_S: Final = 1.0
"""Seconds between two heartbeats."""
LOOK_S: Final = 0.2
"""Seconds between two looks for a value."""
SHARED_S: Final = 60.0
"""Seconds that a file may take to be seen by another node: network file systems keep what they have looked up."""
LOCAL_S: Final = 2.0
"""The same on a disk of one machine, which keeps nothing back."""
_LOCAL: Final = frozenset(("btrfs", "ext2", "ext3", "ext4", "overlay", "ramfs", "tmpfs", "xfs", "zfs"))
"""Kinds of file systems that are of one machine; any other may be a network's."""
_FAREWELL_S: Final = 15.0
"""Seconds that node 0 waits for the others to hear the end, before it takes its store along."""
_SAME: Final = ("packages", "python", "git")
"""What must be the same on every node: with other code a node would compute other numbers."""


# --- the store --------------------------------------------------------------------------------------------


class Store:
    """The nodes' common store: JSON by name; nothing in it waits.

    Args:
        store: torch's store, or any that has its `set`, `get` and `check`.
    """

    def __init__(self, store: Any) -> None:
        self._store, self._lock = store, threading.Lock()

    def put(self, name: str, value: Any) -> None:
        with self._lock, _connected():
            self._store.set(name, json.dumps(value))

    def get(self, name: str) -> Any | None:
        """None where nobody has put anything."""
        with self._lock, _connected():
            return json.loads(self._store.get(name)) if self._store.check([name]) else None


class StoreGone(HarnessError):
    """The store cannot be reached any more: the node that keeps it is gone."""


@contextmanager
def _connected() -> Iterator[None]:
    import torch.distributed as dist

    try:
        yield
    except dist.DistError as error:
        raise StoreGone(
            "node 0 is gone: its end of the nodes' store is closed",
            hint="what happened is said there; the same command, on every node again, resumes the run",
        ) from error


def open_store(node: Node, *, join_s: float = JOIN_S) -> Store:
    """The store of a node of several; node 0 keeps it, unless the launcher does.

    Raises:
        EnvironmentProblem: the port is taken, or node 0 does not answer in time.
    """
    import torch.distributed as dist

    keeps = node.rank == 0 and not node.store_is_there
    place = f"{node.host}:{node.port}"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            node.host or "", node.port, is_master=keeps, timeout=timedelta(seconds=join_s), wait_for_workers=False
        )
    except (dist.DistError, OSError, ValueError) as error:
        if keeps:
            message = f"the nodes' store cannot be opened at {place}: {str(error).splitlines()[0]}"
            hint = "another program holds the port: end it, or start the job again under another number"
        else:
            message = f"node {node.rank}: node 0 does not answer at {place}"
            hint = "the command must be started on every node, and node 0 be reached by that name from the others"
        raise EnvironmentProblem(message, hint=hint) from error
    return Store(dist.PrefixStore(f"regate {node.job}", store))  # type: ignore[attr-defined]


# --- what the nodes say to each other ---------------------------------------------------------------------


def introduction() -> dict[str, Any]:
    """What a node says of itself when it joins."""
    import torch

    return {
        "directory": str(Path.cwd()),
        "gpus": torch.cuda.device_count(),
        "where": provenance.collect(threads=torch.get_num_threads()),
    }


# --- node 0 -----------------------------------------------------------------------------------------------


class Coordinator:
    """The other nodes, as node 0 sees them; to be entered once they shall work.

    A node that is lost or told to stop ends node 0's work as a SIGTERM would: a training keeps a checkpoint.

    Args:
        join_s, lost_s: see `JOIN_S`, `LOST_S`.

    Attributes:
        nodes: how many there are, this one included.
        lost: the nodes whose heartbeat stopped.
        left: those that were told to stop, and said so.
    """

    def __init__(self, node: Node, store: Store, *, join_s: float = JOIN_S, lost_s: float = LOST_S) -> None:
        self.node, self.store = node, store
        self.nodes = node.nodes
        self.lost: set[int] = set()
        self.left: set[int] = set()
        self._join_s, self._lost_s = join_s, lost_s
        self._orders = 0
        self._introductions: dict[int, dict[str, Any]] = {}
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="nodes")

    @property
    def others(self) -> range:
        return range(1, self.nodes)

    @property
    def address(self) -> str:
        """Of this node, by which the others reach it."""
        return self.node.host or ""

    @property
    def hardware(self) -> list[dict[str, Any]]:
        """Of the other nodes, in order: see `harness.records.provenance.hardware`."""
        return [self._introductions[other]["where"]["hardware"] for other in self.others]

    def __enter__(self) -> Self:
        try:
            self._join()
        except BaseException as error:
            self._end(error)
            raise
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()
        if error is not None and self.lost and not isinstance(error, LostNode):
            failure = self.lost_error()
            self._end(failure)
            raise failure from error
        self._end(error)

    def _join(self) -> None:
        """Wait for every node, and hold it to this one."""
        own = introduction()
        gives_up = time.monotonic() + self._join_s
        while len(self._introductions) < len(self.others):
            for other in self.others:
                if other not in self._introductions and (said := self.store.get(f"hello/{other}")) is not None:
                    self._introductions[other] = said
            if time.monotonic() > gives_up:
                absent = [other for other in self.others if other not in self._introductions]
                raise EnvironmentProblem(
                    f"{_named(absent)} of {self.nodes} did not come to {self.node.host}:{self.node.port} within "
                    f"{self._join_s:.0f} s",
                    hint="start the same command on every node at about the same time",
                )
            time.sleep(LOOK_S)
        for other, said in sorted(self._introductions.items()):
            check_alike(other, said, own)
        self.store.put("welcome", True)

    def _watch(self) -> None:
        """Until the end: give a heartbeat, look at those of the others, and stop this process's work when one is
        gone."""
        hearts = {other: Heart(self.store, other, self._lost_s) for other in self.others}
        beats = 0
        while not self._ended.wait(BEAT_S):
            try:
                self.store.put("beat/0", beats := beats + 1)
                lost = {other for other, heart in hearts.items() if heart.stopped()} - self.left
                left = {other for other in self.others if self.store.get(f"left/{other}") is not None}
            except StoreGone:  # the launcher kept it
                lost, left = set(self.others), set()
            gone = (lost | left) - (self.lost | self.left)
            self.lost |= lost - left
            self.left |= left
            if gone:
                os.kill(os.getpid(), signal.SIGTERM)

    def _end(self, error: BaseException | None) -> None:
        """Tell the others the end, and wait until they have heard it."""
        with suppress(StoreGone):
            self.store.put("end", {"code": code_of(error)})
            gives_up = time.monotonic() + _FAREWELL_S
            waiting = set(self._introductions) - self.lost - self.left
            while waiting and time.monotonic() < gives_up:
                waiting = {other for other in waiting if self.store.get(f"bye/{other}") is None}
                time.sleep(LOOK_S)

    def lost_error(self) -> LostNode:
        return LostNode(
            f"{_named(sorted(self.lost))} of {self.nodes} is lost: nothing was heard for {self._lost_s:.0f} s",
            hint="the same command, on nodes that work, resumes from the newest checkpoint",
        )

    def begin(self, command: Mapping[str, Any]) -> Order:
        """Tell all other nodes to do something; see `harness.training.launching.follower` for what they can do."""
        number, self._orders = self._orders, self._orders + 1
        self.store.put(f"do/{number}", dict(command))
        return Order(self, number)

    def check_shared(self, folders: Sequence[Path]) -> None:
        """Look whether all nodes see the same folders, by a file that each of them writes.

        Raises:
            EnvironmentProblem: one does not see what another has written.
        """
        mark = f".shared-{os.getpid()}-{time.time_ns()}"
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / mark, {"node": 0})
        try:
            names = list(map(str, folders))
            order = self.begin({"do": "look", "folders": names, "mark": mark})
            answers = order.finish()
            for other in self.others:
                for folder in folders:
                    if str(folder) not in answers[other]["seen"] or not appears(folder / f"{mark}-{other}"):
                        raise EnvironmentProblem(
                            f"{folder}: node {other} does not see the same folder there as node 0",
                            hint="put paths.results and paths.stores on a file system that all nodes share, under "
                            "the same path",
                        )
        finally:
            for folder in folders:
                for path in folder.glob(f"{mark}*"):
                    path.unlink(missing_ok=True)

    @contextmanager
    def answer(
        self, folder: Path, job: Mapping[str, Any], processes: int, threads: int | None
    ) -> Iterator[list[Iterator[dict[str, Any]]]]:
        """Have the other nodes answer their shares of an evaluation; see `harness.evaluation.shares.OtherNodes`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".nodes-{os.getpid()}.json"
        write_json(path, job, sealed=True)
        order = self.begin(
            {"do": "answer", "folder": str(folder), "job": str(path), "processes": processes, "threads": threads}
        )
        try:
            yield [order.events(other) for other in self.others]
        finally:
            order.tell_over()
            path.unlink(missing_ok=True)


class LostNode(HarnessError):
    """A node of the job is gone."""


class Heart:
    """Of another node, by the clock of this one.

    Args:
        lost_s: see `LOST_S`.
    """

    def __init__(self, store: Store, node: int, lost_s: float) -> None:
        self._store, self._name, self._lost_s = store, f"beat/{node}", lost_s
        self._beat, self._heard = None, time.monotonic()

    def stopped(self) -> bool:
        beat, now = self._store.get(self._name), time.monotonic()
        if beat != self._beat:
            self._beat, self._heard = beat, now
        return now > self._heard + self._lost_s


class Order:
    """Something that all other nodes were told to do.

    Attributes:
        answers: of the nodes that are done with it.
    """

    def __init__(self, coordinator: Coordinator, number: int) -> None:
        self._coordinator, self._number = coordinator, number
        self._store = coordinator.store
        self._stop_told = self._over_told = False
        self.answers: dict[int, dict[str, Any]] = {}

    def look(self) -> None:
        """Take up the answers that have come."""
        for other in self._coordinator.others:
            if other not in self.answers and (answer := self._store.get(f"did/{self._number}/{other}")) is not None:
                self.answers[other] = answer

    def tell_stop(self) -> None:
        """Have the others' processes asked to stop, as by SIGTERM."""
        if not self._stop_told:
            self._stop_told = True
            self._store.put(f"stop/{self._number}", True)

    def tell_over(self) -> None:
        """Have the others end what they still do for it."""
        if not self._over_told:
            self._over_told = True
            self._store.put(f"over/{self._number}", True)

    def finish(self) -> dict[int, dict[str, Any]]:
        """The answers of all, by node; waits for them.

        Raises:
            LostNode: one of them is gone.
            HarnessError: what the first of them that failed raised, of the same kind.
        """
        self._wait()
        for other, answer in sorted(self.answers.items()):
            raise_told(other, answer)
        return self.answers

    def _wait(self) -> None:
        """Until all have answered."""
        while True:
            self.look()
            if self._coordinator.lost:
                raise self._coordinator.lost_error()
            if len(self.answers) == len(self._coordinator.others):
                return
            time.sleep(LOOK_S)

    def stops(self) -> bool:
        """Whether a node was asked to stop, or its processes have."""
        self.look()
        return any(map(_stopped, self.answers.values()))

    def failed(self) -> bool:
        """Whether the processes of a node have failed, or it is lost."""
        self.look()
        return bool(self._coordinator.lost) or any(map(_failed, self.answers.values()))

    def end_compute(self, *, stopped: bool, failed: bool) -> Elsewhere:
        """What became of the processes of all other nodes, once those of this one have ended.

        Args:
            stopped: these here were asked to stop, and so are those there.
            failed: one of these here failed: those there would wait for it.

        Raises:
            HarnessError: as for `finish`.
        """
        if failed:
            self.tell_over()
        elif stopped:
            self.tell_stop()
        self._wait()
        answers = [answer for answer in self.answers.values() if "error" not in answer]
        if not failed:
            self.finish()
        return Elsewhere(
            failures={int(rank): (code, when) for a in answers for rank, (code, when) in a["failures"].items()},
            outcomes={int(rank): outcome for a in answers for rank, outcome in a["outcomes"].items()},
            stopped=any(answer["stopped"] for answer in answers),
        )

    def events(self, other: int) -> Iterator[dict[str, Any]]:
        """How far a node's share of an evaluation is, as events of `harness.evaluation.lmms.process`, to its end.

        Raises:
            HarnessError: as for `finish`.
        """
        reported: dict[str, int] = {}
        while True:
            self.look()
            done = self._store.get(f"progress/{self._number}/{other}") or {}
            for result, count in done.items():
                if reported.get(result) != count:
                    reported[result] = count
                    yield {"event": "progress", "result": int(result), "done": int(count)}
            if other in self.answers:
                raise_told(other, self.answers[other])
                return
            if other in self._coordinator.lost:
                raise self._coordinator.lost_error()
            time.sleep(LOOK_S)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What became of the other nodes' processes.

    Attributes:
        failures: exit code and time of every one that did not end with 0, by rank.
        outcomes: what each says of its end, by rank; None where it could not say it.
        stopped: one of the nodes was asked to stop.
    """

    failures: dict[int, tuple[int, float]]
    outcomes: dict[int, dict[str, Any] | None]
    stopped: bool


def compute(run_dir: Path, attempt: str, group: Group) -> dict[str, Any]:
    """The command to run the processes of a group on every other node."""
    return {
        "do": "compute",
        "run_dir": str(run_dir),
        "attempt": attempt,
        "address": group.address,
        "port": group.port,
        "processes": group.processes,
        "threads": group.threads,
    }


def _stopped(answer: Mapping[str, Any]) -> bool:
    """Whether a node's processes ended as they do where they are asked to stop."""
    codes = {code for code, _ in answer.get("failures", {}).values()}
    return bool(answer.get("stopped")) or codes == {STOPPED}


def _failed(answer: Mapping[str, Any]) -> bool:
    return "error" in answer or any(code != STOPPED for code, _ in answer["failures"].values())


def raise_told(other: int, answer: Mapping[str, Any]) -> None:
    """Raise the error that a node answered with, if it did."""
    if "error" in answer:
        kind = next((kind for kind in FAMILY if kind.exit_code == answer["code"]), HarnessError)
        raise kind(f"node {other}: {answer['error']}")


def check_alike(other: int, said: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises EnvironmentProblem where a node has other code, packages, another working directory or number of GPUs
    than this one."""
    if said["directory"] != own["directory"]:
        raise EnvironmentProblem(
            f"node {other} works in {said['directory']} and node 0 in {own['directory']}",
            hint="start the command in the same directory on every node: the recipe's paths are relative to it",
        )
    pairs = _differences(said["where"], own["where"])
    differing = [f"{name} {there!r} there and {ours!r} here" for name, there, ours in pairs]
    if differing:
        raise EnvironmentProblem(
            f"node {other} is not like node 0: {'; '.join(differing[:3])}",
            hint="use one environment on all nodes, on a shared file system or in one container image",
        )
    if said["gpus"] != own["gpus"]:
        raise EnvironmentProblem(
            f"node {other} sees {said['gpus']} GPUs and node 0 {own['gpus']}",
            hint="give every node the same number: CUDA_VISIBLE_DEVICES, or srun --gpus-per-node",
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in _SAME:
        ours, theirs = here[key], there[key]
        if isinstance(ours, dict) and isinstance(theirs, dict):
            names = sorted(ours.keys() | theirs.keys())
            yield from ((n, theirs.get(n), ours.get(n)) for n in names if theirs.get(n) != ours.get(n))
        elif ours != theirs:
            yield key, theirs, ours


def patience(folder: Path) -> float:
    """Seconds after which what another node wrote into a folder is seen, or never will be: by the file system of the
    folder, or of the nearest above it that is there."""
    import psutil

    place = existing_folder(folder).resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    kind = next((mounts[parent] for parent in (place, *place.parents) if parent in mounts), "")
    return LOCAL_S if kind in _LOCAL else SHARED_S


def appears(path: Path, within: float = SHARED_S) -> bool:
    """Whether a file is there within so many seconds."""
    gives_up = time.monotonic() + within
    while not path.exists():
        if time.monotonic() > gives_up:
            return False
        with suppress(OSError):
            os.listdir(path.parent)  # noqa: PTH208 - has a network file system look again
        time.sleep(LOOK_S)
    return True


def code_of(error: BaseException | None) -> int:
    """The exit code of a command that ends with this error."""
    if error is None:
        return 0
    if isinstance(error, Exception):
        return explained(error)[1]
    return STOPPED if isinstance(error, KeyboardInterrupt) else FAILED


def _named(nodes: Sequence[int]) -> str:
    return f"node{'s' if len(nodes) > 1 else ''} {', '.join(map(str, nodes))}"
