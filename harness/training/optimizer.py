"""AdamW and the cosine schedule as a function of the step, so that there is no scheduler state to lose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from harness.config.recipe import OptimizerRecipe
    from harness.models.adapter import ParameterGroup

_RATIO: Final = "lr_ratio"
"""Of a group of the optimizer: its learning rate over that of the recipe; absent where they are the same."""


def lr_at(recipe: OptimizerRecipe, step: int, total_steps: int) -> float:
    """Learning rate of an optimizer step: linear warm-up, then half a cosine to zero, never below the floor.

    The same curve as transformers' `get_cosine_schedule_with_warmup`, with `min_lr_ratio` as lower bound of both
    parts (VideoChat2's schedule).
    """
    warmup = math.ceil(total_steps * recipe.warmup_fraction)
    if step < warmup:
        factor = step / warmup
    else:
        progress = (step - warmup) / max(1, total_steps - warmup)
        factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    return recipe.lr * max(recipe.min_lr_ratio, factor)


def make_optimizer(
    model: nn.Module, recipe: OptimizerRecipe, groups: Sequence[ParameterGroup] = ()
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; vectors (biases, norms) are not decayed, unless their part says otherwise.

    Args:
        groups: parts of the model with learning rates of their own; empty where all share one.

    Raises:
        EnvironmentProblem: a trained parameter belongs to no part.
    """
    decayed = _decay_rule(groups)
    parts: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, **({} if ratio == 1 else {_RATIO: ratio})}
        for ratio, trained in _by_rate(model, recipe, groups)
        for decay, parameters in (
            (recipe.weight_decay, [p for p in trained if decayed(p)]),
            (0.0, [p for p in trained if not decayed(p)]),
        )
        if parameters
    ]
    # One fused kernel where the device has it; `foreach` would hold a second copy of the gradients.
    fused = all(
        p.device.type in ("cuda", "cpu") and p.is_floating_point() for part in parts for p in part["params"]
    )
    return torch.optim.AdamW(parts, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)


def _decay_rule(groups: Sequence[ParameterGroup]) -> Callable[[nn.Parameter], bool]:
    stated = {
        id(parameter): name in group.decayed
        for group in groups
        if group.decayed is not None
        for name, parameter in group.parameters.items()
    }
    return lambda parameter: stated.get(id(parameter), parameter.ndim > 1)


def _by_rate(
    model: nn.Module, recipe: OptimizerRecipe, groups: Sequence[ParameterGroup]
) -> list[tuple[float, list[nn.Parameter]]]:
    """(learning rate over that of the recipe, trained parameters of the model in its order)."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not groups:
        return [(1.0, list(trained.values()))]
    ratio_of = {
        id(parameter): 1.0 if group.lr is None else group.lr / recipe.lr
        for group in groups
        for parameter in group.parameters.values()
    }
    strange = [name for name, parameter in trained.items() if id(parameter) not in ratio_of]
    if strange:
        raise EnvironmentProblem(
            f"{len(strange)} trained parameters belong to no part ({', '.join(group.name for group in groups)}), "
            f"first {strange[0]}",
            hint="nothing says with which learning rate they are trained",
        )
    ratios = dict.fromkeys(ratio_of[id(parameter)] for parameter in trained.values())
    return [(ratio, [p for p in trained.values() if ratio_of[id(p)] == ratio]) for ratio in ratios]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The recipe's learning rate of a step; parts with one of their own follow the same curve."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_RATIO, 1.0)
