"""The loss of a step against the formula, written out literally, for every way to weigh its targets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regate
from harness.training.loss_norm import norms_of, scored_per_row
from regate.types import IGNORE

if TYPE_CHECKING:
    from harness.training.loss_norm import LossNorm

# Labels of the samples of each micro-batch of each process: at least one process and one micro-batch.
MICRO_BATCH = st.lists(st.integers(0, 7), min_size=1, max_size=3)
STEPS = st.integers(1, 3).flatmap(
    lambda count: st.lists(st.lists(MICRO_BATCH, min_size=count, max_size=count), min_size=1, max_size=3)
)
SPARSE = regate.GateConfig(selection="random", keep_ratio=0.5, warmup_steps=0, cycle_steps=4, dense_steps=0)
KEPT = regate.GateConfig(selection="random", keep_ratio=1.0, warmup_steps=0)


def decision_of(labels: list[int], gate: regate.Gate | regate.DenseGate) -> regate.Decision:
    """A micro-batch of rows with so many labels."""
    length = max(labels) + 3
    labels_BS = torch.full((len(labels), length), IGNORE)
    for row, count in enumerate(labels):
        labels_BS[row, 2 : 2 + count] = torch.arange(count)
    layout = regate.layout_from_labels(labels_BS, torch.ones_like(labels_BS))
    return gate.decide(layout, torch.arange(len(labels)), step=1)


def differentiated(step: list[list[regate.Decision]], norm: LossNorm, losses: list[list[torch.Tensor]]) -> float:
    """What data parallelism and accumulation make of the micro-batches' numbers."""
    processes, accumulation = len(step), len(step[0])
    parts: list[torch.Tensor] = []  # of every process, before the sum

    def local(part: torch.Tensor) -> torch.Tensor:
        parts.append(part)
        return torch.ones_like(part)

    for decisions in step:
        norms_of(decisions, norm, sum_processes=local, processes=processes, accumulation=accumulation)
    total = 0.0
    for decisions, own in zip(step, losses, strict=True):
        norms = norms_of(
            decisions, norm, sum_processes=lambda _: sum(parts), processes=processes, accumulation=accumulation
        )
        for decision, loss_N, how in zip(decisions, own, norms, strict=True):
            total += float(how.total(decision, loss_N)) / accumulation / processes
    return total


def official(step: list[list[regate.Decision]], norm: LossNorm, losses: list[list[torch.Tensor]]) -> float:
    """sum(w l) / mean over processes of sum(w), for each micro-batch; then the mean over both."""
    weight = {"token": lambda n: 1.0, "sample": lambda n: 1 / n, "square": lambda n: 1 / math.sqrt(n)}[norm]
    processes, accumulation = len(step), len(step[0])
    total = 0.0
    for place in range(accumulation):
        sums, weighed = [], []
        for decisions, own in zip(step, losses, strict=True):
            rows = decisions[place].targets_BS.sum(dim=1).tolist()
            parts = own[place].split(rows)
            sums.append(sum(n * weight(n) for n in rows if n))
            weighed.append(sum(weight(n) * float(part.sum()) for n, part in zip(rows, parts, strict=True) if n))
        mean = sum(sums) / processes
        total += sum(loss / mean for loss in weighed) / processes if mean else 0.0
    return total / accumulation


@pytest.mark.parametrize("norm", ["token", "sample", "square"])
@given(labels=STEPS, sparse=st.booleans(), seed=st.integers(0, 999))
def test_the_official_reductions(norm: LossNorm, labels: list[list[list[int]]], sparse: bool, seed: int) -> None:
    gate = regate.Gate(SPARSE, None, seed=seed) if sparse else regate.DenseGate()
    step = [[decision_of(rows, gate) for rows in process] for process in labels]
    generator = torch.Generator().manual_seed(seed)
    losses = [
        [torch.rand(int(d.losses_BS.sum()), generator=generator, dtype=torch.float64) for d in process]
        for process in step
    ]
    assert differentiated(step, norm, losses) == pytest.approx(official(step, norm, losses), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("norm", ["token", "sample", "square", "global_tokens", "micro_batch"])
@given(labels=MICRO_BATCH)
def test_an_all_kept_step_is_the_dense_one_bit_for_bit(norm: LossNorm, labels: list[int]) -> None:
    losses = torch.rand(sum(labels), generator=torch.Generator().manual_seed(1))
    dense, kept = (decision_of(labels, gate) for gate in (regate.DenseGate(), regate.Gate(KEPT, None)))
    (first,), (second,) = (
        norms_of([d], norm, sum_processes=lambda local: local, processes=1, accumulation=1) for d in (dense, kept)
    )
    assert torch.equal(first.total(dense, losses), second.total(kept, losses))


@given(labels=STEPS, seed=st.integers(0, 999))
def test_the_mean_over_all_tokens(labels: list[list[list[int]]], seed: int) -> None:
    step = [[decision_of(rows, regate.DenseGate()) for rows in process] for process in labels]
    generator = torch.Generator().manual_seed(seed)
    losses = [[torch.rand(d.counts.scored, generator=generator, dtype=torch.float64) for d in own] for own in step]
    scored = sum(d.counts.scored for own in step for d in own)
    wanted = sum(float(part.sum()) for own in losses for part in own) / max(1, scored)
    assert differentiated(step, "global_tokens", losses) == pytest.approx(wanted, rel=1e-6)


@given(labels=MICRO_BATCH)
def test_targets_chosen_after_the_forward_pass_are_counted_before_it(labels: list[int]) -> None:
    config = regate.GateConfig(selection="loss", execution="loss_only", keep_ratio=0.5, warmup_steps=0, dense_steps=0)
    if not config.selects_after_forward:
        pytest.fail("the selection by the current loss is made after the forward pass")
    gate = regate.Gate(config, None)
    decision = decision_of(labels, gate)
    loss_N = torch.rand(int(decision.losses_BS.sum()), generator=torch.Generator().manual_seed(1))
    kept_N = gate.weights(decision, loss_N)
    rows = [int(part.sum()) for part in kept_N.split(decision.losses_BS.sum(dim=1).tolist())]
    assert rows == scored_per_row(decision).tolist()
