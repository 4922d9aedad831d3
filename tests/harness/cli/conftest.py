"""The command line, for every test of a verb."""

from __future__ import annotations

import pytest

from tests.harness.cli.command import Command


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(capsys, monkeypatch)
