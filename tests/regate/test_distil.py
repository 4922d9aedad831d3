"""Dense steps that learn from the elided forward pass: the divergence and its gradient equal their definitions, in
float64.

Legend: N losses of the dense step, M of the elided pass, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import regate
from regate import ConfigError, Gate, GateConfig, Grid, LayoutError, VisualConfig
from regate.loss import chunks_of
from tests.regate import tiny
from tests.regate.test_equivalence import gradients
from tests.regate.test_packed import case_of
from tests.regate.test_visual import with_grids

SCHEDULE = {"warmup_steps": 0, "cycle_steps": 4, "dense_steps": 1, "selection": "random"}
HALF = VisualConfig(0.5, "diverse")


def layout_of(data):
    return replace(data.layout, grids=((Grid(1, 2, 2),),) * len(data.sample_ids_B))


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@pytest.mark.parametrize("name", ["InternVL", "Qwen2.5-VL"])
def test_the_gradient_is_that_of_cross_entropy_and_divergence(name, keep_ratio):
    """By torch's own functions on the untouched model. The elided pass itself is held by other tests."""
    case = case_of(name)
    layout, ids = with_grids(case), torch.tensor([3, 4])
    gate = Gate(GateConfig(keep_ratio=keep_ratio, visual=HALF, distil=0.7, **SCHEDULE), None)
    decision = gate.decide(layout, ids, step=4)
    elided = gate.elided(decision)
    assert not decision.sparse
    assert elided.counts.active < decision.counts.active
    elide, scored = regate.attach(case.model, rows="packed", outputs="predictors"), regate.ScoredLM(case.model)
    case.model.zero_grad()
    with torch.no_grad(), elide(elided):
        elided_MV = scored(predictor_BS=elided.predictor_BS, **case.inputs)
    with elide(decision):
        logits_NV = scored(predictor_BS=decision.predictor_BS, **case.inputs)
    elide.remove()
    divergence_N = regate.distil_loss(decision, logits_NV, elided, elided_MV)
    (regate.token_loss(logits_NV, decision.targets_N) + gate.distil * divergence_N).sum().backward()
    result = gradients(case.model)

    case.model.zero_grad()
    logits_BSV = case.model(**case.inputs).logits
    loss = cross_entropy(logits_BSV[decision.predictor_BS], decision.targets_N, reduction="sum")
    of_both_BS = elided.predictor_BS
    divergence_MV = kl_div(
        logits_BSV[of_both_BS].log_softmax(1), elided_MV.log_softmax(1), log_target=True, reduction="none"
    )
    both_N = of_both_BS[decision.predictor_BS]
    expected_N = torch.zeros_like(divergence_N).masked_scatter(both_N, divergence_MV.detach().sum(1))
    torch.testing.assert_close(divergence_N, expected_N, rtol=0, atol=1e-10)
    assert float(divergence_N.detach().max()) > 0.01
    (loss + 0.7 * divergence_MV.sum()).backward()
    expected = gradients(case.model)
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(result[key], value, rtol=0, atol=1e-10)


def test_chunks_change_nothing(monkeypatch):
    draw = torch.Generator().manual_seed(3)
    data = tiny.rows(visual=4, pad="right", seed=5)
    gate = Gate(GateConfig(keep_ratio=1.0, visual=HALF, distil=1.0, **SCHEDULE), None)
    decision = gate.decide(layout_of(data), data.sample_ids_B, step=0)
    count = decision.counts.scored
    student_NV, teacher_NV = (torch.randn(count, 61, dtype=torch.float64, generator=draw) for _ in range(2))
    student_NV.requires_grad_()
    results = []
    for size in (1 << 24, 61 * 4):
        monkeypatch.setattr("regate.loss._CHUNK_ELEMENTS", size)
        student_NV.grad = None
        loss_N = regate.distil_loss(decision, student_NV, gate.elided(decision), teacher_NV)
        loss_N.mean().backward()
        results.append((loss_N.detach(), student_NV.grad.clone()))
    assert len(chunks_of(student_NV)) > 3
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-15)
    half = regate.distil_loss(decision, student_NV.bfloat16(), gate.elided(decision), teacher_NV.bfloat16())
    assert half.dtype == torch.float32


def test_sparse_steps_and_gates_that_do_not_distil_have_no_second_pass():
    data = tiny.rows(visual=4, pad="right", seed=5)
    layout = layout_of(data)
    gate = Gate(GateConfig(keep_ratio=1.0, visual=HALF, distil=1.0, **SCHEDULE), None)
    assert gate.elided(gate.decide(layout, data.sample_ids_B, step=1)) is None
    plain = Gate(GateConfig(keep_ratio=1.0, visual=HALF, **SCHEDULE), None)
    assert plain.elided(plain.decide(layout, data.sample_ids_B, step=0)) is None
    assert plain.distil == regate.DenseGate().distil == 0.0
    dense = regate.DenseGate()
    assert dense.elided(dense.decide(layout, data.sample_ids_B, step=0)) is None


def test_the_second_pass_is_what_a_sparse_step_there_would_compute():
    data = tiny.rows(visual=4, pad="right", seed=5)
    layout = layout_of(data)
    settings = {**SCHEDULE, "keep_ratio": 0.5, "visual": VisualConfig(0.5, "random")}
    gate = Gate(GateConfig(distil=1.0, **settings), None)
    elided = gate.elided(gate.decide(layout, data.sample_ids_B, step=4))
    sparse = Gate(GateConfig(**{**settings, "dense_steps": 0}), None).decide(layout, data.sample_ids_B, step=4)
    assert torch.equal(elided.active_BS, sparse.active_BS)
    assert torch.equal(elided.targets_BS, sparse.targets_BS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"distil": 0.0}, "a weight above 0"),
        ({"distil": 1.0, "keep_ratio": 1.0}, "elide nothing"),
        ({"distil": 1.0, "execution": "loss_only"}, "elide nothing"),
        ({"distil": 1.0, "dense_steps": 0, "warmup_steps": 0}, "the schedule has none"),
    ],
)
def test_settings_that_contradict_themselves(settings, says):
    with pytest.raises(ConfigError, match=says):
        GateConfig(**settings)


def test_passes_of_two_batches_are_refused():
    data = tiny.rows(visual=4, pad="right", seed=5)
    gate = Gate(GateConfig(keep_ratio=1.0, visual=HALF, distil=1.0, **SCHEDULE), None)
    decision = gate.decide(layout_of(data), data.sample_ids_B, step=0)
    other = tiny.select(data, data.layout.target_BS & (torch.arange(20) > 12))
    logits_NV = torch.zeros(other.counts.scored, 61)
    with pytest.raises(LayoutError, match="two batches"):
        regate.distil_loss(other, logits_NV, gate.elided(decision), torch.zeros(decision.counts.scored, 61))
