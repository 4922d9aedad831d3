"""The ledger survives kills, resumes, and keeps every second."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.common.errors import DataError
from harness.records.ledger import Clocks, Ledger, finished_step, read_events, read_steps

if TYPE_CHECKING:
    from pathlib import Path


def test_resumed_attempt_supersedes_the_steps_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append("start", step=0)
        for step in range(5):
            ledger.append("step", step=step, loss=1.0)
    with Ledger(path) as ledger:
        assert ledger.attempt == 2
        ledger.append("start", step=3)
        ledger.append("step", step=3, loss=2.0)
    steps = read_steps(path)
    assert [(entry["step"], entry["loss"]) for entry in steps] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]
    assert len(read_events(path)) == 8, "nothing is rewritten"
    assert finished_step(path) is None


@given(st.integers(min_value=1, max_value=60))
@settings(max_examples=30, deadline=None)
def test_a_torn_last_line_is_dropped_and_the_file_goes_on(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.append("start", step=0)
        ledger.append("step", step=0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    survivors = read_events(path)
    assert len(survivors) == 1
    with Ledger(path) as ledger:
        ledger.append("start", step=0)
    assert [event["event"] for event in read_events(path)] == ["start", "start"]


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"schema":1,"event":"start","step":0}\nnot json\n{"schema":1,"event":"end","step":1}\n')
    with pytest.raises(DataError, match=r"ledger\.jsonl:2"):
        read_events(path)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps({"schema": 99, "event": "start"}) + "\n")
    with pytest.raises(DataError, match="schema 99"):
        read_events(path)


def test_no_ledger_for_processes_other_than_the_first() -> None:
    with Ledger(None) as ledger:
        ledger.append("start", step=0)
        ledger.sync()


class FakeClock:
    """Seconds that pass only where a test says so."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


PASSING = st.lists(
    st.tuples(st.sampled_from(["data", "train", "io"]), st.floats(min_value=0, max_value=1e3), st.booleans()),
    min_size=1,
)


@given(began=st.floats(min_value=0, max_value=1e6), passing=PASSING)
def test_the_clocks_add_up_to_the_wall_time_exactly(
    began: float, passing: list[tuple[str, float, bool]]
) -> None:
    """Whatever passes between the laps, and whenever the seconds are taken: not a microsecond is lost."""
    clock = FakeClock(began)
    clocks = Clocks(now=clock)
    first, taken = clocks.reading, 0
    for phase, seconds, take in passing:
        clock.seconds += seconds
        clocks.lap(phase)
        if take:
            taken += sum(round(value * 1e6) for value in clocks.take().values())
    taken += sum(round(value * 1e6) for value in clocks.take().values())
    assert taken == round(clocks.reading * 1e6) - round(first * 1e6)
    assert clocks.reading == pytest.approx(clock.seconds, abs=1e-6)
    assert clocks.take() == {}


def test_a_lap_goes_to_its_phase_and_counts_from_the_given_moment() -> None:
    clock = FakeClock(5.0)
    clocks = Clocks(2.0, now=clock)
    for phase, seconds in (("io", 0.0), ("data", 0.25), ("train", 1.0), ("data", 0.5)):
        clock.seconds += seconds
        clocks.lap(phase)
    assert clocks.take() == {"io": 3.0, "data": 0.75, "train": 1.0}
    assert clocks.reading == 6.75


def test_without_another_clock_it_is_the_monotonic_one() -> None:
    clocks = Clocks()
    before = time.perf_counter()
    clocks.lap("data")
    after = time.perf_counter()
    assert before - 1e-6 <= clocks.reading <= after + 1e-6
