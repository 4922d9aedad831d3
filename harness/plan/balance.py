"""How evenly a step's work is spread over the GPUs, and what padded rows would add. No torch.

Legend: N samples that were looked at, G drawn global batches, B samples of one, M its micro-batches, K GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.data.dealing import deal, imbalance
from harness.plan.figures import Figure, estimated
from harness.plan.sparse import visual_part

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from harness.config.recipe import Recipe
    from harness.plan.work import Lengths

_DRAWN: Final = 32
"""Global batches."""
_ORDER: Final = 2
"""Seed of the draws."""


def balance_figures(recipe: Recipe, lengths: Lengths, gpus: int) -> list[Figure]:
    """The slowest GPU's positions over the mean in dense and sparse steps, and the padding of padded rows."""
    train = recipe.train
    if train.global_batch % (train.micro_batch * gpus):
        return []  # `check_devices` says so
    rng = np.random.default_rng(_ORDER)
    index_GB = rng.integers(len(lengths.target_N), size=(_DRAWN, train.global_batch))
    whole_N = lengths.visual_N + lengths.prompt_N + lengths.target_N
    cuts = [_cut(recipe, index_B, whole_N) for index_B in index_GB]
    figures = []
    if gpus > 1:
        spread = [_slowest(recipe, cuts, executed_N, gpus) for executed_N in _executed(recipe, lengths, whole_N)]
        how = "dealt by their positions" if _deals(recipe) else "dealt in turn"
        source = f"{_DRAWN} drawn global batches, micro-batches {how} to {gpus} GPUs; {lengths.padding}"
        figures.append(estimated("slowest GPU", min(spread), "x the mean positions", source, max(spread)))
    if train.micro_batch > 1 and train.rows != "packed":
        padded = sum(float(whole_N[rows].max(axis=1).sum()) * train.micro_batch for rows in cuts)
        share = 1 - sum(float(whole_N[rows].sum()) for rows in cuts) / padded
        source = f"of a dense step's positions, where rows cannot be packed; {lengths.padding}"
        figures.append(estimated("padding", 100 * share, "%", source))
    return figures


def _deals(recipe: Recipe) -> bool:
    return recipe.devices.balance and recipe.train.loss_norm in ("global_tokens", "micro_batch")


def _cut(recipe: Recipe, index_B: NDArray[Any], whole_N: NDArray[Any]) -> NDArray[Any]:
    """The samples of each micro-batch."""
    micro_batches = recipe.train.global_batch // recipe.train.micro_batch
    if recipe.train.cut == "level":
        return index_B[deal(whole_N[index_B], micro_batches)]
    return index_B.reshape(micro_batches, recipe.train.micro_batch)


def _executed(recipe: Recipe, lengths: Lengths, whole_N: NDArray[Any]) -> list[NDArray[Any]]:
    """Positions of a sample in a dense step, and in a sparse one where the recipe has any."""
    gate = recipe.gate
    if gate is None or not gate.has_sparse_steps or gate.execution == "loss_only":
        return [whole_N]
    gone_N = (1 - gate.keep_ratio) * lengths.target_N if gate.elides else 0.0
    return [whole_N, whole_N - gone_N - (1 - visual_part(gate)) * lengths.visual_N]


def _slowest(recipe: Recipe, cuts: list[NDArray[Any]], executed_N: NDArray[Any], gpus: int) -> float:
    """Mean over the drawn global batches."""
    ratios = []
    for rows in cuts:
        sums_M = executed_N[rows].sum(axis=1)
        dealt_KP = deal(sums_M, gpus) if _deals(recipe) else np.arange(len(sums_M)).reshape(-1, gpus).T
        ratios.append(imbalance(sums_M[dealt_KP].sum(axis=1)))
    return float(np.mean(ratios))
