"""AdamW and the cosine schedule as a function of the step, so that there is no scheduler state to lose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from harness.config.recipe import OptimizerRecipe


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


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over the trained parameters; vectors (biases, norms) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # One fused kernel where the device has it; `foreach` would hold a second copy of the gradients.
    fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=fused,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
