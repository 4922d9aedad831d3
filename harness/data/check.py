"""`harness data check`: the state of every media file and record of a recipe's data."""

from __future__ import annotations

from harness.data.probe import Report
from harness.data.sources import check_data as check

__all__ = ["Report", "check"]
