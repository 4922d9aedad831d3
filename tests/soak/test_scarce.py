"""Few open files and little shared memory: the run ends well, or in seconds with exit code 3 and the reason; with
enough of both the same command comes to the same end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .scarce import KINDS, MOST_S, ROOT

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts another /dev/shm")]


def test_a_run_that_gets_little(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("evaluates nine times, ten minutes of CPU: --soak; tests/harness/data/loading has the quick ones")
    command = [sys.executable, "-m", "tests.soak.scarce", str(tmp_path / "whole")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    assert [entry["kind"] for entry in ended] == [str(kind) for kind in KINDS]
    failures = [
        entry
        for entry in ended
        if entry["code"] not in (0, 3)
        or "Traceback" in entry["message"]
        or (entry["code"] and entry["seconds"] > MOST_S)
        or entry["second"]
        or entry["differing"]
    ]
    assert not failures
