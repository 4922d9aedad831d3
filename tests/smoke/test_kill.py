"""A run killed by SIGKILL in every stage, and started again each time, ends in the record of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from harness.records.ledger import read_steps
from harness.records.record import strip_times

from .conftest import PAIR, Ran, harness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow
NAME = "tiny_smoke_regate"


def _ledger_steps(folder: Path) -> int:
    ledgers = list((folder / "results" / "runs").glob(f"{NAME}-*/ledger.jsonl"))
    return len(read_steps(ledgers[0])) if ledgers else 0


STAGES: dict[str, Callable[[Path], bool]] = {
    "data": lambda folder: any((folder / "workspace" / "data").glob("*tmp*")),
    "weights": lambda folder: (
        any((folder / "workspace" / "weights").glob("tiny-*/*tmp*"))
        or any((folder / "workspace" / "weights").glob("tiny-*/tower"))
    ),
    "reference": lambda folder: any((folder / "workspace" / "stores").glob("reference-*/manifest.json")),
    "train": lambda folder: _ledger_steps(folder) >= 33,
    "train again": lambda folder: _ledger_steps(folder) >= 47,
    "evaluate": lambda folder: any((folder / "results" / "runs").glob(f"{NAME}-*/eval/step-*/shapes.json")),
}


def _kill_when(folder: Path, reached: Callable[[Path], bool]) -> None:
    """Start the run in a process group of its own and kill the whole group as soon as the stage is reached."""
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "run", str(PAIR[1])],
        cwd=folder,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    try:
        while not reached(folder):
            assert process.poll() is None, "the run ended before the stage was seen"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_killed_in_every_stage_it_ends_in_the_same_record(pair: Ran, tmp_path: Path) -> None:
    for reached in STAGES.values():
        _kill_when(tmp_path, reached)
    done = harness(tmp_path, "run", PAIR[1])
    assert done.returncode == 0, done.stderr[-4000:]
    killed = Ran(tmp_path, done.stdout, done.stderr).run_dir(NAME)
    ours = json.loads((killed / "record.json").read_text())
    theirs = json.loads((pair.run_dir(NAME) / "record.json").read_text())
    assert ours["totals"]["attempts"] > theirs["totals"]["attempts"]
    assert strip_times(ours) == strip_times(theirs)


def test_terminated_while_training_it_keeps_a_checkpoint_and_says_so(pair: Ran) -> None:
    """SIGTERM, as a scheduler sends it: exit 75, and the same command goes on from that very step."""
    arguments = ["train", str(PAIR[0]), "name=preempted"]
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments], cwd=pair.folder, stderr=subprocess.PIPE, text=True
    )
    while not list((pair.folder / "results" / "runs").glob("preempted-*/ledger.jsonl")) or not read_steps(
        pair.run_dir("preempted") / "ledger.jsonl"
    ):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert "resumes" in stderr
    done = len(read_steps(pair.run_dir("preempted") / "ledger.jsonl"))
    again = harness(pair.folder, *arguments)
    assert again.returncode == 0, again.stderr[-4000:]
    assert f"at step {done}" in again.stderr
