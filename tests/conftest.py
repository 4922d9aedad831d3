"""Options of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-root",
        type=Path,
        default=FIXTURES / "videollama2",
        help="folder with a VideoLLaMA2 parity fixture: sizes, names and numbers are all read from it",
    )


@pytest.fixture(scope="session")
def parity_root(pytestconfig: pytest.Config) -> Path:
    root: Path = pytestconfig.getoption("--parity-root")
    return root.resolve()
