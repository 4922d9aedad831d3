"""Nodes that meet in torch's store: who comes, who is alike, who sees the same folders, and how each of them ends."""

from __future__ import annotations

import copy
import os
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from harness.common.errors import DataError, EnvironmentProblem, HarnessError
from harness.common.signals import terminate_as_interrupt
from harness.training.launching import every_node, follower
from harness.training.launching.agent import free_port
from harness.training.launching.follower import follow
from harness.training.launching.nodes import (
    LOCAL_S,
    SHARED_S,
    Coordinator,
    check_alike,
    introduction,
    open_store,
    patience,
)
from harness.training.launching.place_in_job import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.training.launching.nodes import Store


@pytest.fixture
def node() -> Node:
    return Node(0, 2, 0, "SLURM", "127.0.0.1", free_port(), job="test")


@pytest.fixture
def store(node: Node) -> Store:
    return open_store(node)


class Other:
    """Node 1, in a thread, with a connection of its own."""

    def __init__(self, node: Node) -> None:
        self.said: list[str] = []
        self.code: int | None = None
        self._node = replace(node, rank=1)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        self.code = follow(self._node, open_store(self._node), self.said.append)

    def ended(self) -> int | None:
        self._thread.join()
        return self.code


@pytest.fixture
def other(node: Node, store: Store) -> Iterator[Other]:
    yield (second := Other(node))
    store.put("end", {"code": 0})
    second.ended()


def test_the_others_see_the_same_folder_and_end_as_node_0_does(
    node: Node, store: Store, other: Other, tmp_path: Path
) -> None:
    with Coordinator(node, store) as nodes:
        assert len(nodes.hardware) == 1
        nodes.check_shared([tmp_path / "results", tmp_path / "stores"])
        assert not list(tmp_path.glob("*/.shared*"))
    assert other.ended() == 0
    assert not other.said


def test_an_error_of_node_0_is_the_end_of_all(node: Node, store: Store, other: Other) -> None:
    with pytest.raises(DataError), Coordinator(node, store):
        raise DataError("9 media cannot be read")
    assert other.ended() == 4
    assert "node 1: ended with node 0 (exit 4)" in other.said[0]


def test_an_error_of_another_node_is_raised_by_node_0(node: Node, store: Store, other: Other, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("half a line")
    command = {"do": "answer", "job": str(tmp_path / "job.json"), "folder": str(tmp_path)}
    with pytest.raises(DataError, match=r"node 1: .*job\.json: cannot be read"), Coordinator(node, store) as nodes:
        nodes.begin(command).finish()
    assert other.ended() == 4


def test_a_node_that_does_not_come_is_named(node: Node, store: Store) -> None:
    three = replace(node, nodes=3)
    absent = pytest.raises(EnvironmentProblem, match="nodes 1, 2 of 3 did not come")
    with absent, Coordinator(three, store, join_s=0.3):
        raise AssertionError


def test_a_folder_that_is_not_shared_is_found_out(node: Node, store: Store, tmp_path: Path) -> None:
    store.put("hello/1", introduction())
    store.put("bye/1", True)
    store.put("did/0/1", {"seen": []})  # as a node answers that finds nothing at this path
    missed = pytest.raises(EnvironmentProblem, match="node 1 does not see the same folder")
    with missed, Coordinator(node, store) as nodes:
        nodes.check_shared([tmp_path])
    assert not list(tmp_path.iterdir())


def test_a_node_says_which_folders_it_sees(
    node: Node, store: Store, other: Other, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "patience", lambda _: 0.0)
    (tmp_path / "mark").touch()
    folders = [str(tmp_path), str(tmp_path / "not there")]
    with Coordinator(node, store) as nodes:
        answers = nodes.begin({"do": "look", "folders": folders, "mark": "mark"}).finish()
    assert answers[1] == {"seen": [str(tmp_path)]}
    assert other.ended() == 0
    (line,) = other.said
    assert line.startswith(f"node 1: {tmp_path / 'not there'}: is not the folder of node 0")


def test_a_disk_of_one_machine_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"/": "ext4", str(tmp_path / "shared"): "nfs4", str(tmp_path / "shared" / "scratch"): "xfs"}
    mounts = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in kinds.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "shared" / "scratch").mkdir(parents=True)
    for folder, seconds in (("", LOCAL_S), ("shared/absent/run", SHARED_S), ("shared/scratch", LOCAL_S)):
        assert patience(tmp_path / folder) == seconds


def test_a_node_without_a_heartbeat_is_lost_and_stops_node_0(node: Node, store: Store) -> None:
    store.put("hello/1", introduction())
    store.put("beat/1", 7)

    def work() -> None:
        with terminate_as_interrupt(), Coordinator(node, store, lost_s=0.1):
            threading.Event().wait(60)

    with pytest.raises(HarnessError, match="node 1 of 2 is lost") as error:
        work()
    assert error.value.exit_code == 1


def test_node_0_that_cannot_be_reached_is_told() -> None:
    nobody = Node(1, 2, 0, "SLURM", "127.0.0.1", free_port(), job="test")
    with pytest.raises(EnvironmentProblem, match="node 1: node 0 does not answer at 127"):
        open_store(nobody, join_s=0.3)


def test_nodes_that_are_not_alike_are_refused() -> None:
    own = introduction()
    check_alike(1, own, own)
    for change, says in (
        (("where", "packages", "torch"), "torch '0'"),
        (("where", "python"), "python '0'"),
        (("gpus",), "sees 0 GPUs"),
        (("directory",), "works in 0"),
    ):
        other = copy.deepcopy(own)
        part: dict[str, Any] = other
        for key in change[:-1]:
            part = part[key]
        part[change[-1]] = "0"
        with pytest.raises(EnvironmentProblem, match=says):
            check_alike(1, other, {**own, "gpus": 8})


def test_further_processes_of_a_node_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "GROUP_WORLD_SIZE": "1", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert every_node.on_every_node(lambda _: pytest.fail("it works"), pytest.fail) == 0


def test_the_first_process_of_a_node_is_no_rank_of_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    calls: list[Any] = []
    every_node.on_every_node(lambda others: calls.append((others, {*os.environ})), pytest.fail)
    ((others, names),) = calls
    assert others is None
    assert not names & {"TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_RANK", "RANK"}


def test_a_process_that_sees_one_of_its_nodes_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(EnvironmentProblem, match="shows this one 1 of 8") as error:
        every_node.check_gpus(Node(launcher="SLURM", gpus=8))
    assert "--ntasks-per-node 1" in (error.value.hint or "")
    every_node.check_gpus(Node(launcher="SLURM", gpus=1))
    every_node.check_gpus(Node())
