"""ReGATE (arXiv 2507.21420): token elision for the training of multimodal LLMs.

The names below load on first use, so that `regate.config` and `regate.schedule` can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regate.config import GateConfig as GateConfig
    from regate.config import ReferenceConfig as ReferenceConfig
    from regate.types import Decision as Decision
    from regate.types import Kind as Kind
    from regate.types import Layout as Layout
    from regate.types import TokenCounts as TokenCounts
    from regate.types import layout_from_labels as layout_from_labels

_HOME = {
    "GateConfig": "config",
    "ReferenceConfig": "config",
    "Decision": "types",
    "Kind": "types",
    "Layout": "types",
    "TokenCounts": "types",
    "layout_from_labels": "types",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"regate.{_HOME[name]}"), name)
