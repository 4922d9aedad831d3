"""A step of `regate` never waits for the accelerator: counted on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.utils import _to_kwargs

import regate
from regate import DenseGate, Gate, GateConfig
from tests.regate import tiny
from tests.regate.host_waits import counting

SETTINGS = [
    {"selection": "random"},
    {"selection": "random", "align": "union"},
    {"selection": "random", "align": "target"},
    {"selection": "loss", "execution": "loss_only"},
]


def waits_of(patch, model, gate, data, **attach):
    """The waits of one step, from the forward pass to the losses' weights. `observe` copies to pinned memory on an
    accelerator, which cannot be seen here."""
    decision = gate.decide(data.layout, data.sample_ids_B, step=0)
    elide, student = regate.attach(model, **attach), regate.ScoredLM(model)
    with elide(decision):  # the first step looks at the mask once
        student(predictor_BS=decision.predictor_BS, **data.inputs)
    with counting(patch) as waits:
        waits.mark(*model.parameters(), *data.inputs.values())
        with elide(decision):
            logits_NV = student(predictor_BS=decision.predictor_rows, **data.inputs)
        targets_N = decision.targets_N.clone()
        waits.mark(targets_N)
        loss_N = regate.token_loss(logits_NV, targets_N)
        weights_N = gate.weights(decision, loss_N)
        (loss_N * weights_N).sum().backward()
        assert waits.holds(loss_N)
        assert waits.holds(weights_N)
    elide.remove()
    return waits.names


@pytest.mark.parametrize("outputs", ["active", "predictors"])
@pytest.mark.parametrize("settings", [None, *SETTINGS], ids=str)
def test_packed_steps_wait_for_nothing(settings, outputs, monkeypatch):
    gate = DenseGate()
    if settings is not None:
        gate = Gate(GateConfig(warmup_steps=0, dense_steps=0, **settings), None)
    model = tiny.lm("Qwen2", double=False)
    assert waits_of(monkeypatch, model, gate, tiny.rows(), rows="packed", outputs=outputs) == []


def test_wrappers_leave_the_rows_where_they_are():
    """What DDP and fully_shard do to the arguments of the model that they wrap."""
    decision = DenseGate().decide(tiny.rows().layout, tiny.rows().sample_ids_B, step=0)
    given = {"mask": decision.predictor_BS, "rows": decision.predictor_rows}
    _, (moved,) = _to_kwargs((), given, torch.device("meta"), False)
    assert moved["mask"].is_meta
    assert moved["rows"] is given["rows"]
    assert not moved["rows"].place_N.is_meta


def test_sliding_windows_on_packed_rows_wait_for_nothing(monkeypatch):
    gate = Gate(GateConfig(warmup_steps=0, dense_steps=0, selection="random"), None)
    model = tiny.lm("Mistral", double=False, sliding_window=6)
    assert waits_of(monkeypatch, model, gate, tiny.rows(), rows="packed") == []


def test_padded_steps_wait_only_where_transformers_makes_its_mask(monkeypatch):
    """The reason to pack: the mask of padded rows is looked at before it is made."""
    gate = Gate(GateConfig(warmup_steps=0, dense_steps=0, selection="random"), None)
    model = tiny.lm("Qwen2", double=False)
    names = waits_of(monkeypatch, model, gate, tiny.rows(), rows="padded")
    assert names
    monkeypatch.setattr("transformers.masking_utils._ignore_causal_mask_sdpa", lambda *args, **kwargs: True)
    assert waits_of(monkeypatch, model, gate, tiny.rows(), rows="padded") == []


def test_the_counter_counts(monkeypatch):
    with counting(monkeypatch) as waits:
        value = torch.arange(6.0)
        waits.mark(value)
        hidden = value * 2
        host = torch.arange(6)
        assert host.sum().item() == 15
        assert host[host > 2].tolist() == [3, 4, 5]
        assert waits.names == []
        bool((hidden > 3).any())
        hidden[hidden > 3]
        hidden.sum().item()
        hidden.tolist()
        hidden.cpu()
        (hidden > 3).nonzero()
    assert waits.names == ["_local_scalar_dense", "index", "_local_scalar_dense", "tolist", "cpu", "nonzero"]
