"""Values out of the plain data of a document that may be wrong anywhere: nothing here raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.config.yaml_positions import Path

Finding = tuple["Path", str]
"""Path of the key that would have to change, and what is wrong."""


def value_at(data: Any, path: Path) -> Any:
    """What stands at `path`; None where nothing does."""
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return None
        data = data[part]
    return data


def whole_at(data: Any, path: Path, default: int | None = None) -> int | None:
    """The whole number at `path`, `default` where nothing is given, None where it is something else."""
    value = value_at(data, path)
    if value is None:
        return default
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
