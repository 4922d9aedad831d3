"""ReGATE (arXiv 2507.21420): token elision for the training of multimodal LLMs.

The names below load on first use, so that `regate.config` and `regate.schedule` can be read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regate.candidates import store_keys as store_keys
    from regate.candidates import target_checksum as target_checksum
    from regate.config import GateConfig as GateConfig
    from regate.config import KeepBelow as KeepBelow
    from regate.config import RampConfig as RampConfig
    from regate.config import ReferenceConfig as ReferenceConfig
    from regate.config import VisualConfig as VisualConfig
    from regate.difficulty import DifficultyStore as DifficultyStore
    from regate.distil import distil_loss as distil_loss
    from regate.elision import Elision as Elision
    from regate.elision import attach as attach
    from regate.errors import ConfigError as ConfigError
    from regate.errors import LayoutError as LayoutError
    from regate.errors import MismatchError as MismatchError
    from regate.errors import NonFiniteLossError as NonFiniteLossError
    from regate.errors import RegateError as RegateError
    from regate.errors import StoreError as StoreError
    from regate.errors import UnsupportedModelError as UnsupportedModelError
    from regate.gate import DenseGate as DenseGate
    from regate.gate import Gate as Gate
    from regate.head import ScoredLM as ScoredLM
    from regate.head import scored_rows as scored_rows
    from regate.index import stable_id as stable_id
    from regate.loss import causal_token_loss as causal_token_loss
    from regate.loss import count_scored as count_scored
    from regate.loss import token_loss as token_loss
    from regate.reference import ReferenceStore as ReferenceStore
    from regate.reference import ReferenceWriter as ReferenceWriter
    from regate.schedule import DualCycle as DualCycle
    from regate.teacher import score_reference as score_reference
    from regate.types import Decision as Decision
    from regate.types import Grid as Grid
    from regate.types import Kind as Kind
    from regate.types import Layout as Layout
    from regate.types import TokenCounts as TokenCounts
    from regate.types import layout_from_labels as layout_from_labels

_HOME = {
    "store_keys": "candidates",
    "target_checksum": "candidates",
    "GateConfig": "config",
    "KeepBelow": "config",
    "RampConfig": "config",
    "ReferenceConfig": "config",
    "VisualConfig": "config",
    "DifficultyStore": "difficulty",
    "distil_loss": "distil",
    "Elision": "elision",
    "attach": "elision",
    "ConfigError": "errors",
    "LayoutError": "errors",
    "StoreError": "errors",
    "MismatchError": "errors",
    "UnsupportedModelError": "errors",
    "NonFiniteLossError": "errors",
    "RegateError": "errors",
    "DenseGate": "gate",
    "Gate": "gate",
    "ScoredLM": "head",
    "scored_rows": "head",
    "stable_id": "index",
    "causal_token_loss": "loss",
    "count_scored": "loss",
    "token_loss": "loss",
    "ReferenceStore": "reference",
    "ReferenceWriter": "reference",
    "DualCycle": "schedule",
    "score_reference": "teacher",
    "Decision": "types",
    "Grid": "types",
    "Kind": "types",
    "Layout": "types",
    "TokenCounts": "types",
    "layout_from_labels": "types",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'regate' has no attribute {name!r}")
    return getattr(importlib.import_module(f"regate.{_HOME[name]}"), name)
