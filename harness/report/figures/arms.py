"""The arms of a suite as dots with intervals: scores after the last step, and differences from the baseline by seed.

Two panels side by side with one row an arm. Small marks are single seeds; no panel holds a number of the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from harness.analysis.curves import LABELS, guess_of, scale_of
from harness.analysis.seeds import spread
from harness.report.figures.style import FAINT, RULE, STYLE, look, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.analysis.arms import Arms
    from harness.analysis.seeds import Spread

_WIDTH: Final = 8.6
_ROW: Final = 0.32
"""Inches of an arm's row."""


def arms_figure(arms: Arms, benchmark: str) -> Figure | None:
    """Each arm's mean over seeds with its 95 % t interval, and beside it the mean difference from the baseline,
    paired within a seed; None where no arm was scored. One seed has no interval, and none is drawn."""
    import matplotlib as mpl

    runs = [run for by_seed in arms.runs.values() for run in by_seed.values()]
    names = [name for name in arms.runs if arms.scores(name, benchmark)]
    if not names:
        return None
    scale, unit = scale_of(runs, benchmark)
    base = LABELS.get(arms.baseline, arms.baseline)
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, 1.5 + _ROW * len(names))
        left, right = figure.subplots(1, 2, sharey=True)
        for place, name in enumerate(names):
            scores = arms.scores(name, benchmark)
            _row(left, place, name, scores, spread(list(scores.values())), scale)
            difference = None if name == arms.baseline else arms.difference(name, arms.baseline, benchmark)
            if difference is not None:
                _row(right, place, name, _by_seed(arms, name, benchmark), difference, scale)
        guess = guess_of(runs, benchmark)
        if guess is not None:
            left.axvline(scale * guess, color=RULE, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            left.set_title(f"dashed: chance {scale * guess:.1f}", fontsize=8, color=FAINT, loc="left")
        right.axvline(0.0, color=RULE, linewidth=1, zorder=1)
        left.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
        left.set_ylim(len(names) - 0.5, -0.5)
        left.set_xlabel(unit)
        right.set_xlabel(f"difference from {base} (points, paired by seed)")
        right.tick_params(axis="y", length=0)
        seeds = sorted({len(arms.scores(name, benchmark)) for name in names})
        counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        words = f"Mean of {counted} seeds with its 95 % t interval over them; small marks: single seeds."
        figure.suptitle(f"{arms.name}: {benchmark} after the last step\n{words}", fontsize=9)
    return figure


def _by_seed(arms: Arms, name: str, benchmark: str) -> dict[int, float]:
    """The differences of the seeds that `Arms.difference` pairs."""
    first, second = arms.scores(name, benchmark), arms.scores(arms.baseline, benchmark)
    left_out = arms.asked_otherwise(name, arms.baseline, benchmark)
    return {seed: first[seed] - second[seed] for seed in sorted((first.keys() & second.keys()) - left_out.keys())}


def _row(axes: Axes, place: int, name: str, seeds: Mapping[int, float], shown: Spread, scale: float) -> None:
    colour, mark = look(name, place)
    values: Sequence[float] = [scale * value for value in seeds.values()]
    small: dict[str, Any] = {"color": colour, "marker": "|", "markersize": 7, "linestyle": "none", "alpha": 0.55}
    if len(values) > 1:
        axes.plot(values, [place] * len(values), zorder=2, **small)
    ends = None
    if shown.low is not None and shown.high is not None:
        ends = [[scale * (shown.mean - shown.low)], [scale * (shown.high - shown.mean)]]
    axes.errorbar(
        [scale * shown.mean], [place], xerr=ends, color=colour, marker=mark, markersize=6, elinewidth=1.4, capsize=3
    )


__all__ = ["arms_figure"]
