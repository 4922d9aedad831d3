"""`benchmarks/gpu.py` where there is no GPU: it runs at toy size, says so, and names what it did not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: run the script itself"),
]


def called(folder: Path, checks: Sequence[str]) -> tuple[str, dict[str, Any]]:
    command = [sys.executable, "benchmarks/gpu.py", "--only", *checks, "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return done.stdout, report


def test_placement_memory_and_what_stands_before_the_decoder(tmp_path: Path) -> None:
    judged = ("mask", "fsdp1", "lora", "ragged", "tower", "compiled", "decode")
    _, report = called(tmp_path, (*judged, "offload", "fragmentation"))
    rows = report["checks"]
    assert {name: rows[name]["result"] for name in judged} == dict.fromkeys(judged, "INFO")
    assert rows["offload"]["result"] == rows["fragmentation"]["result"] == "NOT RUN"
    parts = rows["fsdp1"]["values"]
    assert parts["losses"] == pytest.approx(parts["whole"], rel=1e-6)
    assert parts["again"] == parts["losses"][3:]
    attention = {name: value["attention"] for name, value in rows["mask"]["values"].items()}
    assert attention["dense_packed"] == attention["gated_packed"] != []
    assert rows["compiled"]["values"]["graphs"] > 0
    assert rows["decode"]["values"]["1"] > 0


def test_it_says_what_it_could_not_judge(tmp_path: Path) -> None:
    checks = ("sync", "attention", "step", "head", "recompute", "copies", "generate")
    printed, report = called(tmp_path, checks)
    lines = printed.splitlines()
    assert lines[0].startswith("No GPU here")
    assert lines[-1] == "Not run, since they need a GPU: sync, copies."
    assert [line.split()[0] for line in lines[1:-1]] == list(checks)
    assert report["gpu"] is None
    results = {name: row["result"] for name, row in report["checks"].items()}
    assert results == {**dict.fromkeys(checks, "INFO"), "sync": "NOT RUN", "copies": "NOT RUN"}
    elision = report["checks"]["step"]["values"]["arms"]["gated_packed"]["elision"]
    assert 0 < elision["ideal"] < 1
    assert elision["beside"] == "dense_packed"
    assert set(report["checks"]["recompute"]["values"]) == {"2", "1", "0"}
