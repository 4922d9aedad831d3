"""The agent of every node but the first: it does what node 0 tells it, and ends as node 0 does.

The commands, each with its answer:

    look        folders, mark, within                  which folders hold node 0's file of that name
    compute     run_dir, attempt, address, port,       failures and outcomes of this node's processes, by rank
                processes, threads
    answer      folder, job, processes, threads        nothing: the answers are on the shared disk
"""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.errors import DataError, EnvironmentProblem, HarnessError
from harness.common.exits import explained
from harness.common.files import read_json, write_json
from harness.common.signals import stop_requests
from harness.evaluation import shares
from harness.evaluation.lmms.process import CHILD, visible_gpus
from harness.training.launching import agent
from harness.training.launching.nodes import (
    BEAT_S,
    LOOK_S,
    LOST_S,
    SHARED_S,
    Heart,
    StoreGone,
    appears,
    introduction,
    patience,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.training.launching.nodes import Store
    from harness.training.launching.place_in_job import Node


def follow(node: Node, store: Store, say: Callable[[str], None]) -> int:
    """Do what node 0 tells this node, until it tells the end.

    Returns:
        Node 0's exit code.

    Raises:
        HarnessError: node 0 is gone.
        KeyboardInterrupt: this node was told to stop while it did nothing that has to be kept; node 0 knows it.
    """
    follower = _Follower(node, store, say)
    try:
        code = follower.follow()
    except KeyboardInterrupt:
        store.put(f"left/{node.rank}", True)
        raise
    if code:
        say(f"node {node.rank}: ended with node 0 (exit {code}), which says why")
    return code


class _Follower:
    def __init__(self, node: Node, store: Store, say: Callable[[str], None]) -> None:
        self.node, self.store, self.say = node, store, say
        self._heart: Heart | None = None
        self._number = 0

    def follow(self) -> int:
        self.store.put(f"hello/{self.node.rank}", introduction())
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()
        while True:
            end = self.store.get("end")
            if end is not None:
                self.store.put(f"bye/{self.node.rank}", True)
                return int(end["code"])
            command = self.store.get(f"do/{self._number}")
            if command is not None:
                self.store.put(f"did/{self._number}/{self.node.rank}", self._do(command))
                self._number += 1
            self._check_node_0()
            time.sleep(LOOK_S)

    def _beat(self) -> None:
        beats = 0
        try:
            while True:
                self.store.put(f"beat/{self.node.rank}", beats := beats + 1)
                time.sleep(BEAT_S)
        except StoreGone:
            return  # the main thread finds it out, too

    def _check_node_0(self) -> None:
        """Raises StoreGone where its heart has stopped: its store may outlive it, where the launcher keeps it."""
        if self._heart is None:
            self._heart = Heart(self.store, 0, LOST_S) if self.store.get("welcome") else None
        elif self._heart.stopped():
            raise StoreGone(
                f"node 0 is lost: nothing was heard for {LOST_S:.0f} s",
                hint="the same command, on every node again, resumes the run",
            )

    def _do(self, command: Mapping[str, Any]) -> dict[str, Any]:
        try:
            match command["do"]:
                case "look":
                    return self._look(command)
                case "compute":
                    return self._compute(command)
                case "answer":
                    return self._answer(command)
                case unknown:
                    raise HarnessError(f"node 0 wants {unknown!r:.40}, which this version does not know")
        except StoreGone:
            raise
        except Exception as error:  # noqa: BLE001 - node 0 raises it
            message, code = explained(error)
            return {"error": message, "code": code}

    def _look(self, command: Mapping[str, Any]) -> dict[str, Any]:
        seen, began = [], time.monotonic()
        for folder in map(Path, command["folders"]):
            if appears(folder / command["mark"], patience(folder) + began - time.monotonic()):
                write_json(folder / f"{command['mark']}-{self.node.rank}", {"node": self.node.rank})
                seen.append(str(folder))
            else:
                self.say(f"node {self.node.rank}: {folder}: is not the folder of node 0, whose file is not seen here")
        return {"seen": seen}

    def _compute(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """This node's processes of a training or of a pass of the teacher, to their end."""
        run_dir = Path(command["run_dir"])
        folder = run_dir / agent.FOLDER
        _wait_for_attempt(folder / agent.JOB, command["attempt"])
        group = agent.Group(
            node=self.node.rank,
            nodes=self.node.nodes,
            address=command["address"],
            port=command["port"],
            processes=command["processes"],
            threads=command["threads"],
        )
        with stop_requests() as stopping:
            failures = agent.run(
                run_dir, group, lambda: stopping() or self._told("stop"), lambda: self._told("over") or self._ended()
            )
            stopped = stopping()
        outcomes = {rank: agent.read_outcome(folder, rank) for rank in group.ranks}
        return {"failures": failures, "outcomes": outcomes, "stopped": stopped}

    def _answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """This node's shares of an evaluation."""
        job_file = Path(command["job"])
        if not appears(job_file):
            raise _not_shared(job_file)
        job = read_json(job_file, "the job of an evaluation")
        gpus = visible_gpus(command["processes"])
        own_shares = shares.of_node(job, gpus, self.node.rank, self.node.nodes, command["threads"])
        done: dict[int, dict[int, int]] = {}
        with closing(shares.answer(CHILD, Path(command["folder"]), own_shares)) as events:
            for number, event in events:
                if self._told("over") or self._ended():
                    return {}
                done.setdefault(event["result"], {})[number] = event["done"]
                counts = {result: sum(counts.values()) for result, counts in done.items()}
                self.store.put(f"progress/{self._number}/{self.node.rank}", counts)
        return {}

    def _told(self, what: str) -> bool:
        return self.store.get(f"{what}/{self._number}") is not None

    def _ended(self) -> bool:
        self._check_node_0()
        return self.store.get("end") is not None


def _wait_for_attempt(job_file: Path, attempt: str) -> None:
    """Until node 0's job of this attempt is seen here, and no earlier one.

    Raises:
        EnvironmentProblem: it is not.
    """
    gives_up = time.monotonic() + SHARED_S
    while time.monotonic() < gives_up and appears(job_file, gives_up - time.monotonic()):
        try:
            if read_json(job_file, "the job of a worker").get("attempt") == attempt:
                return
        except DataError:
            continue  # it was put into place at this moment
        time.sleep(LOOK_S)
    raise _not_shared(job_file)


def _not_shared(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path}: node 0 wrote it, and it is not seen here",
        hint="put paths.results on a file system that all nodes share, under the same path",
    )
