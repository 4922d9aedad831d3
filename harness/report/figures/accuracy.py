"""Figure 1 of the paper with our own runs: accuracy against computed targets and against time, arm beside arm.

A pair shows one run an arm with intervals over the questions; a suite shows the mean over seeds with the spread
between them. The paper's own points stand in panels of their own, never among measured ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.curves import (
    adapter_of,
    curve,
    guess_of,
    paper_hardware,
    paper_points,
    scale_of,
    several_devices,
)
from harness.analysis.paper.numbers import MODELS
from harness.analysis.runs import teacher_cost
from harness.analysis.summary import time_is_comparable
from harness.report.figures.style import FAINT, PAPER, RULE, STYLE, look, new_figure, thousands, time_unit, write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.analysis.curves import Arm, PaperPoint, Point
    from harness.analysis.runs import Pair, Run

WHICH: Final = ("targets", "time", "device_hours")
"""The panels there are."""
_WIDTH, _HEIGHT = 4.3, 4.3
"""Inches of a panel."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The x axis of a panel.

    Attributes:
        place: a point's place on it.
        teacher: how far the teacher's pass reaches on it, from the seconds and device-hours of `teacher_cost`; None
            on an axis of tokens.
    """

    name: str
    place: Callable[[Point], float]
    teacher: Callable[[Mapping[str, float | None]], float | None] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A curve of a figure.

    Attributes:
        name: what decides its colour and mark.
        seeds: curves behind it, drawn as thin lines; empty for a single run.
        teacher: cost of the teacher's pass, which is no training step, or None for an arm without one.
    """

    name: str
    label: str
    points: Sequence[Point]
    seeds: Sequence[Sequence[Point]] = ()
    teacher: Mapping[str, float | None] | None = None


def panels_of(runs: Sequence[Run]) -> tuple[str, ...]:
    """The panels that say something of these runs: time only where it can be compared (`time_is_comparable`), and
    device-hours only where some run held several devices."""
    if not time_is_comparable(runs):
        return WHICH[:1]
    return WHICH if several_devices(runs) else WHICH[:2]


def accuracy_figure(pair: Pair, benchmark: str, which: Sequence[str] | None = None) -> Figure:
    """Mean accuracy of both arms of a pair, with 95 % intervals over the questions.

    Args:
        which: panels, of `WHICH`; None takes `panels_of` the pair.
    """
    drawn = [
        Drawn("baseline" if run.gate is None else "regate", run.arm, curve(run, benchmark), teacher=_teacher(run))
        for run in pair.runs
    ]
    n = max((point.accuracy.n for arm in drawn for point in arm.points), default=0)
    note = f"One run an arm. Bars and bands: 95 % intervals over {n:,} questions,\nwith the trained model fixed."
    return _figure(pair.name, pair.runs, [arm for arm in drawn if arm.points], benchmark, note, which)


def suite_figure(suite: str, arms: Sequence[Arm], benchmark: str, which: Sequence[str] | None = None) -> Figure:
    """Mean accuracy over seeds of each arm, a t interval of the seeds as band, and each seed as a thin line."""
    runs = [run for arm in arms for run in arm.runs]
    drawn = [
        Drawn(arm.name, arm.label, arm.points, arm.seeds if len(arm.seeds) > 1 else (), _mean_teacher(arm.runs))
        for arm in arms
    ]
    return _figure(suite, runs, drawn, benchmark, _seeds_note(arms), which)


