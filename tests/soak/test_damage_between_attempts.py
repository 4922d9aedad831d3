"""Each file that a run leaves which was killed in its training, harmed in each way: it comes to the same end, or the
file is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .stopped import Damage, damages, few, outcome, survives

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Left

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


def test_damage_between_two_attempts(
    killed_in_training: Left, trained: Left, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole, cases = outcome(trained.folder), list(damages(killed_in_training.folder))
    if not request.config.getoption("--soak"):
        cases = few(FEW, cases)
        assert len(cases) >= len(FEW)
    folder = killed_in_training.folder
    failures = [failure for case in cases if (failure := survives(folder, case, whole, tmp_path / "case"))]
    assert not failures, "\n".join([f"{len(failures)} of {len(cases)}", *failures])
