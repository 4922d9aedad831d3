"""Two nodes, simulated on this machine, are one run; a node that is told to stop or is killed ends it on both, and a
process that is killed is started again on both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from harness.records.ledger import read_steps
from harness.training.launching.agent import free_port
from tests import halting
from tests.soak.full_disk import possible
from tests.waiting import HUNG_S
from tests.warm import warm_python

from .test_processes import TRAIN, gone, same_run, workers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.halting import Halted

    from .conftest import Ran

pytestmark = pytest.mark.slow
COMMAND = ("-m", "harness", *TRAIN, "devices.processes=1")


def slurm(job: int, node: int, *, local: int = 0) -> dict[str, str]:
    """The environment of a task of a step with two nodes."""
    step = {"ID": "0", "NUM_NODES": "2", "NUM_TASKS": "2", "NODELIST": "127.0.0.[1-2]"}
    place = {"SLURM_JOB_ID": str(job), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
    return {**os.environ, **{f"SLURM_STEP_{key}": value for key, value in step.items()}, **place}


def job_of() -> int:
    """The number of a job, another one each time: the nodes meet at a port that follows from it."""
    return free_port() % 12000


@contextmanager
def node_1(pair: Ran, job: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [warm_python(), *COMMAND, *arguments]
    process = subprocess.Popen(
        command, cwd=pair.folder, env=slurm(job, 1), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        halting.end(process)


@contextmanager
def both(
    pair: Ran, step: int, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Iterator[tuple[Halted, subprocess.Popen[str]]]:
    """Two nodes in training, the first process of which waits where a step has just been done."""
    job = job_of()
    with ExitStack() as stack:
        other = stack.enter_context(node_1(pair, job, *arguments))
        with monkeypatch.context() as patched:
            for name, value in slurm(job, 0).items():
                patched.setenv(name, value)
            pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
            moment = halting.step(step)
            first = halting.halted(moment, *COMMAND, *arguments, cwd=pair.folder, python=warm_python(), **pipes)
            training = stack.enter_context(first)
        yield training, other


def test_two_nodes_are_one_run_whatever_ends_an_attempt(pair: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "name=nodes"
    # A task beside the first one of its node has nothing to do.
    beside = subprocess.run(
        [warm_python(), *COMMAND, name], env=slurm(1, 0, local=1), cwd=pair.folder, timeout=HUNG_S, check=False
    )
    assert beside.returncode == 0
    # A scheduler's notice to one node, then to both at once: one checkpoint of all, and the same code on both.
    for step, to_first in ((9, False), (14, True)):
        with both(pair, step, monkeypatch, name) as (training, other):
            other.send_signal(signal.SIGTERM)
            if to_first:
                training.process.send_signal(signal.SIGTERM)
            training.go_on()
            _, stderr = training.process.communicate(timeout=HUNG_S)
            assert training.process.returncode == 75, stderr
            assert other.wait(HUNG_S) == 75
            assert "Traceback" not in stderr
        kept = done(pair)
        assert kept > step
        assert f"stopped after step {kept} of 60" in stderr
    # The first node dies: its processes die with it; the other one ends its own and says which node it was.
    with both(pair, 19, monkeypatch, name) as (training, other):
        workers = workers_of(pair, "nodes")
        training.process.kill()
        _, stderr = other.communicate(timeout=HUNG_S)
        assert other.returncode == 1, stderr
        assert "node 0 is gone" in stderr
        assert "Traceback" not in stderr
        assert gone(workers, within=5.0)
    # The other node dies: the first one says which it was.
    with both(pair, 25, monkeypatch, name) as (training, other):
        workers = workers_of(pair, "nodes")
        other.kill()
        assert gone(workers[1:], within=5.0)
        training.go_on()
        _, stderr = training.process.communicate(timeout=HUNG_S)
        assert training.process.returncode == 1, stderr
        assert "node 1 of 2 is lost" in stderr
        assert "Traceback" not in stderr
    # One node goes on alone.
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with halting.halted(halting.step(33), *COMMAND, name, cwd=pair.folder, python=warm_python(), **pipes) as training:
        training.process.send_signal(signal.SIGTERM)
        _, stderr = training.process.communicate(timeout=HUNG_S)
        assert training.process.returncode == 75, stderr
    # torchrun starts two again; a process of the second one is killed, and both nodes start theirs anew.
    port = free_port()
    launcher = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--master-port", str(port))
    command = (*launcher, "--master-addr", "127.0.0.1", "--node-rank")
    arguments = (*COMMAND, name, "devices.restarts=1")
    second = [warm_python(), *command, "1", *arguments]
    with ExitStack() as stack:
        other = subprocess.Popen(second, cwd=pair.folder, stderr=subprocess.PIPE, text=True)
        stack.callback(halting.end, other)
        first = halting.halted(
            halting.step(41), *command, "0", *arguments, cwd=pair.folder, python=warm_python(), **pipes
        )
        training = stack.enter_context(first)
        workers_of(pair, "nodes")[1].kill()
        _, stderr = training.process.communicate(timeout=HUNG_S)
        assert training.process.returncode == 0, stderr
        assert other.wait(HUNG_S) == 0
        assert "training process 1 ended early (killed by SIGKILL)" in stderr
        assert "starting again in 10 s (devices.restarts: 1 of 1)" in stderr
        assert "Traceback" not in stderr
    steps = read_steps(pair.run_dir("nodes") / "ledger.jsonl")
    assert [steps[number]["devices"] for number in (15, 33, 59)] == [2, 1, 2]
    same_run(pair, "nodes", devices=frozenset({1, 2}))


@pytest.mark.skipif(not possible(), reason="this machine lets nobody mount a tmpfs in a namespace")
def test_a_folder_that_one_node_lacks_ends_both_in_seconds_by_name(tmp_path: Path) -> None:
    """Its results lie on a disk of its own, where those of node 0 are not seen."""
    (tmp_path / "results").mkdir()
    command, job = (sys.executable, *COMMAND, "name=apart"), job_of()
    mount = 'mount -t tmpfs tmpfs results && exec "$@"'
    alone = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount)
    with ExitStack() as stack:
        nodes = []
        for number, before in enumerate(((), (*alone, "sh"))):
            process = subprocess.Popen(
                [*before, *command], cwd=tmp_path, env=slurm(job, number), text=True, stderr=subprocess.PIPE
            )
            stack.callback(halting.end, process)
            nodes.append(process)
        said = [process.communicate(timeout=HUNG_S)[1] for process in nodes]
    assert "results: node 1 does not see the same folder there as node 0" in said[0]
    assert "node 1: results: is not the folder of node 0, whose file is not seen here" in said[1]
    assert "node 1: workspace/stores" not in said[1]
    for process, text in zip(nodes, said, strict=True):
        assert process.returncode == 3, text
        assert "Traceback" not in text
    assert not list(tmp_path.glob("results/.shared*"))


def done(pair: Ran) -> int:
    return len(read_steps(pair.run_dir("nodes") / "ledger.jsonl"))
