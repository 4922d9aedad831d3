"""Each file that a finished run leaves, and one that was killed in its evaluation, harmed in each way: the same
command comes to the same numbers, or the file is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .evaluated import go_on, outcome
from .stopped import Damage, damages, few, survives

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Left

pytestmark = pytest.mark.slow
FEW = {
    "finished": (
        Damage("difficulty/m.e1.npy", "flip 0.5"),
        Damage("ledger.jsonl", "flip 0.5"),
        Damage("record.json", "flip 0.5"),
        Damage("selection.json", "flip 0.5"),
    ),
    "killed_in_evaluation": (
        Damage("shapes.answers-0.jsonl", "flip 0.5"),
        Damage("shapes.items.jsonl.gz", "cut"),
        Damage("checkpoints/step-000008/model.safetensors", "flip 0.97"),
    ),
}
"""Those of a quick look; `file` is the end of its path."""


@pytest.mark.parametrize("state", FEW)
def test_damage_of_an_evaluated_run(
    state: str, finished: Left, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    left: Left = request.getfixturevalue(state)
    whole, cases = outcome(finished.folder), list(damages(left.folder))
    if not request.config.getoption("--soak"):
        cases = few(FEW[state], cases)
        assert len(cases) == len(FEW[state])
    failures = [
        failure
        for case in cases
        if (failure := survives(left.folder, case, whole, tmp_path / "case", command=go_on, outcome=outcome))
    ]
    assert not failures, "\n".join([f"{len(failures)} of {len(cases)}", *failures])
