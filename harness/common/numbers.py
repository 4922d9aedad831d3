"""How a number is written wherever people read one: tables, plans, messages and figures alike."""

from __future__ import annotations

from typing import Final

GB: Final = 1e9
"""Bytes of the one unit of memory and disk, in which disks, GPUs and published files are named, too."""


def percent(part: float, places: int = 2) -> str:
    """A part of one, in per cent, with the space that SI sets before the sign: 0.4172 is "41.72 %"."""
    return f"{100 * part:.{places}f} %"


def rounded(value: float) -> str:
    """Three digits, and whole numbers in full."""
    if value == 0:
        return "0"
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


def gigabytes(size: float) -> str:
    """Bytes of memory or disk: 603_979_776 is "0.604 GB"."""
    return f"{rounded(size / GB)} GB"


__all__ = ["GB", "gigabytes", "percent", "rounded"]
