"""How threads wait is settled before torch is loaded, in every process of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.common.threads import COUNT, WAIT, granted_cores, settings, settle
from harness.evaluation.lmms import process as child
from harness.training.launching import agent

if TYPE_CHECKING:
    from pathlib import Path


def quota(folder: Path, text: str) -> Path:
    file = folder / "cpu.max"
    file.write_text(text)
    return file


def test_threads_sleep_and_what_was_asked_for_stays(tmp_path: Path) -> None:
    limit = quota(tmp_path, "max 100000")
    environment: dict[str, str] = {}
    settle(environment, limit)
    assert environment == {WAIT: "PASSIVE"}
    environment = {WAIT: "ACTIVE", COUNT: "7"}
    settle(environment, quota(tmp_path, "50000 100000"))
    assert environment == {WAIT: "ACTIVE", COUNT: "7"}


@pytest.mark.parametrize(
    ("text", "cores"), [("250000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", None), ("", None)]
)
def test_cores_that_are_granted(tmp_path: Path, text: str, cores: int | None) -> None:
    assert granted_cores(quota(tmp_path, text)) == cores
    assert granted_cores(tmp_path / "absent") is None


def test_fewer_granted_cores_than_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.common.threads.usable_cores", lambda: 64)
    environment: dict[str, str] = {}
    settle(environment, quota(tmp_path, "400000 100000"))
    assert environment == {WAIT: "PASSIVE", COUNT: "4"}


def test_the_command_settles_it_before_torch_is_loaded() -> None:
    """A child sees what torch's OpenMP runs under, as OpenMP itself prints it when it is loaded."""
    script = (
        "import sys\n"
        "sys.argv = ['harness', '--version']\n"
        "from harness.cli.main import main\n"
        "assert 'torch' not in sys.modules\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import torch\n"
        "torch.ones(200, 200) @ torch.ones(200, 200)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in (WAIT, COUNT)}
    environment["OMP_DISPLAY_ENV"] = "TRUE"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr


def test_every_process_of_a_run_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = agent.Group(node=0, nodes=1, address="localhost", port=1, processes=2, threads=1)
    monkeypatch.delenv(WAIT, raising=False)
    with agent._environment(group):
        assert os.environ[WAIT] == "PASSIVE"
    assert WAIT not in os.environ, "the agent's own stays as it was"
    assert child._environment(tmp_path)[WAIT] == "PASSIVE"
    monkeypatch.setenv(WAIT, "ACTIVE")
    with agent._environment(group):
        assert os.environ[WAIT] == "ACTIVE", "what a user asks for stays"
    assert settings()[WAIT] == "ACTIVE"
