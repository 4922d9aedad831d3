"""Accuracy against FLOPs: the arms of a suite as points, and which of them no other one beats.

FLOPs are those of the ledgers (decoder, head, tower and projector as each step computed them), with the teacher's
pass over the data added where the gate reads reference losses, as a part of the baseline's with the same seed.
Accuracies are compared within a seed: a point's is the baseline's mean plus the mean paired difference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from harness.analysis.seeds import Spread, spread
from harness.config.recipe import Recipe
from harness.plan.shapes import decoder_layers, parts_at, published_shapes, teacher_flops_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.analysis.arms import Arms
    from harness.analysis.runs import Run
    from harness.plan.shapes import Shape


@dataclass(frozen=True, slots=True)
class Point:
    """An arm.

    Attributes:
        seeds: with a score.
        flops: of training, mean over them.
        teacher: of the teacher's pass; 0 without one, None where the sizes of the model are not known.
        part: training and teacher as a part of the baseline's, mean over the seeds that have both.
        score: after the last step, over the seeds.
        difference: from the baseline, paired by seed; None for the baseline, and where no seed has both.
        accuracy: where the point stands: the baseline's mean plus the difference, with the interval of the
            difference; the mean score without an interval for the baseline.
        elides: False for an arm that computes all it sees.
        dominated: another arm has at least this accuracy for at most these FLOPs, and one of the two is better.
    """

    arm: str
    seeds: int
    flops: float
    teacher: float | None
    part: float
    score: Spread
    difference: Spread | None
    accuracy: Spread
    elides: bool
    dominated: bool = False

    @property
    def training_part(self) -> float:
        """`part` without the teacher's pass."""
        return self.part * self.flops / (self.flops + (self.teacher or 0.0))


@dataclass(frozen=True, slots=True)
class PartsAtShape:
    """An arm's FLOPs as parts of the baseline's: at each model's shapes, without and with the teacher's pass."""

    arm: str
    by_model: dict[str, tuple[float, float]]


def frontier(arms: Arms, benchmark: str) -> list[Point]:
    """The arms that were scored and share a seed with the baseline, in the order of the suite; empty where the
    baseline was not scored."""
    base_scores = arms.scores(arms.baseline, benchmark)
    if not base_scores:
        return []
    base = spread(list(base_scores.values()))
    points = []
    for arm, by_seed in arms.runs.items():
        scores = arms.scores(arm, benchmark)
        difference = None if arm == arms.baseline else arms.difference(arm, arms.baseline, benchmark)
        shared = sorted(scores.keys() & base_scores.keys())
        if not shared or (difference is None and arm != arms.baseline):
            continue
        teachers = [_teacher(by_seed[seed]) for seed in shared]
        known = [value for value in teachers if value is not None]
        parts = [
            (by_seed[seed].totals["flops"] + (teacher or 0.0)) / arms.runs[arms.baseline][seed].totals["flops"]
            for seed, teacher in zip(shared, teachers, strict=True)
        ]
        points.append(
            Point(
                arm=arm,
                seeds=len(scores),
                flops=fmean(by_seed[seed].totals["flops"] for seed in scores),
                teacher=fmean(known) if len(known) == len(teachers) else None,
                part=fmean(parts),
                score=spread(list(scores.values())),
                difference=difference,
                accuracy=_at(base, difference),
                elides=any(run.gate is not None for run in by_seed.values()),
            )
        )
    return with_dominated(points)


def with_dominated(points: Sequence[Point]) -> list[Point]:
    """The points, each with whether another one beats it, by the means alone."""

    def beats(other: Point, point: Point) -> bool:
        cheaper, better = point.part - other.part, other.accuracy.mean - point.accuracy.mean
        return cheaper >= 0 and better >= 0 and (cheaper > 0 or better > 0)

    return [replace(point, dominated=any(beats(other, point) for other in points)) for point in points]


def at_published_shapes(arms: Arms) -> list[PartsAtShape]:
    """Each arm's FLOPs with the paper's models in place of the suite's: its own dense and sparse steps, those of the
    other shapes. Empty without a baseline. Left out are arms that see other frames than the baseline, and arms with a
    gate where the depth of their own model is not known."""
    base = arms.runs.get(arms.baseline)
    if not base:
        return []
    shapes = published_shapes()
    steps = fmean(run.totals["steps"] for run in base.values())
    frames = accounted_recipe(next(iter(base.values()))).data.frames
    rows = []
    for arm, by_seed in arms.runs.items():
        run = next(iter(by_seed.values()))
        recipe = accounted_recipe(run)
        layers = decoder_layers(recipe)
        if (layers is None and recipe.gate is not None) or recipe.data.frames != frames:
            continue
        own = fmean(run.totals["steps"] for run in by_seed.values()) / steps
        by_model = {name: _parts(run, recipe, shape, layers or 1, own) for name, shape in shapes.items()}
        rows.append(PartsAtShape(arm, by_model))
    return rows


def _parts(run: Run, recipe: Recipe, shape: Shape, layers: int, own: float) -> tuple[float, float]:
    """A run's FLOPs at a shape as parts of the baseline's: without and with the teacher's pass.

    Args:
        own: its steps as a part of the baseline's.
    """
    if recipe.gate is None:
        return own, own
    plan = run.record["plan"]
    sparse_steps, steps = plan["sparse_steps"], plan["steps"]
    gate = recipe.gate
    if gate.ramp is not None and sparse_steps:
        gate = replace(gate, keep_ratio=1 - (1 - plan["keep_ratio"]) * steps / sparse_steps, ramp=None)
    parts = parts_at(shape, gate, layers)
    training = own * ((steps - sparse_steps) * parts.dense + sparse_steps * parts.sparse) / steps
    visits = steps * plan["global_batch"]
    return training, training + own * parts.teacher * plan["samples"] / visits


def accounted_recipe(run: Run) -> Recipe:
    """The recipe of a finished run for an account of its FLOPs: a selection rule of the user's own, which changes
    none of them but for the signals that it reads, stands as one that reads the same."""
    recipe = {key: value for key, value in run.record["recipe"].items() if key != "paths"}
    if isinstance(recipe["gate"], dict) and isinstance(recipe["gate"]["selection"], dict):
        selection = "reference" if run.record["reference"] is not None else "random"
        recipe["gate"] = {**recipe["gate"], "selection": selection}
    return Recipe.model_validate_json(json.dumps(recipe))


def _teacher(run: Run) -> float | None:
    """FLOPs of the teacher's pass that a run reads, for samples of the mean length that its ledger saw."""
    counts, samples = run.totals["counts"], run.totals["samples"]
    if run.gate is None or not samples:
        return 0.0
    of_one = teacher_flops_of(
        accounted_recipe(run),
        positions=counts["valid"] / samples,
        visual=counts["visual"] / samples,
        targets=counts["target"] / samples,
    )
    return None if of_one is None else of_one * int(run.record["plan"]["samples"])


def _at(base: Spread, difference: Spread | None) -> Spread:
    """The baseline's mean plus a paired difference, with the difference's interval."""
    if difference is None:
        return replace(base, sd=None, low=None, high=None)

    def moved(value: float | None) -> float | None:
        return None if value is None else base.mean + value

    return replace(
        difference,
        mean=base.mean + difference.mean,
        low=moved(difference.low),
        high=moved(difference.high),
        least=base.mean + difference.least,
        most=base.mean + difference.most,
    )


__all__ = ["PartsAtShape", "Point", "accounted_recipe", "at_published_shapes", "frontier", "with_dominated"]
