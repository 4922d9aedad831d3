"""Where a baseline and a gated run look: attention on visual positions by layer, and over the cells of clips."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.attention.study import ARMS, ITEMS, frames_of
from harness.analysis.choices.needed_words import LOST
from harness.analysis.statistics import mean_interval
from harness.report.figures.style import FAINT, LOOKS, RULE, STYLE, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from harness.analysis.attention.study import Attention
    from harness.analysis.statistics import Interval

_LOOKS: Final = dict(zip(ARMS, (LOOKS["baseline"], LOOKS["regate"]), strict=True))
_WIDTH: Final = 8.6
_LAYERS: Final = 2.9
"""Inches of the panel of layers."""
_ROW: Final = 1.05
"""Inches of a row of frames."""
_FRAMES: Final = 8
"""Frames of a map that are drawn, evenly spread."""
_COLOURS: Final = "magma"


def attention_figure(attention: Attention, benchmark: str) -> Figure:
    """The figure of one benchmark."""
    import matplotlib as mpl

    result = attention["benchmarks"][benchmark]
    maps = result["maps"]
    heights = [_LAYERS, *(_ROW * 3 + 0.75 for _ in maps)]
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, sum(heights) + 1.2)
        first, *others = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _layers(first.subplots(), result["items"], attention)
        for part, shown in zip(others, maps, strict=True):
            _map(part, shown, attention)
        figure.suptitle(f"{attention['run']} and {attention['baseline']}: attention on what {benchmark} shows",
                        fontsize=10)  # fmt: skip
        figure.supxlabel("\n".join(textwrap.wrap(_caption(result), 130)), fontsize=7.5, color=FAINT)
    return figure


def visual_part(items: Sequence[dict[str, Any]], arm: str) -> list[Interval]:
    """By layer, the part of the attention that goes to visual positions, mean over items."""
    return [mean_interval(list(values)) for values in zip(*(item[arm] for item in items), strict=True)]


def difference(items: Sequence[dict[str, Any]]) -> Interval:
    """Gated run minus baseline, mean over layers, paired by item."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    baseline, gated = ARMS
    return mean_interval([mean(item[gated]) - mean(item[baseline]) for item in items])


def _layers(axes: Axes, items: Sequence[dict[str, Any]], attention: Attention) -> None:
    names = dict(zip(ARMS, (attention["baseline"], attention["run"]), strict=True))
    for place, arm in enumerate(ARMS):
        colour, mark = _LOOKS[arm]
        values = visual_part(items, arm)
        layers = [number + 0.06 * (2 * place - 1) for number in range(1, len(values) + 1)]
        below, above = ([100 * abs(end - v.value) for v, end in zip(values, ends, strict=True)]
                        for ends in ([v.low for v in values], [v.high for v in values]))  # fmt: skip
        axes.errorbar(
            layers, [100 * value.value for value in values], yerr=[below, above], color=colour, marker=mark,
            markersize=4.5, linewidth=1.2, elinewidth=1, label=names[arm],
        )  # fmt: skip
    uniform = 100 * sum(item["uniform"] for item in items) / len(items)
    axes.axhline(uniform, color=RULE, linewidth=1, linestyle=":", label=f"uniform attention ({uniform:.0f} %)")
    count = len(items[0][ARMS[0]])
    if count <= 12:
        axes.set_xticks(range(1, count + 1))
    axes.set_xlim(0.5, count + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer of the decoder")
    axes.set_ylabel("attention on visual positions (%)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=7.5)


def _map(figure: SubFigure, shown: dict[str, Any], attention: Attention) -> None:
    """Frames, and under them the cells of both arms on one scale."""
    import numpy as np

    frames = frames_of(shown["frames"])
    maps = {arm: 100 * np.array(shown[arm]) for arm in ARMS}
    steps = len(frames)
    drawn = sorted({round(place) for place in np.linspace(0, steps - 1, min(steps, _FRAMES))})
    rows = figure.subplots(3, len(drawn), squeeze=False)
    highest = max(float(cells.max()) for cells in maps.values())
    image = None
    for column, step in enumerate(drawn):
        rows[0, column].imshow(frames[step], interpolation="nearest")
        for row, arm in enumerate(ARMS, start=1):
            image = rows[row, column].imshow(
                maps[arm][step], cmap=_COLOURS, vmin=0, vmax=highest, interpolation="nearest", aspect="auto"
            )
            rows[row, column].set_box_aspect(frames.shape[1] / frames.shape[2])
    for axes in rows.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
    labels = ["frames", *(f"{arm}\n{maps[arm].sum():.0f} % in all" for arm in ARMS)]
    for axes, label in zip(rows[:, 0], labels, strict=True):
        axes.set_ylabel(label, fontsize=7.5, rotation=0, ha="right", va="center", labelpad=6)
    assert image is not None
    bar = figure.colorbar(image, ax=rows.ravel().tolist(), fraction=0.025, pad=0.015, shrink=0.6, anchor=(0.0, 0.05))
    bar.ax.tick_params(labelsize=6.5)
    bar.set_label("% a cell", fontsize=6.5)
    how = f"the baseline is right, {attention['run']} wrong" if shown["group"] == LOST else "both are right"
    title = f"{shown['question']}  Right: {shown['right']}  ({how})"
    figure.suptitle("\n".join(textwrap.wrap(title, 120)), fontsize=7.5)


def _caption(result: dict[str, Any]) -> str:
    items = result["items"]
    change = difference(items)
    text = (
        f"Attention of the places that predict the right answer's tokens, the answer given, mean over heads; "
        f"{len(items)} items, the first {ITEMS} of each ability; means with 95 % intervals over these items, one "
        f"seed an arm. Mean over layers, gated run minus baseline: {100 * change.value:+.1f} points "
        f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}]. It says where a model looks, not what its answer "
        "depends on."
    )
    if not result["maps"]:
        return f"{text} No map: the visual positions are no cells of a clip, or no item is of a group that is shown."
    return (
        f"{text} Below: mean over layers and heads, on one scale for both arms; of the items looked at the first "
        "that only the baseline gets right, and the first that both do."
    )


__all__ = ["attention_figure", "difference", "visual_part"]
