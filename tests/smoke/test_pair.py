"""The whole path on the shipped smoke recipes: videos in, table out, on the real accelerate, lmms-eval and MLflow."""

from __future__ import annotations

import csv
import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from harness.records.evaluations import read_item_lines
from harness.records.ledger import read_events, read_steps
from harness.records.record import strip_times
from regate.schedule import DualCycle
from tests.soak.readers import without_reader
from tests.soak.stopped import files_of

from .conftest import PAIR, Ran, harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
ARMS = ("tiny_smoke_baseline", "tiny_smoke_regate")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_table_names_both_arms_and_is_on_disk(pair: Ran) -> None:
    assert "baseline" in pair.stdout
    assert "ReGATE" in pair.stdout
    tables = sorted((pair.folder / "results" / "tables").iterdir())
    assert {path.suffix for path in tables} >= {".md", ".csv"}
    for path in tables:
        if path.suffix == ".csv":
            assert list(csv.reader(path.open()))[1:], path
    assert list((pair.folder / "results" / "figures").glob("*.svg"))


@pytest.mark.parametrize("name", ARMS)
def test_the_record_is_complete(pair: Ran, name: str) -> None:
    loaded = pair.record(name)
    assert loaded["status"] == "complete"
    kept = {path.name for path in (pair.run_dir(name) / "checkpoints").iterdir()}
    assert kept == {"step-000030", "step-000060"}, "what it could resume from is gone"
    totals = loaded["totals"]
    counts = totals["counts"]
    assert counts["valid"] == sum(counts[kind] for kind in ("visual", "special", "prompt", "target"))
    assert totals["flops"] <= totals["flops_dense"]
    assert loaded["provenance"]["packages"]["torch"]
    evaluated = [evaluation["step"] for evaluation in loaded["evaluations"]]
    assert evaluated == sorted(evaluated)
    assert evaluated[-1] == totals["steps"]
    for evaluation in loaded["evaluations"]:
        items = read_item_lines(pair.run_dir(name) / "eval" / f"step-{evaluation['step']:06d}" / evaluation["items"])
        assert len(items) == evaluation["counts"]["expected"] == evaluation["counts"]["scored"]
    assert str(pair.folder) not in json.dumps(loaded), "a record names no folder of the machine it was made on"


def test_the_ledger_agrees_with_the_closed_form(pair: Ran) -> None:
    """Eq. 4, step by step: p = 1 keeps every target, p = 1/2 keeps floor(N / 2) of each sample's N."""
    steps = read_steps(pair.run_dir("tiny_smoke_regate") / "ledger.jsonl")
    gate = pair.record("tiny_smoke_regate")["recipe"]["gate"]
    cycle = DualCycle(gate["keep_ratio"], gate["cycle_steps"], gate["dense_steps"], gate["warmup_steps"])
    batch = pair.record("tiny_smoke_regate")["recipe"]["train"]["global_batch"]
    for entry in steps:
        keep = cycle.keep_ratio_at(entry["step"])
        target, scored = entry["counts"]["target"], entry["counts"]["scored"]
        assert entry["keep_ratio"] == keep
        assert keep * target - (batch if keep < 1 else 0) <= scored <= keep * target
    totals = pair.record("tiny_smoke_regate")["totals"]
    assert totals["expected_reduction"] == pytest.approx(1 - cycle.expected_keep(len(steps)))
    # Rounding takes at most one target of a sample in a sparse step; the steps' own sizes vary a little.
    rounding = batch * sum(entry["keep_ratio"] < 1 for entry in steps) / totals["counts"]["target"]
    assert totals["targets_reduction"] == pytest.approx(totals["expected_reduction"], abs=rounding + 0.01)


def test_the_baseline_computes_everything(pair: Ran) -> None:
    counts = pair.record("tiny_smoke_baseline")["totals"]["counts"]
    assert counts["active"] == counts["valid"]
    assert counts["scored"] == counts["target"]


def test_both_arms_saw_the_same_targets(pair: Ran) -> None:
    """Same data, same order: what differs is what was computed of it."""
    seen = [[entry["counts"]["target"] for entry in read_steps(pair.run_dir(name) / "ledger.jsonl")] for name in ARMS]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ARMS)
def test_the_clocks_add_up_to_the_wall_time(pair: Ran, name: str) -> None:
    events = read_events(pair.run_dir(name) / "ledger.jsonl")
    began = next(index for index, event in enumerate(events) if event["event"] == "start")
    ended = next(index for index, event in enumerate(events) if event["event"] == "end")
    load, *counted = events[began + 1 : ended]
    assert load["stage"] == "load", "it was over when the training started"
    clocks = sum(round(value * 1e6) for event in counted for value in event["seconds"].values())
    assert clocks == round(events[ended]["clock"] * 1e6) - round(events[began]["clock"] * 1e6)


def test_mlflow_shows_the_same_numbers(pair: Ran) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{pair.folder / 'results' / 'mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == "regate")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    for name in ARMS:
        loaded = pair.record(name)
        (parent,) = (run for key, run in parents.items() if key.startswith(name))
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        metrics: dict[str, float] = {}
        for run in (parent, *children):
            metrics |= run.data.metrics
        assert loaded["evaluations"][-1]["mean"]["value"] in metrics.values()
        assert float(loaded["totals"]["counts"]["scored"]) in metrics.values()
        assert len(children) >= 2


def test_every_file_has_a_reader(pair: Ran) -> None:
    """What `tests/soak` harms is all that a command leaves: a new file gets an entry there."""
    places, runs = (pair.folder, pair.folder / "workspace"), tuple(str(pair.run_dir(path.stem)) for path in PAIR)
    files = [file for place in places for file in files_of(place)]
    # Other tests kill runs of their own beside the pair.
    files = [file for file in files if "/runs/" not in file or str(pair.folder / file).startswith(runs)]
    files = [file for file in files if ".tmp" not in file]
    assert len(files) > 100
    assert not without_reader(files)


def test_the_same_command_again_repeats_nothing(pair: Ran) -> None:
    before = {name: pair.record(name) for name in ARMS}
    ledgers = {name: sha256(pair.run_dir(name) / "ledger.jsonl") for name in ARMS}
    done = harness(pair.folder, "run", *PAIR)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == pair.stdout
    for name in ARMS:
        assert sha256(pair.run_dir(name) / "ledger.jsonl") == ledgers[name]
        assert strip_times(pair.record(name)) == strip_times(before[name])


def test_keep_ratio_one_is_the_baseline_bit_for_bit(pair: Ran) -> None:
    done = harness(pair.folder, "train", PAIR[1], "gate.keep_ratio=1.0", "name=keep_everything")
    assert done.returncode == 0, done.stderr[-4000:]
    (ours,) = (pair.run_dir("keep_everything") / "checkpoints").glob("step-*060/model.safetensors")
    theirs = pair.run_dir("tiny_smoke_baseline") / ours.relative_to(pair.run_dir("keep_everything"))
    assert sha256(ours) == sha256(theirs)