def _figure(
    name: str,
    runs: Sequence[Run],
    drawn: Sequence[Drawn],
    benchmark: str,
    note: str,
    which: Sequence[str] | None,
) -> Figure:
    """One panel for each of `which`, the legend with the last values below, and below our row the paper's."""
    import matplotlib as mpl

    which = panels_of(runs) if which is None else which
    paper = paper_points(adapter_of(runs[0]), benchmark)
    scale, unit = scale_of(runs, benchmark)
    guess = guess_of(runs, benchmark)
    entries = len(drawn) + (any(arm.teacher for arm in drawn) and list(which) != ["targets"])
    columns = 2 if len(which) > 1 else 1
    with mpl.rc_context(STYLE):
        height = _HEIGHT * (1.85 if paper else 1.0) + 0.17 * max(0, -(-entries // columns) - 2)
        figure = new_figure(_WIDTH * len(which), height)
        rows = figure.subplots(2 if paper else 1, len(which), sharey="row", squeeze=False)
        figure.suptitle(f"{name}: accuracy on {benchmark}", fontsize=10)
        for axes, panel in zip(rows[0], which, strict=True):
            axis = _axis(panel, drawn, runs)
            ends = [_arm(axes, arm, axis, scale, place) for place, arm in enumerate(drawn)]
            axes.set_xlim(0, 1.06 * max(ends, default=1.0))
            _dress(axes, axis, drawn, guess, scale)
        rows[0][0].set_ylabel(unit)
        handles, texts = _legend(rows[0])
        figure.legend(
            handles,
            texts,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=8,
            title=note,
            title_fontproperties={"size": 7.5},
        )
        if paper:
            _paper_row(rows[1], which, paper, adapter_of(runs[0]))
    return figure


def _arm(axes: Axes, arm: Drawn, axis: Axis, scale: float, place: int) -> float:
    """Draw an arm in a panel; how far right it reaches."""
    colour, mark = look(arm.name, place)
    for seed in arm.seeds:
        ys = [scale * point.accuracy.value for point in seed]
        axes.plot([axis.place(p) for p in seed], ys, color=colour, linewidth=0.7, alpha=0.35, zorder=1)
    if not arm.points:  # seeds without a step in common
        return max((axis.place(seed[-1]) for seed in arm.seeds), default=0.0)
    xs = [axis.place(point) for point in arm.points]
    value, low, high = ([scale * getattr(p.accuracy, end) for p in arm.points] for end in ("value", "low", "high"))
    bars = [[v - w for v, w in zip(value, low, strict=True)], [w - v for v, w in zip(value, high, strict=True)]]
    axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
    line: dict[str, Any] = {
        "color": colour,
        "marker": mark,
        "markersize": 5,
        "linewidth": 1.6,
        "elinewidth": 1,
        "capsize": 2.5,
    }
    text = f"{arm.label} {value[-1]:.1f} [{low[-1]:.1f}, {high[-1]:.1f}]"
    axes.errorbar(xs, value, yerr=bars, label=text, **line)
    reach = axis.teacher(arm.teacher) if axis.teacher is not None and arm.teacher is not None else None
    if reach is None:
        return max([*xs, *(axis.place(seed[-1]) for seed in arm.seeds)])
    axes.plot([xs[-1], xs[-1] + reach], [value[-1]] * 2, color=colour, linewidth=1, linestyle=(0, (1, 1.5)), zorder=2)
    hollow: dict[str, Any] = {
        "color": colour,
        "marker": mark,
        "markersize": 5,
        "markerfacecolor": PAPER,
        "linestyle": "none",
    }
    axes.plot([xs[-1] + reach], [value[-1]], zorder=3, label=_TEACHER, **hollow)
    return xs[-1] + reach


_TEACHER: Final = "hollow marks: with the teacher's pass"


def _legend(panels: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Every label of any panel once; the teacher's pass last."""
    handles: dict[str, Any] = {}
    for axes in panels:
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    texts = sorted(handles, key=lambda text: text == _TEACHER)
    return [handles[text] for text in texts], texts


def _teacher(run: Run) -> Mapping[str, float | None] | None:
    return teacher_cost(run) if run.gate is not None and run.record["reference"] is not None else None


def _mean_teacher(runs: Sequence[Run]) -> Mapping[str, float | None] | None:
    """The mean cost over seeds, where every one of them has it."""
    costs = [_teacher(run) or {} for run in runs]
    means = {}
    for key in ("seconds", "device_hours"):
        values = [value for cost in costs if (value := cost.get(key)) is not None]
        means[key] = fmean(values) if len(values) == len(runs) else None
    return means if means["seconds"] is not None else None


def _seeds_note(arms: Sequence[Arm]) -> str:
    several = sorted({len(arm.seeds) for arm in arms if len(arm.seeds) > 1})
    single = [arm.label for arm in arms if len(arm.seeds) == 1]
    notes = []
    if several:
        counts = f"{several[0]}" if len(several) == 1 else f"{several[0]} to {several[-1]}"
        notes.append(f"Mean of {counts} seeds (thin lines).\nBars and bands: 95 % t interval of the seeds.")
    if single:
        notes.append(f"One seed, interval over the questions: {', '.join(single)}.")
    return "\n".join(notes)


# --- the paper's own points ------------------------------------------------------------------------------


def _paper_row(row: Sequence[Axes], which: Sequence[str], points: Sequence[PaperPoint], adapter: str) -> None:
    """The paper's Table 4, in panels that say whose numbers they are."""
    hardware = paper_hardware(adapter)
    devices = int(hardware.split("x")[0])
    names = {
        "targets": "tokens, as the paper counts them",
        "time": f"training time (h) on {hardware}",
        "device_hours": f"GPU-hours ({hardware})",
    }
    for axes, name in zip(row, which, strict=True):
        at = {"targets": lambda p: p.tokens, "time": lambda p: p.hours, "device_hours": lambda p: devices * p.hours}
        furthest = max(at[name](point) for point in points)
        for point in points:
            colour, mark = look("baseline" if point.label == "baseline" else "regate", 0)
            x, y = at[name](point), 100 * point.accuracy
            axes.plot([x], [y], color=colour, marker=mark, markersize=6, linestyle="none")
            write(axes, f"{point.label} {y:.1f}", (x, y), (0, 6), color=colour, ha="center", fontsize=8)
        axes.set_xlim(0, 1.3 * furthest)
        low, high = (100 * end(point.accuracy for point in points) for end in (min, max))
        axes.set_ylim(low - 1, high + 1)
        axes.set_xlabel(names[name])
        if name == "targets":
            axes.xaxis.set_major_formatter(lambda value, _position: thousands(value))
        axes.set_title(f"reported by the paper, v1 Table 4: {MODELS[adapter]}", fontsize=8.5, color=FAINT)
    row[0].set_ylabel("MVBench (%)")


# --- axes ------------------------------------------------------------------------------------------------


def _axis(name: str, drawn: Sequence[Drawn], runs: Sequence[Run]) -> Axis:
    if name == "targets":
        return Axis("targets computed in training", lambda point: point.targets)
    points = [point for arm in drawn for point in (*arm.points, *(p for seed in arm.seeds for p in seed))]
    device = "GPU" if any(run.record["provenance"]["hardware"].get("gpus") for run in runs) else "device"
    if name == "time" and all(point.cpu_seconds is not None for point in points):
        # What a CPU computed, whatever else the machine did. The teacher's pass is known by the wall alone.
        size, word = time_unit(max((point.cpu_seconds or 0.0 for point in points), default=0.0))
        return Axis(f"training (CPU {word})", lambda point: (point.cpu_seconds or 0.0) / size, lambda _cost: None)
    if name == "time":
        size, word = time_unit(max((point.train_seconds for point in points), default=0.0))
        alone = "" if several_devices(runs) else f", one {device}"
        return Axis(
            f"training time ({word}{alone})",
            lambda point: point.train_seconds / size,
            lambda cost: _over(cost["seconds"], size),
        )
    # A toy run's device-hours are shown in device-seconds, so that they do not read 0.002.
    size, word = time_unit(max((3600 * point.device_hours for point in points), default=0.0))
    return Axis(
        f"training ({device}-{'hours' if word == 'h' else word})",
        lambda point: 3600 * point.device_hours / size,
        lambda cost: _over(cost["device_hours"], size / 3600),
    )


def _over(value: float | None, size: float) -> float | None:
    return None if value is None else value / size


def _dress(axes: Axes, axis: Axis, drawn: Sequence[Drawn], guess: float | None, scale: float) -> None:
    axes.set_xlabel(axis.name)
    if axis.teacher is None:
        axes.xaxis.set_major_formatter(lambda value, _position: thousands(value))
    if guess is not None:
        axes.axhline(scale * guess, color=RULE, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        write(axes, f"chance {scale * guess:.1f}", (0, scale * guess), (4, 3), color=FAINT, fontsize=8)
    shown = [p.accuracy for arm in drawn for p in (*arm.points, *(point for seed in arm.seeds for point in seed))]
    if not shown:
        return
    # The chance line is always in view, so that the scale is honest.
    lowest = min([*(i.low for i in shown), *([guess] if guess is not None else [])])
    highest = max(interval.high for interval in shown)
    room = 0.06 * (highest - lowest) or 1.0 / scale
    axes.set_ylim(scale * max(0.0, lowest - room), scale * (highest + room))


__all__ = ["WHICH", "accuracy_figure", "panels_of", "suite_figure"]
