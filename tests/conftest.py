"""Options of the whole suite."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

FIXTURES = Path(__file__).parent / "fixtures"

# How long an example takes says what else the machine does.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_configure() -> None:
    """What the tests import stays: it is not looked through for garbage while it is imported nor, frozen, each time
    that a trainer collects, which took a second of computing. Commands write into a pipe, as long as their lines are:
    tox would have them as long as its own."""
    gc.disable()
    os.environ.pop("COLUMNS", None)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries look at the end whether anything of theirs is left


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-root",
        type=Path,
        default=FIXTURES,
        help="folder with a parity fixture of VideoLLaMA2, VideoChat2 or InternVL, or with a folder videollama2, "
        "videochat2 or internvl: sizes, names and numbers are all read from it; a family that is not there uses the "
        "project's own",
    )
    parser.addoption(
        "--soak",
        action="store_true",
        help="all kinds of damage, kills and odd inputs of tests/soak (an hour) and not a few of each",
    )


def _root(config: pytest.Config, family: str, *marks: str) -> Path:
    """The family's fixture: the given folder or the one of the family's name in it, told by files of its format."""
    given: Path = config.getoption("--parity-root")
    for place in (given / family, given, FIXTURES / family):
        if all((place / mark).is_file() for mark in marks):
            return place.resolve()
    raise pytest.UsageError(f"--parity-root {given}: no {marks[0]} of {family} there")


@pytest.fixture(scope="session")
def parity_root(pytestconfig: pytest.Config) -> Path:
    """VideoLLaMA2's."""
    return _root(pytestconfig, "videollama2", "expected.safetensors", "connectors.safetensors")


@pytest.fixture(scope="session")
def videochat2_root(pytestconfig: pytest.Config) -> Path:
    return _root(pytestconfig, "videochat2", "fixture.json", "cases.safetensors")


@pytest.fixture(scope="session")
def internvl_root(pytestconfig: pytest.Config) -> Path:
    return _root(pytestconfig, "internvl", "fixture.json", "data.jsonl")


SMOKE = "tests/smoke/"
PAIR = f"{SMOKE}test_"
"""Its tests look at one pair of runs, which is made once a session; those below own_runs make theirs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The smoke tests first, those of the pair before the others: together they take longest."""
    items.sort(key=lambda item: (not item.nodeid.startswith(PAIR), not item.nodeid.startswith(SMOKE)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 2 --dist loadfile` keeps a file in one process, and all smoke tests that look at the pair."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return SMOKE if nodeid.startswith(PAIR) else nodeid.partition("::")[0]

    return Scheduling(config, log)
