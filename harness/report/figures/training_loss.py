"""Loss of the trainings over their steps: the arms over each other, dense and sparse steps in panels of their own.

A sparse step's loss is that of the targets that the gate chose, the hard ones: only dense steps compare the arms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.analysis.curves import LABELS
from harness.analysis.training_loss import loss_curves, mean_curve
from harness.report.figures.style import STYLE, look, new_figure, thousands

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from harness.analysis.runs import Run
    from harness.analysis.training_loss import LossCurve

_WIDTH, _HEIGHT = 4.3, 3.4
"""Inches of a panel."""
_TITLES: Final = {"dense": "dense steps: all targets", "sparse": "sparse steps: selected targets"}
_RAW: Final = 0.25
"""Opacity of the single steps behind the smoothed line."""
_SEED: Final = 0.5
"""Opacity of a seed of an arm behind their mean."""
_POINTS: Final = 120
"""Of a seed's curve in the figure of a suite, which may have more than a hundred of them."""
_LEGEND_COLUMNS: Final = 3
_LEGEND_ROW: Final = 0.18
"""Inches."""


def loss_figure(runs: Sequence[Run], names: Sequence[str]) -> Figure | None:
    """The curves of some runs, smoothed over the single steps; None where no ledger is beside a record.

    Args:
        names: of the runs in the legend.
    """
    import matplotlib as mpl

    curves = [(run, name, known) for run, name in zip(runs, names, strict=True) if (known := loss_curves(run))]
    kinds = [kind for kind in _TITLES if any(kind in known for _, _, known in curves)]
    if not kinds:
        return None
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH * len(kinds), _HEIGHT)
        baselines = sum(run.gate is None for run, _, _ in curves)
        for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
            for place, (run, name, known) in enumerate(curves):
                if kind in known:
                    arm = "baseline" if run.gate is None and baselines == 1 else "regate" if len(curves) < 3 else name
                    colour, _ = look(arm, place)
                    _draw(axes, known[kind], name, colour)
            axes.set_title(_TITLES[kind], fontsize=9)
            axes.set_xlabel("optimizer steps")
            axes.xaxis.set_major_formatter(lambda value, _: thousands(value))
            axes.legend(fontsize=8, frameon=False)
        _scale(figure.axes[0])  # the panels share it
        figure.axes[0].set_ylabel("loss, nats a target")
    return figure


def suite_loss_figure(arms: Mapping[str, Sequence[Run]]) -> Figure | None:
    """The curves of a suite on one scale: an arm's seeds thin, their mean strong; None where no ledger is kept.

    Args:
        arms: arm -> its runs, one a seed.
    """
    import matplotlib as mpl

    known = {arm: [curves for run in runs if (curves := loss_curves(run, _POINTS))] for arm, runs in arms.items()}
    kinds = [kind for kind in _TITLES if any(kind in curves for seeds in known.values() for curves in seeds)]
    if not kinds:
        return None
    with mpl.rc_context(STYLE):
        rows = -(-sum(map(bool, known.values())) // _LEGEND_COLUMNS)
        figure = new_figure(_WIDTH * 2, _HEIGHT + _LEGEND_ROW * rows)
        axes_of = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        handles: dict[str, Line2D] = {}
        for axes, kind in zip(axes_of, kinds, strict=True):
            for place, (arm, seeds) in enumerate(known.items()):
                drawn = [curves[kind] for curves in seeds if kind in curves]
                if drawn:
                    handles.setdefault(LABELS.get(arm, arm), _draw_seeds(axes, drawn, look(arm, place)[0]))
            axes.set_title(_TITLES[kind], fontsize=9)
            axes.set_xlabel("optimizer steps")
            axes.xaxis.set_major_formatter(lambda value, _: thousands(value))
        _scale(figure.axes[0])  # the panels share it
        figure.axes[0].set_ylabel("loss, nats a target")
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=8,
            frameon=False,
        )  # fmt: skip
    return figure


def _draw_seeds(axes: Axes, seeds: Sequence[LossCurve], colour: str) -> Line2D:
    """The smoothed curves of an arm's seeds; the strong line is their mean, or the only one."""
    for curve in seeds if len(seeds) > 1 else ():
        axes.plot(curve.steps, curve.smoothed, color=colour, linewidth=0.5, alpha=_SEED)
    mean = mean_curve(seeds)
    if mean is None:
        return axes.lines[-1]
    (line,) = axes.plot(mean.steps, mean.smoothed, color=colour, linewidth=1.6)
    return line


def _scale(axes: Axes) -> None:
    """A logarithmic axis where the losses span more than a decade: the first steps would hide all others."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.dataLim.intervaly
    if not 0 < low < high / 10:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw(axes: Axes, curve: LossCurve, name: str, colour: str) -> None:
    axes.plot(curve.steps, curve.losses, color=colour, linewidth=0.6, alpha=_RAW)
    axes.plot(curve.steps, curve.smoothed, color=colour, linewidth=1.6, label=name)


__all__ = ["loss_figure", "suite_loss_figure"]
