"""Words that were needed: what the gate left out of the training neighbours of items that flip.

Above, by ability, the part left out for items that only the baseline gets right beside those that both get right and
those that only the gated run does. Below, lost items with the training answers nearest to them, word by word.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.needed_words import BOTH, LOST, NEIGHBOURS, WON
from harness.analysis.statistics import mean_interval
from harness.report.figures.style import FAINT, INK, RULE, STYLE, new_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from harness.analysis.choices.needed_words import Needed

LOOKS: Final = {BOTH: ("#4d4d4d", "s"), LOST: ("#d55e00", "v"), WON: ("#0072b2", "^")}
KEPT: Final = "#0072b2"
LEFT: Final = "#8a9199"
_LABELS: Final = {
    BOTH: "right in both",
    LOST: "right in the baseline, wrong here",
    WON: "wrong in the baseline, right here",
}
_WIDTH: Final = 8.6
_ROW: Final = 0.42
"""Inches of an ability's row."""
_LINE: Final = 0.14
"""Inches of a line of text."""
_LETTERS: Final = 108
"""Letters of a line."""


def needed_figure(needed: Needed, benchmark: str) -> Figure | None:
    """The figure of one benchmark; None where no item flips, or none has a neighbour."""
    import matplotlib as mpl

    result = needed["benchmarks"][benchmark]
    items = [item for item in result["items"] if item["targets"] and item["group"] in LOOKS]
    if not any(item["group"] != BOTH for item in items):
        return None
    abilities = list(dict.fromkeys(item["ability"] for item in items))
    lines = [line for example in result["examples"] for line in _lines(example)]
    heights = [_ROW * len(abilities) + 0.9, _LINE * (len(lines) + 2)]
    with mpl.rc_context(STYLE):
        figure = new_figure(_WIDTH, sum(heights) + 1.3)
        dots, texts = figure.subplots(2, 1, height_ratios=heights)
        _dots(dots, items, abilities, result)
        _write(texts, lines)
        figure.suptitle(f"{needed['run']} and {needed['baseline']}: words that {benchmark} asks for", fontsize=10)
        without = sum(not item["targets"] for item in result["items"])
        figure.supxlabel("\n".join(textwrap.wrap(_caption(needed, without), 130)), fontsize=7.5, color=FAINT)
    return figure


def _dots(axes: Axes, items: Sequence[dict[str, Any]], abilities: Sequence[str], result: dict[str, Any]) -> None:
    for place, (group, (colour, mark)) in enumerate(LOOKS.items()):
        for row, ability in enumerate(abilities):
            parts = [
                item["left_out"] / item["targets"]
                for item in items
                if item["group"] == group and item["ability"] == ability
            ]
            if not parts:
                continue
            mean = mean_interval(parts)
            low, high = min(mean.low, mean.value), max(mean.high, mean.value)
            reach = [[100 * (mean.value - low)], [100 * (high - mean.value)]] if len(parts) > 1 else None
            axes.errorbar(
                [100 * mean.value], [row + 0.24 * (place - 1)], xerr=reach, fmt=mark, color=colour, markersize=5,
                elinewidth=1.2,
            )  # fmt: skip
            note: dict[str, Any] = {"textcoords": "offset points", "xytext": (5, 3), "fontsize": 6.5, "color": colour}
            axes.annotate(str(len(parts)), (100 * mean.value, row + 0.24 * (place - 1)), **note)
    whole = 100 * result["left_out"] / result["targets"]
    axes.axvline(whole, color=RULE, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(abilities)), abilities)
    axes.set_ylim(len(abilities) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("left out of the words asked for, in the nearest training answers (% of targets)")
    axes.legend(
        handles=_keys(whole), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8
    )  # fmt: skip


def _keys(whole: float) -> list[Any]:
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=colour, marker=mark, linestyle="none", label=_LABELS[group])
        for group, (colour, mark) in LOOKS.items()
    ]
    return [*keys, Line2D([], [], color=RULE, linestyle=":", label=f"of all targets ({whole:.0f} %)")]


Word = tuple[str, dict[str, Any]]
"""A word and how it is written."""


def _lines(example: dict[str, Any]) -> Iterator[list[Word]]:
    """An item and its nearest training answers, cut into lines."""
    plain: dict[str, Any] = {"color": INK}
    head = f"{example['question']}  Right: {example['right']}  Given here: {example['given']}"
    for text in textwrap.wrap(head, _LETTERS):
        yield [(text, {"color": INK, "fontweight": "bold"})]
    for neighbour in example["neighbours"]:
        line: list[Word] = [("    trained on:", {"color": FAINT})]
        if neighbour["question"]:
            line.append((neighbour["question"], plain))
        for word in neighbour["words"]:
            style: dict[str, Any] = {"color": KEPT if word["kept"] else LEFT}
            if word["asked_for"]:
                style["fontweight"] = "bold"
            text = word["text"] if word["kept"] else f"[{word['text']}]"
            if sum(len(shown) + 1 for shown, _ in line) + len(text) > _LETTERS:
                yield line
                line = [("       ", plain)]
            line.append((text, style))
        yield line
    yield []


def _write(axes: Axes, lines: Sequence[Sequence[Word]]) -> None:
    from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea, VPacker

    axes.axis("off")
    if not lines:
        return

    def area(text: str, style: dict[str, Any]) -> TextArea:
        return TextArea(text, textprops={"fontsize": 7, **style})

    rows: list[Any] = [
        HPacker(children=[area(text, style) for text, style in line or [(" ", {})]], pad=0, sep=3) for line in lines
    ]
    box = AnchoredOffsetbox("upper left", child=VPacker(children=rows, pad=0, sep=2), pad=0, frameon=False)
    box.set_in_layout(False)
    axes.add_artist(box)


def _caption(needed: Needed, without: int) -> str:
    parts = [
        "Asked for: the words of the right answer that some other option lacks. Part left out at keep_ratio "
        f"{needed['keep_ratio']:g} ({needed['selection']}), replayed for epoch {needed['epoch'] + 1}, dense steps "
        f"aside, over the {NEIGHBOURS} training answers with one of these words that share most words with question "
        "and right answer. Means over items (their number beside the mark) with 95 % intervals (Wilson's where "
        "all are 0 or 100 %), which take items for independent though some share neighbours.",
        "Below: the lost items with most left out, with the two nearest training answers; kept words blue, [left "
        "out] grey, those asked for bold.",
    ]
    if without:
        parts.append(f"Without neighbours and not shown: {without} items.")
    return " ".join(parts)


__all__ = ["needed_figure"]
