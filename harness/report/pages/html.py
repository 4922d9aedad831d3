"""Pages: HTML in one file, readable without a server, a network or scripts. Everything from records is escaped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final
from xml.etree import ElementTree

from harness.analysis.choices.word_classes import MARKER
from harness.report.figures.reference_losses import GROUNDED, KEPT, LEFT, highlighted, question_of
from harness.report.figures.style import FAINT, GRID, INK, LOOKS, PAPER, RULE, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.report.table import Table

SCHEMA: Final = 1
_SVG: Final = "{http://www.w3.org/2000/svg}"
_XLINK: Final = "{http://www.w3.org/1999/xlink}"
_NAMED: Final = {
    INK: "ink",
    FAINT: "faint",
    RULE: "rule",
    GRID: "grid",
    PAPER: "paper",
    KEPT: "kept",
    LEFT: "left",
    GROUNDED: "grounded",
    **{colour: f"arm-{name.replace('_', '-')}" for name, (colour, _) in LOOKS.items()},
}
"""Colours of the figures that the page gives a name, so that they follow its light and dark scheme."""


@dataclass(frozen=True, slots=True)
class Text:
    """Paragraphs."""

    kind: ClassVar[str] = "text"
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tabular:
    """A table; a long one may be folded away."""

    kind: ClassVar[str] = "table"
    table: Table
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Pictures:
    """Figures side by side, below each other where the page is narrow: (what it shows, the figure)."""

    kind: ClassVar[str] = "pictures"
    figures: tuple[tuple[str, Figure], ...]
    caption: str


@dataclass(frozen=True, slots=True)
class Losses:
    """Figure 3 as text: the panels of a selection."""

    kind: ClassVar[str] = "losses"
    selection: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Code:
    """Text as it is written in a file."""

    kind: ClassVar[str] = "code"
    label: str
    text: str


Block = Text | Tabular | Pictures | Losses | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what is below it."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Tile:
    """A number to see first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of sections.

    Attributes:
        lead: one or two sentences below the title.
        tiles: numbers to see first.
        foot: what the page was made from.
    """

    title: str
    lead: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    foot: str


def to_html(page: Page) -> str:
    """The page as one HTML file. The same page is always the same bytes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pictures = _Pictures()
    environment.globals.update(
        picture=pictures.inline,
        highlighted=highlighted,
        question_of=question_of,
        answers_of=answers_of,
        MARKER=MARKER,
    )
    return environment.get_template("page.html").render(page=page)


def losses_page(selection: dict[str, Any]) -> Page:
    """Figure 3 of one run as a page of its own."""
    return Page(
        title=f"Reference loss of each target: {selection['run']}",
        lead="What the frozen teacher, which sees no picture, could not foretell in answers of the training set.",
        tiles=(),
        sections=(Section("losses", "Answers", (Losses(selection),)),),
        foot=_foot(selection),
    )


def answers_of(panel: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The tokens of a panel, one list an answer."""
    answers: dict[int, list[dict[str, Any]]] = {}
    for token in panel["tokens"]:
        answers.setdefault(token["answer"], []).append(token)
    return list(answers.values())


class _Pictures:
    """Figures of one page; each has ids of its own."""

    def __init__(self) -> None:
        self._count = 0

    def inline(self, figure: Figure, title: str) -> Any:
        from markupsafe import Markup

        self._count += 1
        # Made by ElementTree, which escapes what it writes.
        return Markup(inline_svg(svg_of(figure), f"f{self._count}-", title))


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """An SVG file as an element of an HTML page: no namespaces, metadata or styles of its own, ids with `prefix`,
    colours by name where the page has one, and `title` for those who cannot see it."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if not child.tag.startswith(_SVG) or child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        for name in list(element.attrib):
            value = _local(name, element.attrib.pop(name), prefix)
            element.attrib[name.removeprefix(_XLINK)] = value
    label = ElementTree.Element("title", {"id": f"{prefix}title"})
    label.text = title
    root.insert(0, label)
    box = [float(part) for part in root.attrib["viewBox"].split()]
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{prefix}title", "style": f"max-width: {box[2] / 12:.1f}em"}
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name.endswith("href"):
        return value.replace("#", f"#{prefix}", 1)
    value = value.replace("url(#", f"url(#{prefix}")
    if name != "style":
        return value
    value = value.replace("'DejaVu Sans'", "var(--font)")
    return re.sub(r"#[0-9a-f]{6}", lambda match: _colour(match.group()), value)


def _colour(value: str) -> str:
    return f"var(--{_NAMED[value]})" if value in _NAMED else value


def _foot(selection: dict[str, Any]) -> str:
    reference = (selection["made_from"]["reference"] or "none")[:16]
    return f"Made from selection.json of {selection['run']} (reference store {reference})."


__all__ = [
    "Block",
    "Code",
    "Losses",
    "Page",
    "Pictures",
    "Section",
    "Tabular",
    "Text",
    "Tile",
    "inline_svg",
    "losses_page",
    "to_html",
]
