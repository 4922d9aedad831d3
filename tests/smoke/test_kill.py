"""A run killed by SIGKILL in every stage, and started again each time, ends in the record of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.records.ledger import read_steps
from harness.records.record import strip_times
from tests import halting
from tests.warm import warm_python

from .conftest import PAIR, Ran, harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
NAME = "tiny_smoke_regate"

STAGES = {
    "data": halting.Moment("call", "harness.data.shapes.render:encode", count=300),
    "weights": halting.Moment("call", "torch.optim.adamw:AdamW.step", count=10),
    "reference": halting.Moment("call", "regate.reference:ReferenceWriter.write", count=3),
    "train": halting.step(32),
    "train again": halting.step(46),
    "evaluate": halting.Moment("open", r"/eval/step-000060/shapes\.answers-0\.jsonl$"),
}
"""Half the clips are drawn; the tower has learned ten steps; some reference losses are there; training is between two
checkpoints; the first of two checkpoints is evaluated."""


def left_by(stage: str, folder: Path) -> bool:
    """Whether the kill left what belongs to the stage, half done."""
    workspace, runs = folder / "workspace", folder / "results" / "runs"
    match stage:
        case "data":
            return any((workspace / "data").glob(".shapes-*.tmp/clips/*/*.mp4"))
        case "weights":
            return any((workspace / "weights").glob("tiny-*/.tower*.tmp"))
        case "reference":
            return any((workspace / "stores").glob("reference-*/done.npy"))
        case "train" | "train again":
            (ledger,) = runs.glob(f"{NAME}-*/ledger.jsonl")
            return len(read_steps(ledger)) == STAGES[stage].where["step"] + 1
        case _:
            results = sorted(path.parent.name for path in runs.glob(f"{NAME}-*/eval/step-*/shapes.json"))
            return results == ["step-000030"]


def test_killed_in_every_stage_it_ends_in_the_same_record(pair: Ran, tmp_path: Path) -> None:
    command = ("-m", "harness", "run", PAIR[1])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for stage, moment in STAGES.items():
        python = sys.executable if stage == "train" else warm_python()
        with halting.halted(moment, *command, cwd=tmp_path, python=python, **quiet) as run:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait()
        assert left_by(stage, tmp_path), stage
    done = harness(tmp_path, "run", PAIR[1])
    assert done.returncode == 0, done.stderr[-4000:]
    killed = Ran(tmp_path, done.stdout, done.stderr).run_dir(NAME)
    ours = json.loads((killed / "record.json").read_text())
    theirs = json.loads((pair.run_dir(NAME) / "record.json").read_text())
    assert ours["totals"]["attempts"] > theirs["totals"]["attempts"]
    assert strip_times(ours) == strip_times(theirs)


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
)
def test_asked_to_stop_while_training_it_keeps_a_checkpoint_and_says_so(
    pair: Ran, number: signal.Signals, to_group: bool
) -> None:
    """SIGTERM to the command or, as schedulers and torchrun send it, to its whole process group with those that load
    the data; Ctrl-C: exit 75, and the same command goes on from that very step."""
    name = f"preempted-{number.name.lower()}-{'group' if to_group else 'alone'}"
    arguments = ["train", str(PAIR[0]), f"name={name}", "train.workers=2"]
    stderr = {"stderr": subprocess.PIPE}
    with halting.halted(halting.step(7), "-m", "harness", *arguments, cwd=pair.folder, **stderr) as train:
        if to_group:
            os.killpg(train.process.pid, number)
        else:
            train.process.send_signal(number)
        _, said = train.process.communicate()
        assert train.process.returncode == 75, said
    assert "resumes" in said
    assert "Traceback" not in said
    done = len(read_steps(pair.run_dir(name) / "ledger.jsonl"))
    assert done == 9, "the step that was under way, and one more in which all processes agree to stop"
    again = harness(pair.folder, *arguments)
    assert again.returncode == 0, again.stderr[-4000:]
    assert f"at step {done}" in again.stderr
