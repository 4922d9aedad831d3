"""Provenance: what is there is named, what is not does no harm, and nothing tells whose machine it was."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING

import regate
from harness.records import provenance
from harness.records.ledger import Ledger, read_events
from harness.report.tables import make_tables
from tests.harness.worlds.run_builder import WHERE, build_run, finish, recipe

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def _git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


def test_collect_names_versions_and_hardware_and_is_json() -> None:
    found = provenance.collect(threads=3)
    assert json.loads(json.dumps(found)) == found
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["packages"]["regate"] == regate.__version__
    assert found["hardware"]["threads"] == 3
    assert found["hardware"]["logical_cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 1e8


def test_no_host_or_path_in_it() -> None:
    text = json.dumps(provenance.collect())
    assert platform.node() not in text or len(platform.node()) < 4
    assert "/home/" not in text
    assert f"/{getpass.getuser()}/" not in text


def test_packages_that_are_not_installed_are_left_out() -> None:
    assert provenance.packages(("numpy", "no-such-distribution-here")) == {"numpy": metadata.version("numpy")}


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) is None, "no repository"
    _git(tmp_path, "init", "-q")
    assert provenance.git_state(tmp_path) is None, "no commit yet"
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness" / "a.py").write_text("a = 1\n")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    state = provenance.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "results.txt").write_text("a result is not code")
    assert provenance.git_state(tmp_path) == state
    (tmp_path / "harness" / "a.py").write_text("a = 2\n")
    assert provenance.git_state(tmp_path) == {**state, "dirty": True}


def test_git_state_of_a_folder_inside_another_repository(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert provenance.git_state(tmp_path / "site-packages") is None


def test_git_absent_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) is None
    assert "numpy" in provenance.collect()["packages"]


def test_an_attempt_on_something_else_is_in_the_record_and_under_the_table(tmp_path: Path) -> None:
    made = recipe(tmp_path, "moved", gate=True)
    run_dir = build_run(made, killed_at=27)
    other = {**WHERE, "python": "3.12.1", "packages": {**WHERE["packages"], "torch": "9.9"}}
    with Ledger(run_dir / "ledger.jsonl") as ledger:
        ledger.append(provenance.EVENT, where=other)
    events = read_events(run_dir / "ledger.jsonl")
    assert provenance.last(WHERE, events) == other
    assert provenance.last(WHERE, []) == WHERE
    (change,) = finish(made, run_dir)["provenance"]["changes"]
    assert change["changed"] == {
        "python": [WHERE["python"], "3.12.1"],
        "packages.torch": [WHERE["packages"].get("torch"), "9.9"],
    }
    notes = next(table for table in make_tables(tmp_path) if table.name == "pairs").notes
    assert f"{made.run_id}: attempt {change['attempt']} ran on something else" in notes[-1]
    assert "packages.torch, python" in notes[-1]
    same = recipe(tmp_path, "stayed")
    assert "changes" not in finish(same, build_run(same, killed_at=27))["provenance"]


def test_the_ledger_also_says_what_the_first_attempt_ran_on(tmp_path: Path) -> None:
    other = {**WHERE, "python": "3.12.1"}
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.append(provenance.EVENT, where=WHERE)
        ledger.append("start", step=0, steps=2, world=1)
    first = read_events(tmp_path / "ledger.jsonl")
    assert provenance.first(first) == provenance.last({}, first) == WHERE
    assert provenance.changes(WHERE, first) == []
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.append(provenance.EVENT, where=other)
    events = read_events(tmp_path / "ledger.jsonl")
    assert provenance.first(events) == WHERE
    (change,) = provenance.changes(WHERE, events)
    assert change["changed"] == {"python": [WHERE["python"], "3.12.1"]}
    assert provenance.first(events[1:]) is None, "a ledger of an earlier version says changes alone"
