"""A run's folder: pinned inputs, timed stages, one process at a time, room on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.common.errors import DataError, EnvironmentProblem, StaleError
from harness.common.hashing import digest
from harness.records import run_folder
from harness.records.ledger import BESIDE, read_events
from harness.records.run_folder import check_ledger_kept, stage
from tests.harness.worlds.run_builder import build_run, recipe

if TYPE_CHECKING:
    from pathlib import Path


def test_other_inputs_are_refused_by_name(tmp_path: Path) -> None:
    run_folder.pin(tmp_path, "data", "a" * 64)
    run_folder.pin(tmp_path, "weights", "b" * 64)
    run_folder.pin(tmp_path, "data", "a" * 64)
    with pytest.raises(StaleError, match="other data") as caught:
        run_folder.pin(tmp_path, "data", "c" * 64)
    assert caught.value.exit_code == 5
    inputs = json.loads((tmp_path / "inputs.json").read_text())
    seal = inputs.pop("seal")
    assert inputs == {"schema": 1, "data": "a" * 64, "weights": "b" * 64}
    assert seal == digest(inputs), "a value that changes on the disk is noticed"


def test_a_failed_stage_tells_what_it_cost_too(tmp_path: Path) -> None:
    seconds = 100.0

    def fail() -> None:
        nonlocal seconds
        with run_folder.stage(tmp_path, "eval", "eval", now=lambda: seconds):
            seconds += 2.5
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    (event,) = read_events(tmp_path / "ledger.jsonl")
    assert event["stage"] == "eval"
    assert event["seconds"] == {"eval": 2.5}


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path) -> None:
    run_folder.check_disk(tmp_path / "not" / "there" / "yet", needed=1)
    with pytest.raises(EnvironmentProblem, match="GB of disk are free") as caught:
        run_folder.check_disk(tmp_path / "not" / "there" / "yet", needed=2**80)
    assert caught.value.exit_code == 3


def test_two_processes_never_work_on_one_run(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from harness.common.hashing import digest
from harness.records import run_folder
from harness.common.errors import EnvironmentProblem
try:
    with run_folder.lock_run(Path({str(tmp_path)!r})):
        print("alone")
except EnvironmentProblem as error:
    print("refused", error)
"""
    with run_folder.lock_run(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert other.stdout.startswith("refused another process is working on")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == "alone\n"


def test_a_ledger_that_is_gone_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    check_ledger_kept(tmp_path)
    run_dir = build_run(recipe(tmp_path))
    ledger = run_dir / "ledger.jsonl"
    check_ledger_kept(run_dir)
    (run_dir / "checkpoints" / "resume-000020").mkdir(parents=True)
    ledger.write_text(ledger.read_text() + "\n")
    check_ledger_kept(run_dir)
    ledger.unlink()
    with pytest.raises(DataError, match=r"ledger.jsonl: holds no training.*holds its checkpoints") as told:
        check_ledger_kept(run_dir)
    assert "bring the ledger back" in str(told.value.hint)


@pytest.mark.parametrize("left", [None, 0, 1], ids=["gone", "empty", "a line"])
def test_seconds_of_evaluations_beside_the_training_do_not_go_unseen(tmp_path: Path, left: int | None) -> None:
    check_ledger_kept(tmp_path)
    beside = tmp_path / BESIDE
    for _ in range(2):
        with stage(tmp_path, "eval", "eval", ledger_file=BESIDE):
            pass
        check_ledger_kept(tmp_path)
    lines = beside.read_text().splitlines(keepends=True)
    beside.write_text("".join([*lines, "torn by a ki"]))
    check_ledger_kept(tmp_path)
    beside.unlink()
    if left is not None:
        beside.write_text("".join(lines[:left]))
    with pytest.raises(DataError, match=rf"{BESIDE}: holds {left or 0} of the 2 lines") as told:
        check_ledger_kept(tmp_path)
    assert "or delete" in str(told.value.hint)
    next(tmp_path.glob("ledger-beside.json")).unlink()
    check_ledger_kept(tmp_path)
