"""How a number is written wherever people read one: tables, plans, messages and figures alike."""

from __future__ import annotations


def percent(part: float, places: int = 2) -> str:
    """A part of one, in per cent, with the space that SI sets before the sign: 0.4172 is "41.72 %"."""
    return f"{100 * part:.{places}f} %"


__all__ = ["percent"]
