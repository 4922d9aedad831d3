"""Figures: pure functions of the records and item files, as SVG (text stays text) and PNG.

Drawn with matplotlib's Agg canvas and no global state of it; the same records give the same bytes with the same
matplotlib.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.pairs import Pair, Run, benchmarks_of, chance, load_runs, mean_of_tasks, pair_runs, teacher_cost
from harness.record import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.stats import Interval

_STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "regate",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
}
_COLOURS: Final = {"baseline": "#4d4d4d", "gated": "#0072b2"}
"""Told apart without colour vision, and by marker in print."""
_MARKERS: Final = {"baseline": "s", "gated": "o"}


Place = tuple[float, "Interval"]
"""x and accuracy of a point of one panel."""


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: what had been computed before it, and the mean accuracy with its interval."""

    step: int
    targets: int
    train_seconds: float
    accuracy: Interval


def build_figures(results_dir: Path) -> list[Path]:
    """Write every figure to results_dir/figures; the files written, none where no pair has an evaluation.

    Raises:
        DataError, StaleError: a record or its items are damaged or not what they say they are.
    """
    import matplotlib as mpl

    written = []
    for pair in pair_runs(load_runs(results_dir)):
        for benchmark in benchmarks_of(pair.runs):
            path = results_dir / "figures" / f"accuracy_{pair.name}_{benchmark}"
            with mpl.rc_context(_STYLE):
                figure = accuracy_figure(pair, benchmark)
                for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
                    out = io.BytesIO()
                    figure.savefig(out, format=suffix, dpi=160, metadata=metadata)
                    written.append(path.with_name(f"{path.name}.{suffix}"))
                    write_atomic(written[-1], out.getvalue())
    return written


def accuracy_figure(pair: Pair, benchmark: str) -> Figure:
    """Mean accuracy against computed targets and against training time, both arms, with 95 % intervals.

    The teacher's pass is no training step; on the time axis a hollow marker says where the last point lies with it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {_role(run): curve(run, benchmark) for run in pair.runs}
    labels = {_role(run): run.arm for run in pair.runs}
    points = [point for arm in curves.values() for point in arm]
    unit, name = _time_unit(max((point.train_seconds for point in points), default=0.0))
    teacher = teacher_cost(pair.gated)["seconds"] if pair.gated and pair.gated.record["reference"] else None
    guess = _guess(pair, benchmark)
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, {role: [(p.targets, p.accuracy) for p in arm] for role, arm in curves.items()}, labels)
    in_time = {role: [(p.train_seconds / unit, p.accuracy) for p in arm] for role, arm in curves.items()}
    _panel(right, in_time, labels, teacher=teacher / unit if teacher else None)
    left.set_xlabel("targets computed in training")
    right.set_xlabel(f"training time ({name})")
    left.set_ylabel("mean accuracy (%)")
    left.xaxis.set_major_formatter(lambda value, _position: _thousands(value))
    for axes in (left, right):
        _chance_line(axes, guess)
    _limits(left, [point.accuracy for point in points], guess)
    figure.suptitle(f"{pair.name}: accuracy on {benchmark}", fontsize=10)
    n = max((point.accuracy.n for point in points), default=0)
    note = f"One run an arm. Bars and bands: 95 % intervals over {n:,} questions, with the trained model fixed."
    figure.supxlabel(note, fontsize=7.5, color="#666666")
    return figure


def curve(run: Run, benchmark: str) -> list[Point]:
    """The run's evaluations in order of step, as far as their mean can be given an interval."""
    points = []
    for evaluation in run.evaluations(benchmark):
        mean = mean_of_tasks(evaluation, run.items(evaluation))
        if mean is not None:
            progress = evaluation["progress"]
            points.append(Point(evaluation["step"], progress["scored"], progress["train_seconds"], mean))
    return points


