"""Accuracy against FLOPs: every arm of a suite as a point with its interval, and the front that no arm beats.

Arms that another one beats by the means are grey. A label takes the nearest place where it lies on nothing.
Legend: N boxes, 5 their sides and weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.analysis.curves import LABELS, scale_of
from harness.analysis.frontier import frontier
from harness.report.figures.style import INK, RULE, STYLE, look, new_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from harness.analysis.arms import Arms
    from harness.analysis.frontier import Point

_WIDTH, _HEIGHT, _MORE = 7.2, 4.6, 0.1
"""Inches; the last for each arm beyond eight."""
_SIZE: Final = 7.5
"""Points of a label's type."""
BEATEN: Final = "#a3a8ad"
_BEATEN_TEXT: Final = "#6b7075"
_STEPS: Final = (7, 12, 18, 26, 36, 48, 62, 78, 96, 116)
"""Distances from a mark, in points of the page, at which a label is tried."""
_MARGIN: Final = 2.0
"""Pixels of room around a label."""
_SIDES: Final = (
    (1, 0), (-1, 0), (0.9, 0.4), (-0.9, 0.4), (0.9, -0.4), (-0.9, -0.4), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7),
    (-0.7, -0.7), (0.3, 1), (-0.3, 1), (0.3, -1), (-0.3, -1), (0, 1), (0, -1),
)  # fmt: skip
_ON_A_LABEL: Final = 100.0
"""How much worse it is to lie on a label or a mark than on a bar or a line."""


def frontier_figure(arms: Arms, benchmark: str) -> Figure | None:
    """The points of `harness.analysis.frontier.frontier`; None with fewer than two arms to compare."""
    points = frontier(arms, benchmark)
    if len(points) < 2:
        return None
    scale, unit = scale_of([run for by_seed in arms.runs.values() for run in by_seed.values()], benchmark)
    return draw(points, f"{arms.name}: accuracy on {benchmark} against FLOPs", scale, unit)


def draw(points: Sequence[Point], title: str, scale: float, unit: str) -> Figure:
    """Points on one panel.

    Args:
        scale, unit: what an accuracy is multiplied by to be shown, and its name with the unit.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, _HEIGHT + _MORE * max(0, len(points) - 8))
        axes = figure.subplots()
        front = sorted((point for point in points if not point.dominated), key=lambda point: point.part)
        for place, point in enumerate(points):
            _mark(axes, point, place, scale)
        _line(axes, front, scale, color=INK, linewidth=1.1, zorder=2)
        stopped = sorted((point for point in points if not point.elides), key=lambda point: point.part)
        _line(axes, stopped, scale, color=RULE, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
        axes.set_xlabel("training FLOPs with the teacher's pass, as a part of the baseline's training")
        axes.set_ylabel(f"{unit}, paired with the baseline's")
        _room(axes, points, scale)
        figure.suptitle(f"{title}\n{_note(points)}", fontsize=9)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # labels are placed on the page as it now is
        _labels(axes, points, (front, stopped), scale)
    return figure


def _line(axes: Axes, points: Sequence[Point], scale: float, **style: Any) -> None:
    axes.plot([point.part for point in points], [scale * point.accuracy.mean for point in points], **style)


def _mark(axes: Axes, point: Point, place: int, scale: float) -> None:
    colour, mark = look(point.arm, place)
    shown = BEATEN if point.dominated else colour
    y, ends = scale * point.accuracy.mean, None
    if point.accuracy.low is not None and point.accuracy.high is not None:
        ends = [[y - scale * point.accuracy.low], [scale * point.accuracy.high - y]]
    axes.errorbar(
        [point.part], [y], yerr=ends, color=shown, marker=mark, markersize=6, elinewidth=1.2, capsize=2.5,
        linestyle="none", zorder=3 if point.dominated else 4,
    )  # fmt: skip
    if point.teacher:
        style: dict[str, Any] = {"color": shown, "linewidth": 1, "linestyle": (0, (1, 1.5)), "zorder": 2}
        axes.plot([point.training_part, point.part], [y, y], **style)


def _room(axes: Axes, points: Sequence[Point], scale: float) -> None:
    """Limits with room for labels at the sides."""
    lows = [p.accuracy.mean if p.accuracy.low is None else p.accuracy.low for p in points]
    highs = [p.accuracy.mean if p.accuracy.high is None else p.accuracy.high for p in points]
    parts = [p.part for p in points]
    across, up = max(parts) - min(parts) or 1.0, max(highs) - min(lows) or 1.0 / scale
    axes.set_xlim(min(parts) - 0.14 * across, max(parts) + 0.16 * across)
    axes.set_ylim(scale * (min(lows) - 0.06 * up), scale * (max(highs) + 0.06 * up))


def _note(points: Sequence[Point]) -> str:
    counts = sorted({point.seeds for point in points})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    parts = [
        f"{seeds} seed{'' if counts[-1] == 1 else 's'}; bars: 95 % t interval of the difference from the baseline"
        if counts[-1] > 1
        else "one seed an arm: no intervals",
        "line: the front; grey: beaten by the means",
    ]
    second = []
    if sum(not point.elides for point in points) > 1:
        second.append("dashed: nothing elided, fewer steps")
    if any(point.teacher for point in points):
        second.append("dotted: the teacher's pass")
    return "; ".join(parts) + (f"\n{'; '.join(second)}" if second else "")


# --- labels ----------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels."""
Taken = tuple[float, float, float, float, float]
"""A box, and how bad it is to lie on it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a label may stand: its box, its distance from the mark in points, and its side."""

    box: Box
    distance: float
    side: tuple[float, float]


