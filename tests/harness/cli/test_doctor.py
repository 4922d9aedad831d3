"""What `doctor` says of a machine. The machine is what a test cannot have many of: its parts are given here."""

from __future__ import annotations

import json
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from harness.cli import doctor, probe
from harness.cli.doctor import Check, examine, render
from harness.cli.main import app
from harness.config.load import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 85_899_345_920, "driver": "580.1"}
FOUND = {"torch": "2.15.0", "cuda": "13.2", "gpus": ["H100"], "nccl": None, "kernels": {"sdpa": "runs"}}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with these cards, and what torch says of it."""

    def of(cards: int, **found: Any) -> None:
        monkeypatch.setattr(doctor, "gpus", lambda: [H100] * cards)
        monkeypatch.setattr(doctor, "probe", lambda: {**FOUND, "gpus": ["H100"] * cards, **found})

    of(0, cuda=None)
    return of


def states(checks: list[Check], about: str) -> list[str]:
    return [check.state for check in checks if check.about == about]


def test_this_machine_in_a_process_of_its_own() -> None:
    """The real probe: sdpa runs on every machine, and what does not run says why."""
    answer = doctor.probe()
    assert isinstance(answer, dict), answer
    assert answer["kernels"]["sdpa"] == "runs"
    assert all(outcome == "runs" or ":" in outcome for outcome in answer["kernels"].values())


def test_a_probe_that_dies_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert doctor.probe() == "torch does not work: exit 1"
    assert states(list(doctor._torch([])), "torch") == ["fail"]


def test_a_kernel_that_computes_something_else_is_found() -> None:
    def wrong(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)

    assert probe._outcome(wrong, torch.device("cpu")).startswith("computes something else")
    checks = list(doctor._kernels({"sdpa": "runs", "flash_attention_2": "computes something else: 1 away"}))
    assert [check.state for check in checks] == ["ok", "fail"]
    assert checks[1].mend == "pip uninstall flash-attn"


def test_a_laptop_is_in_order_for_the_main_job(machine: Any) -> None:
    checks = examine(["tiny_regate"])
    assert not [check for check in checks if check.state == "fail"]
    assert states(checks, "data") == ["ok", "warn"]
    assert next(check.mend for check in checks if check.state == "warn") == "harness prepare tiny_regate"
    assert states(checks, "weights") == ["ok"]


def test_a_laptop_and_a_model_of_seven_billion(machine: Any) -> None:
    result = CliRunner().invoke(app, ["doctor", "videollama2_regate", "--json"])
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert answer["ok"] is False
    failed = {check["about"]: check for check in answer["checks"] if check["state"] == "fail"}
    assert {"GPUs", "weights", "data"} <= failed.keys()
    assert "hf download Qwen/Qwen2-7B-Instruct" in failed["weights"]["mend"]
    assert "hf download OpenGVLab/MVBench --repo-type dataset" in failed["data"]["mend"]
    assert all(check["mend"] for check in failed.values()), "each failure says what mends it"


def test_gpus_that_torch_does_not_reach_and_too_few(machine: Any) -> None:
    machine(4, gpus=[])
    assert states(examine([]), "driver") == ["fail"]
    machine(2, nccl="2.28.3")
    checks = examine(["videollama2_regate"])
    assert states(checks, "GPUs") == ["ok", "warn"]
    assert states(checks, "NCCL") == ["ok"]
    machine(2)
    assert states(examine([]), "NCCL") == ["fail"]


def test_packages_against_what_is_declared_and_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    versions, pins = {"numpy": "1.0", "typer": None}, doctor.pinned()
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, pins.get(name, "9999")))
    checks = {check.message.split()[0]: check for check in doctor._packages() if check.state == "fail"}
    assert "numpy 1.0, and numpy>=2.0 is needed" in checks["numpy"].message
    assert "typer is not installed" in checks["typer"].message
    versions.clear()
    assert [check.state for check in doctor._packages()] == ["ok"]
    monkeypatch.setattr(doctor, "pinned", lambda: {"typer": "0.1"})
    warned = [check for check in doctor._packages() if check.state == "warn"]
    assert len(warned) == 1
    assert "typer" in warned[0].message


def test_disk_and_shared_memory(monkeypatch: pytest.MonkeyPatch, machine: Any) -> None:
    usage = SimpleNamespace(total=60e6, free=5e9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    checks = examine([])
    assert states(checks, "disk") == ["fail"]
    assert states(checks, "/dev/shm") == ["warn"]
    shared = [check for check in examine(["videollama2_regate"]) if check.about == "/dev/shm"]
    assert shared[0].state == "fail"
    assert "--shm-size" in (shared[0].mend or "")


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, machine: Any) -> None:
    monkeypatch.setattr("harness.common.files.os.access", lambda place, mode: False)
    assert states(examine([]), "paths.results") == ["fail"]


def test_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.state for check in doctor._codecs()] == ["ok"]
    monkeypatch.setattr(doctor, "_codec", lambda av, name, mode: name not in ("hevc", "libx264"))
    assert [check.state for check in doctor._codecs()] == ["warn", "fail"]


def test_a_tracking_server(machine: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        uri = f"track.uri=http://user:secret@127.0.0.1:{port}"
        checks = [check for check in examine(["tiny_regate", uri]) if check.about == "tracking"]
        assert checks[0].state == "ok"
    checks = [check for check in examine(["tiny_regate", uri]) if check.about == "tracking"]
    assert checks[0].state == "warn"
    assert "secret" not in "\n".join(render(checks))
    assert states(examine(["tiny_regate", "track.mlflow=false"]), "tracking") == ["ok"]


def test_lines_for_a_person() -> None:
    lines = render([Check("disk", "ok", "fine"), Check("GPUs", "fail", "none", "one\ntwo")])
    assert lines == [
        "ok    disk  fine",
        "fail  GPUs  none",
        "            -> one",
        "            -> two",
        "1 ok, 1 fail",
    ]


def test_the_nodes_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._nodes() == doctor.Check("nodes", "ok", "one")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert doctor._nodes().state == "warn"
    step = {"NUM_NODES": "2", "NUM_TASKS": "2", "NODELIST": "gpu[07-08]"}
    for name, value in {**{f"SLURM_STEP_{key}": value for key, value in step.items()}, "SLURM_NODEID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert doctor._nodes().message == "node 1 of 2, started by SLURM; node 0 is gpu07:20007"
    two = load_recipe("tiny_regate", ["train.micro_batch=4"])
    lines = [check.message for check in doctor._work_of_nodes(two, teacher=True)]
    assert lines[1] == "node 1: does what node 0 tells it; 1 process (rank 1)"
    assert "1/2 of the reference losses and of an evaluation's items" in lines[2]
    three = load_recipe("tiny_regate", ["train.micro_batch=4", "devices.processes=3"])
    (check,) = doctor._work_of_nodes(three, teacher=True)
    assert check.state == "fail"
    assert "x 6" in check.message
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[")
    assert doctor._nodes().state == "fail"
    assert not list(doctor._work_of_nodes(three, teacher=True)), "it is told once"