def _panel(axes: Axes, arms: dict[str, list[Place]], labels: dict[str, str], *, teacher: float | None = None) -> None:
    arms = {role: points for role, points in arms.items() if points}
    furthest = max(arms, key=lambda role: arms[role][-1][0], default=None)
    for role, points in arms.items():
        xs = [x for x, _ in points]
        value, low, high = ([100 * getattr(y, end) for _, y in points] for end in ("value", "low", "high"))
        axes.fill_between(xs, low, high, color=_COLOURS[role], alpha=0.12, linewidth=0)
        axes.errorbar(
            xs,
            value,
            yerr=[
                [v - w for v, w in zip(value, low, strict=True)],
                [w - v for v, w in zip(value, high, strict=True)],
            ],
            color=_COLOURS[role],
            marker=_MARKERS[role],
            markersize=5,
            linewidth=1.6,
            elinewidth=1,
            capsize=2.5,
        )
        above = _is_above(role, arms)
        if role == "gated" and teacher:
            _with_teacher(axes, xs[-1], value[-1], teacher, above=not above)
        text = f"{labels[role]} {value[-1]:.1f}"
        if role == furthest:
            offset, at, side = (8, 5 if above else -5), value[-1], {"ha": "left", "va": "center"}
        elif above:  # a rising curve leaves room above it on the left, and below it on the right
            offset, at, side = (6, 4), high[-1], {"ha": "right", "va": "bottom"}
        else:
            offset, at, side = (-6, -4), low[-1], {"ha": "left", "va": "top"}
        _write(axes, text, (xs[-1], at), offset, color=_COLOURS[role], fontweight="bold", **side)
    ends = [points[-1][0] + (teacher or 0.0 if role == "gated" else 0.0) for role, points in arms.items()]
    # Room on the right for the label of the arm that goes furthest.
    axes.set_xlim(0, 1.4 * max(ends, default=1.0))


def _with_teacher(axes: Axes, x: float, y: float, teacher: float, *, above: bool) -> None:
    colour = _COLOURS["gated"]
    axes.plot([x, x + teacher], [y, y], color=colour, linewidth=1, linestyle=(0, (1, 1.5)), zorder=2)
    axes.plot([x + teacher], [y], color=colour, marker="o", markersize=5, markerfacecolor="white", zorder=3)
    offset, side = ((0, 6), "bottom") if above else ((0, -6), "top")
    _write(axes, "with teacher", (x + teacher, y), offset, color=colour, fontsize=7.5, ha="center", va=side)


def _is_above(role: str, arms: dict[str, list[Place]]) -> bool:
    """Whether the arm's label goes above its last point: on the side away from the other arm's curve."""
    x, y = arms[role][-1]
    return all(y.value >= _value_at(points, x) for name, points in arms.items() if name != role)


def _value_at(points: Sequence[Place], x: float) -> float:
    """The curve at x, by straight lines, level beyond its ends."""
    import numpy as np

    return float(np.interp(x, [at for at, _ in points], [y.value for _, y in points]))


def _chance_line(axes: Axes, guess: float | None) -> None:
    if guess is None:
        return
    axes.axhline(100 * guess, color="#888888", linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    _write(axes, f"chance {100 * guess:.1f}", (0, 100 * guess), (4, 3), color="#666666", fontsize=8)


def _write(axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    """Text beside a point of the data, `offset` in points of the page."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **style)


def _limits(axes: Axes, intervals: Sequence[Interval], guess: float | None) -> None:
    """Room above and below for the labels; the chance line always in view, so that the scale is honest."""
    if not intervals:
        return
    lowest = min([interval.low for interval in intervals] + ([guess] if guess is not None else []))
    highest = max(interval.high for interval in intervals)
    room = max(0.04, 0.12 * (highest - lowest))
    axes.set_ylim(100 * max(0.0, lowest - room), 100 * min(1.08, highest + room))


def _guess(pair: Pair, benchmark: str) -> float | None:
    for run in pair.runs:
        evaluation = run.last(benchmark)
        if evaluation is not None:
            return chance(run, evaluation)
    return None


def _role(run: Run) -> str:
    return "baseline" if run.gate is None else "gated"


def _time_unit(longest: float) -> tuple[float, str]:
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if longest >= 3 * unit:
            return unit, name
    return 1.0, "s"


def _thousands(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


__all__ = ["Point", "accuracy_figure", "build_figures", "curve"]