def _labels(axes: Axes, points: Sequence[Point], lines: Sequence[Sequence[Point]], scale: float) -> None:
    """A label beside each mark, at the nearest place that is free, the front's first; far ones with a thin line."""
    figure = axes.get_figure()
    assert figure is not None
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixels = figure.dpi / 72
    at = {point.arm: _on_page(axes, point.part, scale * point.accuracy.mean) for point in points}
    mark = 4 * pixels
    taken = [(x - mark, y - mark, x + mark, y + mark, _ON_A_LABEL) for x, y in at.values()]
    taken += [(*box, 1.0) for point in points for box in _thin_boxes(axes, point, scale, pixels)]
    taken += [(*box, 1.0) for line in lines for box in _beads([at[point.arm] for point in line], pixels)]
    inside: Box = axes.get_window_extent(renderer).extents
    seeds_differ = len({point.seeds for point in points}) > 1
    for place, point in sorted(enumerate(points), key=lambda entry: (entry[1].dominated, -entry[1].accuracy.mean)):
        text = LABELS.get(point.arm, point.arm) + (f" ({point.seeds})" if seeds_differ else "")
        colour = _BEATEN_TEXT if point.dominated else look(point.arm, place)[0]
        style: dict[str, Any] = {"color": colour, "fontsize": _SIZE, "zorder": 5}
        trial = axes.annotate(text, at[point.arm], xycoords="figure pixels", **style)
        size = trial.get_window_extent(renderer)
        trial.remove()
        free = _free(_places(at[point.arm], size.width, size.height, pixels), taken, inside)
        taken.append((*free.box, _ON_A_LABEL))
        right, up = free.side
        line = {"arrowstyle": "-", "color": BEATEN, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            text,
            (point.part, scale * point.accuracy.mean),
            xytext=(right * free.distance, up * free.distance),  # in points: the same at every resolution
            textcoords="offset points",
            ha="left" if right > 0 else "right" if right < 0 else "center",
            va="bottom" if up > 0 else "top" if up < 0 else "center",
            arrowprops=line if free.distance > _STEPS[1] else None,
            **style,
        )


def _on_page(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """A point of the data in pixels."""
    across, up = axes.transData.transform((x, y))
    return float(across), float(up)


def _thin_boxes(axes: Axes, point: Point, scale: float, pixels: float) -> list[Box]:
    """Where a point's bar and its teacher's line are."""
    y = scale * point.accuracy.mean
    (x, middle), thin = _on_page(axes, point.part, y), 1.5 * pixels
    boxes: list[Box] = []
    if point.accuracy.low is not None and point.accuracy.high is not None:
        low, high = (_on_page(axes, point.part, scale * e)[1] for e in (point.accuracy.low, point.accuracy.high))
        boxes.append((x - thin, low, x + thin, high))
    if point.teacher:
        left, _ = _on_page(axes, point.training_part, y)
        boxes.append((left, middle - thin, x, middle + thin))
    return boxes


def _beads(corners: Sequence[tuple[float, float]], pixels: float) -> Iterator[Box]:
    """Small boxes along a line through the corners."""
    half = 1.5 * pixels
    for (x0, y0), (x1, y1) in pairwise(corners):
        count = int(max(abs(x1 - x0), abs(y1 - y0)) / (2 * half)) + 1
        for step in range(count + 1):
            x, y = x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count
            yield x - half, y - half, x + half, y + half


def _free(places: Iterator[_Place], taken: Sequence[Taken], inside: Box) -> _Place:
    """The nearest place that touches nothing; where none is free, the one that touches least, a label last of all."""
    candidates = list(places)
    within = [place for place in candidates if _contains(inside, place.box)] or candidates
    taken_N5 = np.array(taken)
    return min(within, key=lambda place: (_shared(place.box, taken_N5), place.distance))


def _places(at: tuple[float, float], width: float, height: float, pixels: float) -> Iterator[_Place]:
    for distance in _STEPS:
        for right, up in _SIDES:
            x, y = at[0] + right * distance * pixels, at[1] + up * distance * pixels
            left = x if right > 0 else x - width if right < 0 else x - width / 2
            bottom = y if up > 0 else y - height if up < 0 else y - height / 2
            yield _Place((left, bottom, left + width, bottom + height), float(distance), (right, up))


def _shared(box: Box, taken_N5: NDArray[np.float64]) -> float:
    """Pixels that a box, with some room around it, shares with others, each by its weight."""
    left, bottom, right, top = box
    across_N = np.minimum(right + _MARGIN, taken_N5[:, 2]) - np.maximum(left - _MARGIN, taken_N5[:, 0])
    up_N = np.minimum(top + _MARGIN, taken_N5[:, 3]) - np.maximum(bottom - _MARGIN, taken_N5[:, 1])
    return float((taken_N5[:, 4] * np.maximum(across_N, 0) * np.maximum(up_N, 0)).sum())


def _contains(outer: Box, inner: Box) -> bool:
    return inner[0] > outer[0] and inner[1] > outer[1] and inner[2] < outer[2] and inner[3] < outer[3]


__all__ = ["draw", "frontier_figure"]
