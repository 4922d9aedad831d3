"""Lines of progress where there is no terminal, by a clock that is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.common import progress
from harness.common.progress import Progress

if TYPE_CHECKING:
    import pytest


def lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: dict[int, float], *, late: bool
) -> list[str]:
    """What is written of four units, of which some are done at these seconds."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    with Progress().task("look", 4, late=late) as advance:
        for done, moment in at.items():
            seconds[0] = moment
            advance(done)
    return [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]


def test_the_last_line_stands_of_quick_work_too_unless_it_is_to_be_late(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick, slow = {1: 2.0, 4: 8.0}, {1: 5.0, 2: 15.0, 4: 16.0}
    assert lines(monkeypatch, capsys, quick, late=False) == ["look 4/4"]
    assert lines(monkeypatch, capsys, quick, late=True) == []
    for late in (False, True):
        assert lines(monkeypatch, capsys, slow, late=late) == ["look 2/4, 15 s left", "look 4/4"]
    assert lines(monkeypatch, capsys, {4: 30.0}, late=True) == ["look 4/4"]
