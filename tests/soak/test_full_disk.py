"""A disk that is full at any moment of a run ends it in seconds with exit code 3 and the reason; once there is room,
the same command comes to the same end."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from . import evaluated
from .full_disk import EVALUATED, MOMENTS, MOST_S, in_a_small_disk, possible
from .stopped import go_on_to_tables, outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not possible(), reason="this machine lets nobody mount a tmpfs in a namespace"),
]
FEW = ("running losses", "a checkpoint's tensors")


def test_a_disk_that_fills(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole = tmp_path / "whole"
    soak = request.config.getoption("--soak")
    go_on_to_tables(whole)
    failures = []
    ends = {False: outcome(whole)}
    if soak:
        evaluated.go_on(whole)
        (shown,) = (whole / "results" / "runs").glob("stopped-*")
        shutil.rmtree(shown)  # the folder of one run is looked at
        ends[True] = evaluated.outcome(whole)
    for moment in MOMENTS if soak else FEW:
        expected = ends[moment in EVALUATED]
        came = in_a_small_disk(tmp_path / moment.replace(" ", "-"), moment, whole)
        if came["seconds"] is None:
            failures.append(f"{moment}: never came: exit {came['code']}: {came['message'][-500:]}")
        elif came["code"] != 3 or "Traceback" in came["message"] or came["seconds"] > MOST_S:
            failures.append(f"{moment}: exit {came['code']} after {came['seconds']:.1f} s: {came['message'][-1500:]}")
        if came["left"]:
            failures.append(f"{moment}: left {came['left']}")
        differing = [key for key in expected if came["outcome"][key] != expected[key]]
        if differing:
            failures.append(f"{moment}: then other {', '.join(differing)}")
    assert not failures, "\n".join(failures)
