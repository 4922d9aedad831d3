"""Each file that a killed run leaves, harmed in each way: the run comes to the same end, or the file is named."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from .stopped import Damage, damages, go_on, make_stopped, outcome, survives

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
FEW = (
    Damage(".distcp", "flip 0.5"),
    Damage("difficulty/m.e1.npy", "flip 0.97"),
    Damage("backbone/tokenizer.json", "flip 0.5"),
    Damage("losses.npy", "flip 0.97"),
    Damage("ledger.jsonl", "deleted"),
    Damage("checkpoints/step-000002/model.safetensors", "flip 0.5"),
)
"""Those of a quick look; `file` is the end of its path."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak") / "stopped"
    make_stopped(folder)
    return folder


@pytest.fixture(scope="module")
def whole(stopped: Path) -> dict[str, Any]:
    """What the killed run comes to when nothing happens to its files."""
    folder = stopped.with_name("whole")
    shutil.copytree(stopped, folder)
    go_on(folder)
    return outcome(folder)


def test_damage_between_two_attempts(
    stopped: Path, whole: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cases = list(damages(stopped))
    if not request.config.getoption("--soak"):
        cases = [case for few in FEW for case in cases if case.file.endswith(few.file) and case.kind == few.kind]
        assert len(cases) >= len(FEW)
    failures = [failure for case in cases if (failure := survives(stopped, case, whole, tmp_path / "case"))]
    assert not failures, "\n".join([f"{len(failures)} of {len(cases)}", *failures])
