"""The learning rate against transformers' own schedule, and the parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from harness.common.errors import EnvironmentProblem
from harness.config.recipe import OptimizerRecipe
from harness.models.adapter import ParameterGroup
from harness.training.optimizer import lr_at, make_optimizer, set_lr


@pytest.mark.parametrize(("steps", "fraction"), [(100, 0.03), (57, 0.2), (10, 0.0)])
def test_same_curve_as_transformers(steps: int, fraction: float) -> None:
    recipe = OptimizerRecipe(lr=2e-5, warmup_fraction=fraction)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-5)
    warmup = -(-steps * fraction // 1)
    theirs = get_cosine_schedule_with_warmup(optimizer, int(warmup), steps)
    for step in range(steps):
        assert lr_at(recipe, step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_floor_of_videochat2() -> None:
    """It starts at a quarter of the rate, reaches the whole, and never falls below a quarter again."""
    recipe = OptimizerRecipe(lr=2e-5, warmup_fraction=0.2, min_lr_ratio=0.25)
    curve = [lr_at(recipe, step, 1000) for step in range(1000)]
    assert curve[0] == pytest.approx(5e-6)
    assert max(curve) == pytest.approx(2e-5)
    assert curve[-1] == pytest.approx(5e-6)
    assert min(curve) == pytest.approx(5e-6)


def test_vectors_are_not_decayed_and_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerRecipe(lr=1e-3, weight_decay=0.1))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert not any(p is model[2].weight for group in optimizer.param_groups for p in group["params"])


def test_parts_have_learning_rates_of_their_own() -> None:
    """All follow one curve; a trained parameter of no part is refused."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    names = dict(model.named_parameters())
    tower = ParameterGroup("tower", {name: names[name] for name in ("0.weight", "0.bias")}, lr=2e-4)
    decoder = ParameterGroup("decoder", {name: p for name, p in names.items() if not name.startswith("0.")})
    recipe = OptimizerRecipe(lr=1e-3, weight_decay=0.1)
    optimizer = make_optimizer(model, recipe, (tower, decoder))
    set_lr(optimizer, 5e-4)  # half of the way
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(names)
    for name, parameter in names.items():
        assert rates[id(parameter)] == pytest.approx(1e-4 if name.startswith("0.") else 5e-4)
    assert tower.counts() == {"parameters": 20, "trained": 20}
    with pytest.raises(EnvironmentProblem, match=r"4 trained parameters belong to no part \(tower\), first 1.weight"):
        make_optimizer(model, recipe, (tower,))


def test_one_rate_for_all_leaves_the_groups_as_they_were() -> None:
    """What a checkpoint keeps of the optimizer is the same with parts and without."""
    model = nn.Linear(4, 2)
    whole = ParameterGroup("decoder", dict(model.named_parameters()))
    plain, parted = (make_optimizer(model, OptimizerRecipe(lr=1e-3), groups) for groups in ((), (whole,)))
    assert plain.state_dict() == parted.state_dict()
