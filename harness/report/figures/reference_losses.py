"""Figure 3 of the paper with our own store: the reference loss of every token of an answer, the top part highlighted.

The panels come from selection.json: real losses of the run's reference store, and the choice that the gate makes from
them. As SVG for a page, and as HTML for a reader who wants the text.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.word_classes import MARKER
from harness.common.numbers import percent
from harness.report.figures.style import FAINT, INK, STYLE, new_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT: Final = "#0072b2"
LEFT: Final = "#b9bec4"
GROUNDED: Final = "#b04a00"
_WIDTH: Final = 8.6
_PANEL: Final = 2.0
"""Inches of a panel's height."""
_FEWEST: Final = 28
"""Bars that a panel has room for, so that those of a short answer are no wider."""
_MEDIA: Final = re.compile(r"\s*<media:\d+>\s*")


def losses_figure(selection: dict[str, Any]) -> Figure:
    """One panel an answer: a bar for each target's reference loss, in nats.

    Raises:
        ValueError: the selection has no panel.
    """
    import matplotlib as mpl

    shown = selection["panels"]
    if not shown:
        raise ValueError(f"{selection['run']}: no answer to show")
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, _PANEL * len(shown) + 0.8)
        rows = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axes, panel in zip(rows, shown, strict=True):
            _panel(axes, panel)
        figure.suptitle(f"{selection['run']}: reference loss of each target (nats)", fontsize=10)
        figure.legend(
            handles=_keys(selection, shown),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=8,
        )
    return figure


def question_of(panel: dict[str, Any]) -> str:
    """The questions of a panel's conversation, without the tag that stands for the media."""
    return " / ".join(_MEDIA.sub(" ", question).strip() for question in panel["questions"])


def highlighted(selection: dict[str, Any]) -> str:
    """What is highlighted, in words. A conversation's answers share one budget."""
    several = any(token["answer"] for panel in selection["panels"] for token in panel["tokens"])
    whose = "a conversation's" if several else "an answer's"
    return f"kept: the {percent(selection['keep_ratio'], 0)} of {whose} targets with the highest reference loss"


def _panel(axes: Axes, panel: dict[str, Any]) -> None:
    tokens = panel["tokens"]
    places = range(len(tokens))
    colours = [KEPT if token["by_reference"] else LEFT for token in tokens]
    axes.bar(places, [token["loss"] for token in tokens], color=colours, width=0.8)
    axes.grid(axis="x", visible=False)
    size = 7.5 if len(tokens) <= 45 else 6.0
    axes.set_xticks(places, [token["text"].strip() or "␣" for token in tokens], rotation=90, fontsize=size)
    for label, token in zip(axes.get_xticklabels(), tokens, strict=True):
        if token["grounded"] is not None:
            label.set(color=GROUNDED, fontweight="bold")
        elif token["kind"] == MARKER:
            label.set(color=FAINT)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.set_xlim(-0.6, max(len(tokens), _FEWEST) - 0.4)
    title = "\n".join(textwrap.wrap(question_of(panel), 110)[:2])
    axes.set_title(title, fontsize=8.5, loc="left", color=INK)


def _keys(selection: dict[str, Any], shown: Sequence[dict[str, Any]]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [Patch(color=KEPT, label=highlighted(selection)), Patch(color=LEFT, label="left out")]
    if any(token["grounded"] for panel in shown for token in panel["tokens"]):
        mark: dict[str, Any] = {"color": GROUNDED, "marker": "$\\mathbf{a}$", "linestyle": "none"}
        keys.append(Line2D([], [], label="word that only the picture tells", **mark))
    return keys


__all__ = ["highlighted", "losses_figure", "question_of"]
