"""A process that is told to end while it says how it ended itself."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from harness.common.files import write_json
from harness.common.signals import PASSED_ON
from harness.training.launching import worker
from harness.training.launching.agent import FOLDER, JOB, read_outcome
from tests import forked

if TYPE_CHECKING:
    from pathlib import Path


def work(_rank: int, _world: int, run_dir: Path, number: signal.Signals) -> None:
    """A worker whose recipe is not there, and which is signalled as soon as it has found that out."""
    os.setsid()
    os.environ |= {"RANK": "0"}
    os.dup2(os.open(run_dir / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    explained = worker.explained

    def signalled(error: Exception) -> Any:
        os.kill(os.getpid(), number)
        return explained(error)

    worker.explained = signalled  # type: ignore[attr-defined]
    sys.argv = ["worker", str(run_dir), str(run_dir / "lifeline")]
    worker.main()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, PASSED_ON])
def test_its_error_is_what_it_says_and_nothing_is_printed(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / FOLDER).mkdir()
    write_json(tmp_path / FOLDER / JOB, {"schema": 1, "task": "train", "began": 0.0, "attempt": "first"})
    os.mkfifo(tmp_path / "lifeline")
    held = os.open(tmp_path / "lifeline", os.O_RDWR)
    try:
        (code,) = forked.run(work, 1, tmp_path, number)
    finally:
        os.close(held)
    outcome = read_outcome(tmp_path / FOLDER, 0)
    assert outcome is not None
    assert "recipe.json" in outcome["message"]
    assert code == outcome["code"] > 0
    assert (tmp_path / "stderr").read_text() == ""
