"""The shipped smoke recipes, run once through the real command line, for every test here to look at."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HUNG_S
from tests.warm import warm_python

RECIPES = Path(__file__).parents[2] / "recipes"
PAIR = (RECIPES / "tiny_smoke_baseline.yaml", RECIPES / "tiny_smoke_regate.yaml")


@dataclass(frozen=True)
class Ran:
    """A finished command and the folder it worked in."""

    folder: Path
    stdout: str
    stderr: str

    def run_dir(self, name: str) -> Path:
        (folder,) = (self.folder / "results" / "runs").glob(f"{name}-????????")
        return folder

    def record(self, name: str) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.run_dir(name) / "record.json").read_text())
        assert loaded["status"] == "complete"
        return loaded


def harness(folder: Path, *arguments: str | Path, python: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command of the harness, by a warm python unless another one is given."""
    command = [python or warm_python(), "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HUNG_S, check=False)


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Both arms of the smoke pair, from an empty folder to the table."""
    folder = tmp_path_factory.mktemp("smoke")
    done = harness(folder, "run", *PAIR, python=sys.executable)
    assert done.returncode == 0, done.stderr[-4000:]
    return Ran(folder, done.stdout, done.stderr)
