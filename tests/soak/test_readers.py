"""Every file that a run leaves has a reader in `readers`, or a reason why it has none."""

from __future__ import annotations

from fnmatch import filter as matching
from typing import TYPE_CHECKING

import pytest

from .readers import ELSEWHERE, OWN, UNREAD, is_unread, without_reader
from .stopped import damages, files_of

if TYPE_CHECKING:
    from .conftest import Left

pytestmark = pytest.mark.slow


def test_every_file_of_a_run_has_a_reader(
    killed_in_training: Left, trained: Left, killed_in_evaluation: Left, finished: Left
) -> None:
    states = (killed_in_training, trained, killed_in_evaluation, finished)
    files = sorted({file for state in states for file in files_of(state.folder)})
    assert not without_reader(files)
    assert without_reader([*files, "results/runs/a/new.json", "weights/.a.lock"]) == ["results/runs/a/new.json"]
    read = trained.read | finished.read
    for kind in OWN:
        assert matching(files, kind), f"no run leaves {kind}"
        assert matching(read, kind), f"{kind} is not opened by a run"
    assert not [file for file in read if is_unread(file)]
    for state in states:
        harmed = {damage.file for damage in damages(state.folder)}
        assert harmed == set(files_of(state.folder))
    assert not set(OWN) & (ELSEWHERE.keys() | UNREAD.keys())
