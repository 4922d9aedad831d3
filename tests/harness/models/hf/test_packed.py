"""Every family in the form that training takes: rows packed, the last layer on what is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import regate
from tests.harness.models.hf.test_families import batch_of, dense, half
from tests.harness.worlds.transformers_models import PARAMS, gradients, made, recipe_of

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="module", params=PARAMS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(recipe_of(tmp_path_factory.mktemp(request.param), request.param))


def run(adapter: Any, student: Any, batch: Any, decision: Any, **how: Any) -> tuple[torch.Tensor, Any, Any]:
    """Logits, gradients and the elision that the pass ran under."""
    student.zero_grad()
    elide = regate.attach(student, execution="compact", **how)
    seen: list[Any] = []
    hook = student.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    try:
        with elide(decision):
            logits_NV, targets_N = adapter.forward(regate.ScoredLM(student), batch, decision)
        regate.token_loss(logits_NV, targets_N).sum().backward()
    finally:
        elide.remove()
        hook.remove()
    return logits_NV.detach(), gradients(student), elide


@pytest.mark.parametrize("choose", [dense, half])
def test_packed_rows_are_padded_ones(adapter: Any, choose: Any) -> None:
    """Positions of three axes and features of deeper layers too; also where the last layer computes what is read."""
    student, batch = adapter.student().double().train(), batch_of(adapter, 0, 1, 2, 3)
    decision = choose(batch)
    padded = run(adapter, student, batch, decision)
    for outputs in ("active", "predictors"):
        packed = run(adapter, student, batch, decision, rows="packed", outputs=outputs)
        assert packed[2].rows == "packed"
        assert float((packed[0] - padded[0]).abs().max()) < 1e-9
        assert packed[1].keys() == padded[1].keys()
        assert max(float((packed[1][name] - padded[1][name]).abs().max()) for name in padded[1]) < 1e-8
