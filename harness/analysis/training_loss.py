"""The loss of a training step by step, as the ledger in the run's folder tells it; dense and sparse steps apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from harness.records.ledger import read_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.analysis.runs import Run

MOST_POINTS: Final = 400
"""Of a curve; a longer one is drawn by the means of neighbouring steps."""
WINDOW: Final = 0.05
"""Part of a curve's points that are averaged where it is smoothed."""


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The loss of some steps of a run, nats a target.

    Attributes:
        steps: from 1; of neighbouring steps that are drawn as one, the middle.
        losses: means over the scored targets of a step, or of the steps that are drawn as one.
        smoothed: running means of `losses` about each of them.
        together: steps that are drawn as one.
    """

    steps: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    together: int


def loss_curves(run: Run, most: int | None = None) -> dict[str, LossCurve]:
    """`dense` and `sparse`, as far as the run has such steps; none where its ledger was not kept beside the record.

    Args:
        most: points of a curve; None takes MOST_POINTS.

    Raises:
        DataError: the ledger is damaged.
    """
    path = run.folder / "ledger.jsonl"
    if not path.is_file():
        return {}
    steps = [event for event in read_steps(path) if event.get("loss") is not None and not event.get("skipped")]
    kinds = {"dense": [event for event in steps if not _sparse(event)], "sparse": list(filter(_sparse, steps))}
    most = MOST_POINTS if most is None else most
    return {kind: _curve(events, most) for kind, events in kinds.items() if len(events) > 1}


def mean_curve(curves: Sequence[LossCurve]) -> LossCurve | None:
    """The mean over seeds, step by step; None where they have other steps, which a mean would mix."""
    first, *others = curves
    if any(curve.steps != first.steps for curve in others):
        return None
    losses = tuple(map(fmean, zip(*(curve.losses for curve in curves), strict=True)))
    smoothed = tuple(map(fmean, zip(*(curve.smoothed for curve in curves), strict=True)))
    return LossCurve(first.steps, losses, smoothed, first.together)


def _sparse(event: Mapping[str, Any]) -> bool:
    return float(event.get("keep_ratio", 1.0)) < 1.0


def _curve(events: Sequence[Mapping[str, Any]], most: int) -> LossCurve:
    together = -(-len(events) // most)
    edges = [*range(0, len(events), together), len(events)]
    groups = [events[first:stop] for first, stop in pairwise(edges)]
    losses = [fmean(float(event["loss"]) for event in group) for group in groups]
    reach = round(WINDOW * len(losses) / 2)
    smoothed = [fmean(losses[max(0, place - reach) : place + reach + 1]) for place in range(len(losses))]
    steps = [fmean(event["step"] + 1 for event in group) for group in groups]
    return LossCurve(tuple(steps), tuple(losses), tuple(smoothed), together)


__all__ = ["LossCurve", "loss_curves", "mean_curve"]
