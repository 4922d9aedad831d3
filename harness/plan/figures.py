"""A figure of a plan: a number or a range, and where it comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.common.numbers import rounded

if TYPE_CHECKING:
    from collections.abc import Mapping

Basis = Literal["counted", "stated", "estimated"]
"""counted: from the data, the sizes and the schedule themselves; stated: by the recipe, the paper or a publisher;
estimated: from either by the reckoning that `source` names."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of what a run takes.

    Attributes:
        low, high: equal where it is one number.
        unit: as it is printed behind the number.
        source: what it comes from, in words.
    """

    name: str
    low: float
    high: float
    unit: str
    basis: Basis
    source: str

    @property
    def words(self) -> str:
        """The number or the range, with its unit."""
        low, high = rounded(self.low), rounded(self.high)
        return f"{low if low == high else f'{low} to {high}'} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Costs:
    """What a run takes and what it can show.

    Attributes:
        figures: by section, in the order in which they are read.
        fetch: one command for each thing that is missing and that can be fetched; the rest in words behind `#`.
        contradictions: places where the paper contradicts itself that touch the recipe.
        warnings: what follows from the figures.
        nodes: what each node of the hardware that the recipe names does; empty where one process does all.
    """

    figures: Mapping[str, tuple[Figure, ...]]
    fetch: tuple[str, ...]
    contradictions: tuple[str, ...]
    warnings: tuple[str, ...]
    nodes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "figures": {section: [asdict(figure) for figure in figures] for section, figures in self.figures.items()},
            "fetch": list(self.fetch),
            "contradictions": list(self.contradictions),
            "warnings": list(self.warnings),
            "nodes": list(self.nodes),
        }


def counted(name: str, value: float, unit: str, source: str) -> Figure:
    return Figure(name, value, value, unit, "counted", source)


def stated(name: str, value: float, unit: str, source: str) -> Figure:
    return Figure(name, value, value, unit, "stated", source)


def estimated(name: str, value: float, unit: str, source: str, high: float | None = None) -> Figure:
    return Figure(name, value, value if high is None else high, unit, "estimated", source)
