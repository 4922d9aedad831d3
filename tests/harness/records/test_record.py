"""The record: sums of the ledger, the same after a kill, checked when read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.common.errors import DataError, StaleError
from harness.common.files import write_atomic
from harness.records.ledger import Ledger, read_events, read_steps
from harness.records.record import build_record, read_items, read_record, read_records, strip_times
from harness.records.totals import COUNTS, split
from tests.harness.worlds.run_builder import build_pair, build_run, finish, plan_of, recipe


@pytest.mark.parametrize("gate", [False, True])
def test_killed_and_resumed_run_gives_the_same_record_apart_from_times(tmp_path: Path, gate: bool) -> None:
    straight = recipe(tmp_path / "a", gate=gate)
    killed = recipe(tmp_path / "b", gate=gate)
    assert straight.run_id == killed.run_id, "paths are no part of a run's identity"
    first = finish(straight, build_run(straight))
    second = finish(killed, build_run(killed, killed_at=27, noise=5))
    assert first != second
    assert second["totals"]["attempts"] == 2
    assert second["totals"]["repeated"]["steps"] == 7
    assert strip_times(first) == strip_times(second)
    # What is left after stripping still holds everything that was computed.
    assert strip_times(first)["totals"]["counts"] == first["totals"]["counts"]
    assert strip_times(first)["evaluations"][0]["tasks"] == first["evaluations"][0]["tasks"]


def test_clocks_add_up_to_all_the_time_the_ledger_saw(tmp_path: Path) -> None:
    made = recipe(tmp_path, gate=True)
    run_dir = build_run(made, killed_at=27)
    totals = finish(made, run_dir)["totals"]
    events = read_events(run_dir / "ledger.jsonl")
    seen = sum(value for event in events for value in event.get("seconds", {}).values())
    assert totals["wall_seconds"] == pytest.approx(seen)
    assert sum(totals["seconds"].values()) + sum(totals["repeated"]["seconds"].values()) == pytest.approx(seen)
    assert totals["repeated"]["seconds"]["io"] == pytest.approx(0.8), "loading again, and no checkpoint twice"
    assert totals["device_hours"]["total"] == pytest.approx(sum(totals["seconds"].values()) / 3600)
    assert totals["seconds"]["reference"] == 2.5
    assert totals["seconds"]["eval"] == 8.0


def test_totals_are_the_sums_of_the_effective_steps(tmp_path: Path) -> None:
    made = recipe(tmp_path, gate=True)
    run_dir = build_run(made, killed_at=27)
    record = finish(made, run_dir)
    steps = read_steps(run_dir / "ledger.jsonl")
    assert list(split(read_events(run_dir / "ledger.jsonl")).steps) == steps
    totals = record["totals"]
    for name in COUNTS:
        assert totals["counts"][name] == sum(step["counts"][name] for step in steps)
    assert totals["samples"] == 40 * 16
    assert totals["truncated"] == {"samples": 40, "targets": 120}
    assert totals["unshuffled_samples"] == 80
    assert (totals["step_seconds"]["n_dense"], totals["step_seconds"]["n_sparse"]) == (8, 32)  # 0..3, 8, 16, 24, 32
    assert totals["step_seconds"]["sparse_median"] < totals["step_seconds"]["dense_median"]
    sparse = [step for step in steps if step["keep_ratio"] < 1]
    ideal = sum(step["flops"] for step in sparse) / sum(step["flops_dense"] for step in sparse)
    assert totals["sparse_flops_ratio"] == pytest.approx(ideal)
    # The budget of a sample is rounded down, so a little more is saved than the schedule asks for.
    assert 0 < totals["targets_reduction"] - totals["scheduled_reduction"] < 0.03
    assert totals["expected_reduction"] == pytest.approx(0.5 * 32 / 40)


def test_progress_of_an_evaluation_counts_the_steps_before_it(tmp_path: Path) -> None:
    made = recipe(tmp_path, gate=True)
    run_dir = build_run(made)
    middle, end = finish(made, run_dir)["evaluations"]
    steps = read_steps(run_dir / "ledger.jsonl")
    assert middle["progress"]["scored"] == sum(step["counts"]["scored"] for step in steps[:20])
    assert end["progress"]["samples"] == 640
    assert end["progress"]["train_seconds"] == pytest.approx(sum(step["seconds"]["train"] for step in steps))


def test_a_record_reads_back_and_its_items_with_it(tmp_path: Path) -> None:
    build_pair(tmp_path)
    records = read_records(tmp_path)
    assert [record["name"] for record in records] == ["demo_baseline", "demo_regate"]
    evaluation = records[0]["evaluations"][-1]
    run_dir = tmp_path / "runs" / records[0]["id"]
    items = read_items(run_dir, evaluation)
    assert items is not None
    assert len(items) == 720
    path = run_dir / "eval" / "step-000040" / "shapes.items.jsonl"
    items[0]["correct"] = 1 - items[0]["correct"]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(StaleError, match="not the items"):
        read_items(run_dir, evaluation)
    path.unlink()
    assert read_items(run_dir, evaluation) is None
    assert read_records(tmp_path / "nowhere") == []


def test_an_unfinished_training_has_no_record(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    run_dir = build_run(made)
    lines = (run_dir / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "ledger.jsonl").write_text("".join(line for line in lines if '"event": "end"' not in line))
    with pytest.raises(DataError, match="did not come to its end"):
        finish(made, run_dir)


def test_a_missing_step_or_counts_that_do_not_add_up_are_named(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    run_dir = build_run(made)
    path = run_dir / "ledger.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    without = [event for event in events if not (event["event"] == "step" and event["step"] == 7)]
    path.write_text("".join(json.dumps(event) + "\n" for event in without))
    with pytest.raises(DataError, match="out of order"):
        finish(made, run_dir)
    next(event for event in events if event.get("step") == 7 and event["event"] == "step")["counts"]["target"] += 1
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(DataError, match="counts of step 7 do not add up"):
        finish(made, run_dir)


def test_a_missing_evaluation_and_items_that_disagree_are_named(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    run_dir = build_run(made)
    result = run_dir / "eval" / "step-000040" / "shapes.json"
    content = json.loads(result.read_text())
    content["tasks"][0]["value"] += 0.01
    result.write_text(json.dumps(content))
    with pytest.raises(DataError, match="shapes_colour does not agree"):
        finish(made, run_dir)
    content["tasks"][0]["value"] -= 0.01
    write_atomic(result, json.dumps({**content, "mean": {**content["mean"], "value": 0.5}}))
    with pytest.raises(DataError, match="its mean does not agree"):
        finish(made, run_dir)
    write_atomic(result, json.dumps({**content, "scoring": {**content["scoring"], "unit": "mme"}}))
    with pytest.raises(DataError, match="names no unit"):
        finish(made, run_dir)
    write_atomic(result, json.dumps({**content, "schema": 1}))
    with pytest.raises(StaleError, match="evaluation schema 1"):
        finish(made, run_dir)
    (result.parent / "shapes.items.jsonl").unlink()
    write_atomic(result, json.dumps(content))
    with pytest.raises(DataError, match="cannot be read as items"):
        finish(made, run_dir)
    result.unlink()
    with pytest.raises(DataError, match="shapes was not evaluated at 1 of the training"):
        finish(made, run_dir)


def test_damaged_records_are_refused_with_the_file_and_the_key(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    record = finish(made, build_run(made))
    path = tmp_path / "runs" / made.run_id / "record.json"
    write_atomic(path, path.read_text()[:500])
    with pytest.raises(DataError, match="cannot be read as record"):
        read_record(path)
    write_atomic(path, json.dumps({**record, "totals": {"steps": "40"}}))
    with pytest.raises(DataError, match=r"totals.steps is str, not int; totals.counts is missing"):
        read_record(path)
    write_atomic(path, json.dumps({**record, "schema": 1}))
    with pytest.raises(StaleError, match=r"schema 1.*do not say how items become a score"):
        read_record(path)
    write_atomic(path, json.dumps({**record, "recipe": {**record["recipe"], "seed": 5}}))
    with pytest.raises(StaleError, match="it was edited"):
        read_record(path)
    write_atomic(path, json.dumps(record))
    path.parent.rename(path.parent.with_name("other"))
    with pytest.raises(StaleError, match="is the record of"):
        read_records(tmp_path)


def test_no_directory_of_this_machine_gets_into_a_record(tmp_path: Path) -> None:
    made = recipe(tmp_path / "results")
    plan = {**plan_of(made), "warnings": [f"weights missing: {tmp_path}/results/x and {Path.home()}/y"]}
    record = build_record(made, plan, build_run(made), data_fingerprint="d", weights_fingerprint="w", threads=2)
    text = json.dumps(record)
    assert record["plan"]["warnings"] == ["weights missing: <results>/x and <home>/y"]
    assert str(tmp_path) not in text
    assert record["provenance"]["hardware"]["threads"] == 2


def test_a_ledger_written_by_the_real_writer_is_read(tmp_path: Path) -> None:
    made = recipe(tmp_path, evaluate={"benchmarks": [], "at": [1.0]})
    run_dir = build_run(made)
    path = run_dir / "ledger.jsonl"
    events = read_events(path)
    path.unlink()
    with Ledger(path) as ledger:
        for event in events:
            fields = {key: value for key, value in event.items() if key not in ("schema", "event", "time", "attempt")}
            ledger.append(event["event"], **fields)
    assert finish(made, run_dir)["totals"]["steps"] == 40


def test_reading_records_needs_no_torch() -> None:
    code = (
        "import sys, harness.records.record, harness.records.provenance, harness.analysis.statistics\n"
        "import harness.report.tables, harness.report.table\n"
        "print(sorted({'torch', 'mlflow', 'lmms_eval', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
