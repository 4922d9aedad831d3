"""Loss of the trainings over their steps: the arms over each other, dense and sparse steps in panels of their own.

A sparse step's loss is that of the targets that the gate chose, the hard ones: only dense steps compare the arms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from harness.analysis.training_loss import loss_curves
from harness.report.figures.style import STYLE, look, new_figure, thousands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.analysis.runs import Run
    from harness.analysis.training_loss import LossCurve

_WIDTH, _HEIGHT = 4.3, 3.4
"""Inches of a panel."""
_TITLES: Final = {"dense": "dense steps: all targets", "sparse": "sparse steps: selected targets"}
_RAW: Final = 0.25
"""Opacity of the single steps behind the smoothed line."""


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
        for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
            for place, (run, name, known) in enumerate(curves):
                if kind in known:
                    colour, _ = look("baseline" if run.gate is None else "regate" if len(curves) < 3 else name, place)
                    _draw(axes, known[kind], name, colour)
            axes.set_title(_TITLES[kind], fontsize=9)
            axes.set_xlabel("optimizer steps")
            axes.xaxis.set_major_formatter(lambda value, _: thousands(value))
            axes.legend(fontsize=8, frameon=False)
        figure.axes[0].set_ylabel("loss, nats a target")
    return figure


def _draw(axes: Axes, curve: LossCurve, name: str, colour: str) -> None:
    axes.plot(curve.steps, curve.losses, color=colour, linewidth=0.6, alpha=_RAW)
    axes.plot(curve.steps, curve.smoothed, color=colour, linewidth=1.6, label=name)


__all__ = ["loss_figure"]
