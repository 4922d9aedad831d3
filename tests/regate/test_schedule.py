"""Eq. 4 and its closed form."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regate import ConfigError, DualCycle, GateConfig

PAPER = DualCycle(keep_ratio=0.5, cycle_steps=128, dense_steps=16, warmup_steps=100)


def test_first_cycles_of_the_paper():
    ratios = [PAPER.keep_ratio_at(step) for step in range(300)]
    assert ratios[:100] == [1.0] * 100
    assert ratios[100:128] == [0.5] * 28  # the cycle counts from step 0, not from the end of the warm-up
    assert ratios[128:144] == [1.0] * 16
    assert ratios[144:256] == [0.5] * 112
    assert ratios[256] == 1.0


@pytest.mark.parametrize(("steps", "reduction"), [(1730, 41.22), (18200, 43.51)])
def test_closed_form_gives_the_papers_reductions(steps, reduction):
    formula = 43.75 * (1 - 100 / steps)
    assert round(formula, 2) == reduction
    # Whole cycles aside, the exact mean differs by the rounding of the last cycle.
    assert 100 * (1 - PAPER.expected_keep(steps)) == pytest.approx(formula, abs=100 * 16 / steps)


@given(
    keep_ratio=st.floats(0.01, 1.0),
    cycle=st.integers(1, 40),
    dense=st.integers(0, 39),
    warmup=st.integers(0, 90),
    total=st.integers(1, 200),
)
def test_closed_form_is_the_mean(keep_ratio, cycle, dense, warmup, total):
    schedule = DualCycle(keep_ratio, cycle, min(dense, cycle - 1), warmup)
    mean = math.fsum(schedule.keep_ratio_at(step) for step in range(total)) / total
    assert schedule.expected_keep(total) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("keep_ratio", 0.0, "keep_ratio must be in (0, 1]"),
        ("keep_ratio", 1.01, "keep_ratio must be in (0, 1]"),
        ("keep_ratio", float("nan"), "keep_ratio must be in (0, 1]"),
        ("dense_steps", 128, "below cycle_steps (128)"),
        ("dense_steps", -1, "at least 0"),
        ("cycle_steps", 0, "cycle_steps must be at least 1"),
        ("warmup_steps", -1, "warmup_steps must not be negative"),
        ("ema_decay", 1.0, "ema_decay must be in [0, 1)"),
        ("reference_weight", -0.1, "reference_weight must not be negative"),
    ],
)
def test_settings_outside_their_range(setting, value, says):
    with pytest.raises(ConfigError) as error:
        GateConfig(**{setting: value})
    assert says in str(error.value)


def test_convex_weight_above_one():
    with pytest.raises(ConfigError, match="convex"):
        GateConfig(combine="convex", reference_weight=1.5)
