"""What an evaluation asks: generations, their hours, and the smallest difference that they would show. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from harness.benchmarks import BENCHMARKS, PaperBenchmark
from harness.common.numbers import percent
from harness.models.decoder_flops import forward_flops
from harness.plan.figures import Figure, counted, estimated
from harness.plan.work import GOOD_USE, PAPER_USE, PEAK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.footprint import Footprint
    from harness.plan import Plan

BANDWIDTH: Final = 3.35e12
"""Bytes a second of an H100 SXM's memory, by its data sheet."""
SHORT_ANSWER: Final = 3
"""Tokens of an answer that is a letter or a word and its end: an assumption."""
QUESTION: Final = 60
"""Tokens of a question with its options and its template: an assumption."""
DISAGREE: Final = (0.10, 0.15)
"""Part of the items that two arms answer differently: baseline and ReGATE of the five seeds of tiny_claim."""
POWER: Final = 2.80
"""Standard errors of a difference that is found four times in five at the 5 % level, two-sided: 1.96 + 0.84."""
IMAGE_MOVES: Final = 100.0
"""Points by which an image of MME moves when an answer about it does: 50 of its accuracy, 100 where both hold."""


def asked(plan: Plan) -> list[PaperBenchmark]:
    """The plan's benchmarks that lmms-eval asks."""
    named = (BENCHMARKS.get(name) for name in plan.benchmarks)
    return [benchmark for benchmark in named if isinstance(benchmark, PaperBenchmark)]


def parts_asked(benchmark: PaperBenchmark, limit: int | None) -> Mapping[str, int]:
    """Items of each part."""
    return {part: items if limit is None else min(items, limit) for part, items in benchmark.parts.items()}


def question_figures(recipe: Recipe, plan: Plan, footprint: Footprint, data: DataSet | None) -> list[Figure]:
    """Questions of all points, and the hours of those that are generated."""
    limit, points = recipe.evaluate.limit, len(plan.evaluations)
    figures = []
    if data is not None and data.questions and any(name not in _published() for name in plan.benchmarks):
        source = f"{len(data.questions):,} held-out questions at {points} points"
        figures.append(counted("own questions", len(data.questions) * points, "", source))
    items = [(benchmark, sum(parts_asked(benchmark, limit).values())) for benchmark in asked(plan)]
    if not items:
        return figures
    total = sum(count for _, count in items)
    figures.append(counted("generations", total * points, "", f"{total:,} items at {points} points"))
    if recipe.model.generated:
        return figures
    short, long = 0.0, 0.0
    for benchmark, count in items:
        short += count * _seconds(footprint, GOOD_USE, SHORT_ANSWER)
        long += count * _seconds(footprint, PAPER_USE, benchmark.max_new_tokens)
    figures.append(
        estimated(
            "their GPU-hours",
            short * points / 3600,
            "GPU-hours",
            f"an item after the other: its pass at {percent(GOOD_USE, 0)} and {percent(PAPER_USE, 1)} of an H100, "
            f"answers of {SHORT_ANSWER} tokens and as long as they may be, each reading all weights",
            long * points / 3600,
        )
    )
    return figures


def _seconds(footprint: Footprint, use: float, tokens: int) -> float:
    """One generated answer."""
    forward = forward_flops(footprint.decoder, [footprint.visual_tokens + QUESTION], 1)
    work = forward.linear + forward.attention + forward.head + sum(part.forward for part in footprint.parts)
    return work / (PEAK * use) + tokens * 2 * footprint.decoder_parameters / BANDWIDTH


def _published() -> set[str]:
    return {name for name, benchmark in BENCHMARKS.items() if isinstance(benchmark, PaperBenchmark)}


# --- the smallest difference -----------------------------------------------------------------------------


def difference_figures(recipe: Recipe, plan: Plan, data: DataSet | None) -> list[Figure]:
    """Of two runs on each benchmark: what would be found four times in five, by the number of questions alone."""
    figures = []
    for name in plan.benchmarks:
        benchmark = BENCHMARKS.get(name)
        if isinstance(benchmark, PaperBenchmark):
            figures.append(_published_difference(benchmark, recipe.evaluate.limit))
        elif data is not None and data.questions:
            counts: dict[str, int] = {}
            for question in data.questions:
                counts[question.ability] = counts.get(question.ability, 0) + 1
            weighted = [(1 / len(counts), count) for count in counts.values()]
            figures.append(_difference(name, weighted, 100.0))
    return figures


def _published_difference(benchmark: PaperBenchmark, limit: int | None) -> Figure:
    parts, scoring = list(parts_asked(benchmark, limit).values()), benchmark.scoring
    each = 1 if scoring.unit == "item" else 2  # two questions of an image, two of a pair
    units = [max(1, count // each) for count in parts]
    if scoring.combine == "mean":
        weighted = [(1 / len(units), count) for count in units]
    elif scoring.combine == "sum":
        weighted = [(1.0, count) for count in units]
    else:
        weighted = [(count / sum(units), count) for count in units]
    moves = IMAGE_MOVES if scoring.unit == "mme" else 100.0
    return _difference(benchmark.name, weighted, moves, items=each)


def _difference(name: str, parts: list[tuple[float, int]], moves: float, *, items: int = 1) -> Figure:
    """Of a sum over parts.

    Args:
        parts: weight and number of units of each.
        moves: by how many points a unit's score moves when it does.
        items: of a unit; it moves when one of them does.
    """
    share = sum(weight**2 / count for weight, count in parts)
    low, high = (POWER * moves * math.sqrt((1 - (1 - part) ** items) * share) for part in DISAGREE)
    source = (
        f"questions alone: {percent(DISAGREE[0], 0)} to {percent(DISAGREE[1], 0)} of them answered differently, as "
        "in tiny_claim; 5 % level, power 0.8; the spread over seeds comes on top"
    )
    return estimated(name, low, "points", source, high)
