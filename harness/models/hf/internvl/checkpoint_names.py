"""The tensors of InternVL's published checkpoints by their names there and in transformers, both ways.

One tensor of queries, keys and values there is three here, in this order along the first dimension; all others are
the same tensors under other names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import torch

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

PREFIXES: Final = {
    "model.vision_tower.embeddings.": "vision_model.embeddings.",
    "model.vision_tower.encoder.layer.": "vision_model.encoder.layers.",
    "model.multi_modal_projector.layer_norm.": "mlp1.0.",
    "model.multi_modal_projector.linear_1.": "mlp1.1.",
    "model.multi_modal_projector.linear_2.": "mlp1.3.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""What names begin with in transformers, and in the published checkpoints."""
WITHIN_TOWER: Final = {
    "cls_token": "class_embedding",
    "position_embeddings": "position_embedding",
    "patch_embeddings.projection": "patch_embedding",
    "attention.projection_layer": "attn.proj",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}
"""Parts of names within the tower; all others are the same."""
HEAD: Final = "language_model.lm_head.weight"
EMBEDDING: Final = "language_model.model.embed_tokens.weight"
_TOWER: Final = "vision_model."
_THIRD: Final = re.compile(r"\.attention\.([qkv])_proj\.(weight|bias)$")
_ORDER: Final = "qkv"


def official_name(ours: str) -> tuple[str, int | None]:
    """The published name of a tensor of transformers, and which third of that tensor it is; None for the whole.

    Raises:
        KeyError: it is no tensor of InternVL.
    """
    for prefix, theirs in PREFIXES.items():
        if ours.startswith(prefix):
            name = theirs + ours.removeprefix(prefix)
            break
    else:
        raise KeyError(ours)
    if not name.startswith(_TOWER):
        return name, None
    third = _THIRD.search(name)
    if third is not None:
        return f"{name[: third.start()]}.attn.qkv.{third[2]}", _ORDER.index(third[1])
    for before, after in WITHIN_TOWER.items():
        name = re.sub(rf"(?<=\.){re.escape(before)}(?=\.|$)", after, name)
    return name, None


def official_shapes(ours: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published checkpoint of a model.

    Args:
        ours: of transformers' model, by name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in ours.items():
        theirs, third = official_name(name)
        shapes[theirs] = tuple(shape) if third is None else (3 * shape[0], *shape[1:])
    return shapes


def to_transformers(state: Mapping[str, Tensor], ours: Mapping[str, torch.Size], where: str) -> dict[str, Tensor]:
    """The tensors under transformers' names, all of them accounted for.

    Args:
        state: of the published checkpoint.
        ours: names and shapes of the model.

    Raises:
        EnvironmentProblem: tensors are missing, too many, or of another shape; named as the checkpoint names them.
    """
    wanted = official_shapes(ours)
    complaints = {
        "missing": wanted.keys() - state.keys(),
        "surplus": state.keys() - wanted.keys(),
        "of another shape": {n for n in wanted.keys() & state.keys() if wanted[n] != tuple(state[n].shape)},
    }
    named = [f"{len(names)} {kind}: {_first(names)}" for kind, names in complaints.items() if names]
    if named:
        raise EnvironmentProblem(
            f"{where}: its tensors are not those of its config.json: {'; '.join(named)}",
            hint="the weights are another model's, or a file of them is missing",
        )
    renamed: dict[str, Tensor] = {}
    for name in ours:
        theirs, third = official_name(name)
        value = state[theirs]
        renamed[name] = value if third is None else value.chunk(3, dim=0)[third].clone()
    return renamed


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' model under the published names."""
    whole: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        theirs, third = official_name(name)
        if third is None:
            whole[theirs] = value
        else:
            thirds.setdefault(theirs, {})[third] = value
    joined = {name: torch.cat([parts[place] for place in range(3)]) for name, parts in thirds.items()}
    return {**whole, **joined}


def _first(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
