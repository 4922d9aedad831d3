"""The continuous second measure of questions with options: the cross entropy of the right option.

Accuracy counts an item as right or wrong; the cross entropy also tells by how much. It is read from the items that
the accuracy was made from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.analysis.runs import scored_units, scoring_of
from harness.benchmarks.scoring import Scoring, overall, unit_values
from harness.records.record import read_items

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.analysis.arms import Arms
    from harness.analysis.runs import Evaluation, Run
    from harness.benchmarks.scoring import Units


def option_cross_entropy(item: Mapping[str, Any]) -> float:
    """- log p(right option), in nats, where p is the softmax over the options of their summed log-likelihoods.

    Args:
        item: `option_loss` has the summed loss of each option's tokens, `answer` the place of the right one.
    """
    losses = [-float(loss) for loss in item["option_loss"]]
    highest = max(losses)
    right: float = losses[item["answer"]]
    return highest + math.log(sum(math.exp(loss - highest) for loss in losses)) - right


def option_losses(run: Run, evaluation: Evaluation) -> Units | None:
    """task -> item -> cross entropy in nats, of the tasks that count in the score; None where the items are not kept,
    were not answered by scoring options, or are not scored one by one.

    Raises:
        DataError, StaleError: as `harness.records.record.read_items`.
    """
    items = read_items(run.folder, evaluation)
    if not items or scoring_of(evaluation).unit != "item" or not all(item.get("option_loss") for item in items):
        return None
    return scored_units(
        evaluation, unit_values(Scoring(), ({**item, "correct": option_cross_entropy(item)} for item in items))
    )


def loss_by_seed(arms: Arms, arm: str, benchmark: str) -> dict[int, float]:
    """seed -> mean cross entropy after the last step, tasks combined as for the score; seeds without it left out."""
    values = {}
    for seed, run in arms.runs.get(arm, {}).items():
        evaluation = run.last(benchmark)
        loss = mean_option_loss(run, evaluation) if evaluation else None
        if loss is not None:
            values[seed] = loss
    return values


def mean_option_loss(run: Run, evaluation: Evaluation) -> float | None:
    """Mean cross entropy in nats, tasks combined as for the score; None and errors as `option_losses`."""
    losses = option_losses(run, evaluation)
    return overall(Scoring(combine=scoring_of(evaluation).combine), losses) if losses else None


__all__ = ["loss_by_seed", "mean_option_loss", "option_cross_entropy", "option_losses"]
