"""Each file that a finished run leaves, and one that was killed in its evaluation, harmed in each way: the same
command comes to the same numbers, or the file is named."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from .evaluated import go_on, make_killed, outcome
from .stopped import damages, survives

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
WRITTEN_ALONE = ("results/tables/", "results/figures/", "results/reports/", "data/")
"""Of them nothing is read back by a run that is finished: data are, by one that is not."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak") / "killed"
    make_killed(folder)
    return folder


@pytest.fixture(scope="module")
def finished(killed: Path) -> Path:
    folder = killed.with_name("finished")
    shutil.copytree(killed, folder)
    go_on(folder)
    return folder


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, Any]:
    return outcome(finished)


@pytest.mark.parametrize("state", ["finished", "killed"])
def test_damage_of_an_evaluated_run(
    state: str, whole: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(state)
    cases = list(damages(folder))
    if state == "killed":  # the other files are those of a finished run
        cases = [case for case in cases if "/eval/" in case.file]
    if not request.config.getoption("--soak"):
        cases = [case for case in cases if case.kind == "flip 0.5" and "/eval/" not in case.file][:: len(cases) // 9]
    failures = [
        failure
        for case in cases
        if (failure := survives(folder, case, whole, tmp_path / "case", command=go_on, outcome=outcome))
    ]
    assert not failures, "\n".join([f"{len(failures)} of {len(cases)}", *failures])
