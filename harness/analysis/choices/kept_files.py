"""Files that a study of a run's choices leaves in its folder: with a checksum, a version and the run's id."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.common.errors import StaleError
from harness.common.files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_kept(path: Path, what: str, schema: int) -> dict[str, Any] | None:
    """What a study wrote; None if it was not made.

    Args:
        path: in the run's folder, which has the run's id as its name.
        what: it is, for messages.
        schema: version that is read.

    Raises:
        DataError: the file is damaged.
        StaleError: it is of another version or of another run.
    """
    if not path.exists():
        return None
    content = read_json(path, what)
    version, run, expected = content.get("schema"), content.get("run"), path.parent.name
    if version != schema or run != expected:
        raise StaleError(
            f"{path}: schema {version} of {run}, expected {schema} of {expected}",
            hint="delete the file and run `harness figures`, which makes it again where the stores are",
        )
    return content


def write_kept(path: Path, content: Mapping[str, Any]) -> Path:
    """Put a study's file into a run's folder, sealed; the same content is the same bytes."""
    write_json(path, json.loads(json.dumps(content, sort_keys=True, allow_nan=False)), sealed=True)
    return path


__all__ = ["read_kept", "write_kept"]
