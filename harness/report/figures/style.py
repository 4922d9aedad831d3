"""What all figures share: type, colours, marks, and files that are the same bytes each time."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

from harness.common.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#222222"
FAINT: Final = "#666666"
RULE: Final = "#888888"
GRID: Final = "#e6e6e6"
PAPER: Final = "#ffffff"
STYLE: Final[dict[str, Any]] = {
    "svg.hashsalt": "regate",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}
LOOKS: Final = {
    "baseline": ("#4d4d4d", "s"),
    "regate": ("#0072b2", "o"),
    "random": ("#d55e00", "^"),
    "baseline_equal_targets": ("#8c6d1f", "D"),
    "keep25": ("#7a5195", "*"),
    "reference_only": ("#00856f", "P"),
    "lambda0": ("#c0508d", "v"),
    "lambda1": ("#3f9bd6", "<"),
    "literal": ("#c98a00", "X"),
    "loss_only": ("#5f7f1f", ">"),
}
"""Colour and mark of an arm: distinct without colour vision, and by mark in print."""
_MORE: Final = (("#a03c3c", "h"), ("#2f6f4f", "d"), ("#5b5bb5", "p"), ("#777733", "H"))


def look(name: str, place: int) -> tuple[str, str]:
    """Colour and mark of an arm; one that has none of its own takes those of its place among the others."""
    return LOOKS.get(name) or _MORE[place % len(_MORE)]


def svg_of(figure: Figure) -> str:
    """A figure as SVG, without date; text stays text."""
    return _saved(figure, "svg", {"Date": None, "Creator": None}).decode()


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as `path` with .svg, .png and .pdf (for a paper: its text stays text); the files written."""
    svg, png, pdf = (path.with_name(f"{path.name}.{suffix}") for suffix in ("svg", "png", "pdf"))
    write_atomic(svg, svg_of(figure))
    write_atomic(png, _saved(figure, "png", {"Software": None}))
    write_atomic(pdf, _saved(figure, "pdf", {"Creator": None, "Producer": None, "CreationDate": None}))
    return [svg, png, pdf]


def _saved(figure: Figure, suffix: str, metadata: dict[str, None]) -> bytes:
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(out, format=suffix, dpi=160, metadata=metadata)
    return out.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches on the Agg canvas; draw within `matplotlib.rc_context(STYLE)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write(axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    """Text beside a point of the data, `offset` in points of the page."""
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **style)


def time_unit(longest: float) -> tuple[float, str]:
    """Seconds of the unit that suits times up to `longest` seconds, and its name."""
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if longest >= 3 * unit:
            return unit, name
    return 1.0, "s"


def thousands(value: float) -> str:
    """A tick label: 250k, 1.5M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


__all__ = ["LOOKS", "STYLE", "look", "new_figure", "save", "svg_of", "thousands", "time_unit", "write"]
