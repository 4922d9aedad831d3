"""Twenty kills, ten SIGTERMs and five SIGINTs at random moments of a run, and some of each of one in two processes:
each time the same command comes to the same parameters, steps, choices and record."""

from __future__ import annotations

import shutil
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.warm import warm_python

from .killed import TOGETHER, attempt_together, lines_of, moments_of, stops, survives_stop
from .stopped import outcome

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
SEED = 14
FEW = (3, 20, 30)
"""Of the stops in their order: one of each signal."""


def test_stopped_at_random_moments(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    made, whole = tmp_path / "made", tmp_path / "whole"
    moments_of(made)
    for name in ("data", "weights"):
        shutil.copytree(made / name, whole / name)
    moments = moments_of(whole)
    expected, failures, seen = outcome(whole), [], Counter[str]()
    cases = list(stops(moments, SEED))
    for number in range(len(cases)) if request.config.getoption("--soak") else FEW:
        stop, folder = cases[number], tmp_path / "case"
        for name in ("data", "weights"):
            shutil.copytree(whole / name, folder / name)
        failure = survives_stop(stop, folder, expected)
        seen[f"{stop.number.name} to the {'group' if stop.group else 'process'}"] += 1
        failures += [failure] if failure else []
        shutil.rmtree(folder)
    assert not failures, "\n".join([f"{len(failures)} of {seen.total()}", *failures])


def test_two_processes_stopped_at_random_moments(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole, attempt = tmp_path / "whole", partial(attempt_together, python=warm_python())
    assert attempt(whole, None) == 0
    expected, failures = outcome(whole), []
    assert {step["devices"] for step in expected["steps"]} == {2}
    cases = list(stops(lines_of(whole), SEED, TOGETHER))
    for stop in cases if request.config.getoption("--soak") else cases[:1]:
        folder = tmp_path / "case"
        for name in ("data", "weights"):
            shutil.copytree(whole / name, folder / name)
        failure = survives_stop(stop, folder, expected, attempt, late=True)
        failures += [failure] if failure else []
        shutil.rmtree(folder)
    assert not failures, "\n".join([f"{len(failures)} of {len(cases)}", *failures])
