"""What every section of a document is: frozen, typed, and closed to keys that it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class Strict(BaseModel):
    """Frozen, and refuses what it does not know; numbers are numbers and strings are strings."""

    model_config = STRICT
