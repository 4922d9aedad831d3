"""Eq. 4 and its closed form."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regate import ConfigError, DualCycle, GateConfig, RampConfig
from regate.schedule import DenseLoss

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


# Keep ratios that move during the run: not the paper's.


@given(
    keep_ratio=st.floats(0.05, 1.0),
    to=st.floats(0.05, 1.0),
    over=st.integers(1, 250),
    cycle=st.integers(1, 40),
    dense=st.integers(0, 39),
    warmup=st.integers(0, 90),
    total=st.integers(1, 200),
)
def test_closed_form_of_a_ramp_is_the_mean(keep_ratio, to, over, cycle, dense, warmup, total):
    schedule = DualCycle(keep_ratio, cycle, min(dense, cycle - 1), warmup, RampConfig(to=to, steps=over))
    mean = math.fsum(schedule.keep_ratio_at(step) for step in range(total)) / total
    assert schedule.expected_keep(total) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("to", [0.25, 0.5, 1.0])
def test_a_ramp_moves_evenly_from_the_warm_up_on_and_stays_at_its_end(to):
    ramp = DualCycle(0.5, 128, 16, 100, RampConfig(to=to, steps=200))
    ratios = {step: ramp.keep_ratio_at(step) for step in range(1000)}
    sparse = [step for step in ratios if not ramp.dense_at(step)]
    assert all(ratios[step] == 1.0 for step in ratios if ramp.dense_at(step))
    assert ratios[100] == 0.5
    for step in sparse:
        behind = min((step - 100) / 200, 1.0)
        assert ratios[step] == pytest.approx(0.5 + behind * (to - 0.5), abs=1e-15)
    assert {ratios[step] for step in sparse if step >= 300} == {to}


def test_a_ramp_by_loss_goes_by_the_dense_steps_of_the_cycle_before():
    schedule = DualCycle(0.5, 4, 2, 0, RampConfig(to=0.1, loss=(3.0, 1.0)))
    losses = [4.0, 3.0, 9.0, 9.0, 2.5, 1.5, 9.0, 9.0, 0.5, 0.1, 9.0, 9.0]
    dense, ratios = DenseLoss(schedule), []
    for step, loss in enumerate(losses):
        ratios.append(schedule.keep_ratio_at(step, loss=dense.before(step)))
        dense.note(step, loss)
        restored = DenseLoss(schedule)
        restored.load(json.loads(json.dumps(dense.state())))
        assert restored.before(step + 1) == dense.before(step + 1)
    # 3.5 is above where the ramp begins; 2.0 is half way; sparse losses are not read.
    assert ratios == pytest.approx([1, 1, 0.5, 0.5, 1, 1, 0.5, 0.5, 1, 1, 0.3, 0.3])
    assert schedule.keep_ratio_at(14, loss=dense.before(14)) == pytest.approx(0.1)


def test_a_ramp_by_loss_without_losses_says_what_to_call():
    dense = DenseLoss(DualCycle(0.5, 4, 2, 0, RampConfig(to=0.1, loss=(3.0, 1.0))))
    assert dense.before(3) is None
    with pytest.raises(ConfigError, match=r"gate\.note_loss"):
        dense.before(6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"to": 0.0, "steps": 5}, "ramp.to must be in"),
        ({"to": 0.5}, "by steps or by loss"),
        ({"to": 0.5, "steps": 5, "loss": (2.0, 1.0)}, "by steps or by loss"),
        ({"to": 0.5, "steps": 0}, "ramp.steps must be at least 1"),
        ({"to": 0.5, "loss": (1.0, 2.0)}, "the second below the first"),
    ],
)
def test_ramps_outside_their_range(settings, says):
    with pytest.raises(ConfigError, match=says):
        RampConfig(**settings)


def test_a_ramp_by_loss_needs_dense_steps():
    with pytest.raises(ConfigError, match="dense_steps is 0"):
        GateConfig(ramp=RampConfig(to=0.5, loss=(2.0, 1.0)), dense_steps=0)
