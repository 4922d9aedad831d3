"""The smoke run in two processes is the run of one, also when a process, the command or a scheduler ends it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from harness.records.ledger import read_events, read_steps

from .conftest import PAIR, Ran, harness

pytestmark = pytest.mark.slow
ALONE = "tiny_smoke_regate"
TWO = ("train", str(PAIR[1]), "train.micro_batch=8", "devices.processes=2", "devices.threads=1")


def start(pair: Ran, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", *TWO, *overrides]
    return subprocess.Popen(command, cwd=pair.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def workers_at(pair: Ran, name: str, parent: subprocess.Popen[str], steps: int) -> list[psutil.Process]:
    """The training processes, by rank, once so many steps are done."""
    deadline = time.monotonic() + 240
    while True:
        assert parent.poll() is None, parent.stderr.read() if parent.stderr else ""
        assert time.monotonic() < deadline
        folders = list((pair.folder / "results" / "runs").glob(f"{name}-*/ledger.jsonl"))
        if folders and len(read_steps(folders[0])) >= steps:
            break
        time.sleep(0.01)
    found = [child for child in psutil.Process(parent.pid).children() if "harness.training.worker" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.cmdline()[-1]))


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=20)
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def same_run(pair: Ran, name: str) -> None:
    """Losses, counts, running losses and weights of the run that one process made."""
    ours, theirs = (pair.run_dir(which) for which in (name, ALONE))
    steps, wanted = read_steps(ours / "ledger.jsonl"), read_steps(theirs / "ledger.jsonl")
    assert len(steps) == len(wanted) == 60
    for step, want in zip(steps, wanted, strict=True):
        assert step["loss"] == pytest.approx(want["loss"], abs=1e-5)
        assert step["grad_norm"] == pytest.approx(want["grad_norm"], rel=1e-4)
        assert step["keep_ratio"] == want["keep_ratio"]
        assert step["devices"] == 2
        for count in ("valid", "visual", "target", "active", "scored"):
            assert step["counts"][count] == want["counts"][count]
    one, two = (np.load(folder / "difficulty" / "m.e1.npy") for folder in (ours, theirs))
    np.testing.assert_array_equal(one != 0, two != 0)  # what the gate let compute is the same, target by target
    np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-4)
    for step in (30, 60):
        one, two = (
            load_file(folder / "checkpoints" / f"step-{step:06d}" / "model.safetensors") for folder in (ours, theirs)
        )
        assert one.keys() == two.keys()
        for tensor, value in one.items():
            torch.testing.assert_close(value, two[tensor], rtol=1e-3, atol=2e-5)


def test_two_processes_are_one_run(pair: Ran) -> None:
    done = harness(pair.folder, *TWO, "name=whole")
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("train whole 60/60") == 1
    same_run(pair, "whole")
    stages = [event for event in read_events(pair.run_dir("whole") / "ledger.jsonl") if event["event"] == "stage"]
    assert all(event["devices"] == 2 for event in stages if event["stage"] in ("load", "checkpoint"))


def test_a_sharded_run_ended_in_every_way_is_still_the_same_run(pair: Ran) -> None:
    full = ("name=parts", "devices.sharding=full")
    # A process dies: the run ends with one message, and takes the other processes with it.
    parent = start(pair, *full)
    workers = workers_at(pair, "parts", parent, 22)
    workers[1].kill()
    _, stderr = parent.communicate(timeout=60)
    assert parent.returncode == 1, stderr
    assert "training process 1 ended early (killed by SIGKILL)" in stderr
    assert "Traceback" not in stderr
    assert gone(workers)
    # The command itself dies: nothing goes on without it.
    parent = start(pair, *full)
    workers = workers_at(pair, "parts", parent, 25)
    parent.kill()
    parent.communicate(timeout=60)
    assert gone(workers)
    # A scheduler's notice: one checkpoint after the same step of all, and the code that says so.
    parent = start(pair, *full)
    workers = workers_at(pair, "parts", parent, 30)
    parent.send_signal(signal.SIGTERM)
    _, stderr = parent.communicate(timeout=60)
    assert parent.returncode == 75, stderr
    assert gone(workers)
    folder = pair.run_dir("parts")
    kept = len(read_steps(folder / "ledger.jsonl"))
    assert f"stopped after step {kept} of 60" in stderr
    assert [path.name for path in (folder / "checkpoints").glob("resume-*")] == [f"resume-{kept:06d}"]
    # What only one process can see is told once, with its own code.
    journal = folder / "difficulty" / ("journal.e0.rank1" if kept < 45 else "journal.e1.rank1")
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 2])
    failed = harness(pair.folder, *TWO, *full)
    assert failed.returncode == 5, failed.stderr
    assert failed.stderr.count("the journal is damaged") == 1
    assert "Traceback" not in failed.stderr
    journal.write_bytes(whole)
    done = harness(pair.folder, *TWO, *full)
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"at step {kept}" in done.stderr
    same_run(pair, "parts")
