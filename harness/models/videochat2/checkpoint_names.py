"""VideoChat2's tensors by their official names: what a file holds, what it lacks, and what is refused.

The official training writes what it trains, in a file of stage 1, 2, 3 or 4 (HD); the frozen language model is not
among it. Files with a pickled configuration inside are not loaded: unpickling runs whatever the file says.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

RENAMED: Final = {
    "mistral_model.base_model.model.model.": "model.language_model.",
    "mistral_model.base_model.model.lm_head.": "lm_head.",
    "mistral_proj.": "model.projector.",
    "vision_encoder.encoder.": "model.vision.",
    "vision_layernorm.": "model.vision_layernorm.",
    "qformer.bert.embeddings.LayerNorm.": "model.qformer.embeddings.layernorm.",
    "qformer.bert.": "model.qformer.",
    "query_tokens": "model.query_tokens",
    "extra_query_tokens": "model.extra_query_tokens",
}
"""Beginnings of the official names, and of this model's (below peft)."""
POSITION_IDS: Final = "qformer.bert.embeddings.position_ids"
"""A buffer of the official QFormer: 0, 1, 2, ... It is dropped, and written back."""
BASE: Final = "mistral_model."
LORA: Final = ".lora_"
TEXT_HALF: Final = re.compile(
    r"qformer\.bert\.(embeddings\.(word|position)_embeddings\.|encoder\.layer\.\d+\.(intermediate|output)\.)"
)
"""The QFormer's part that reads the instruction; the stage-2 training throws it away."""
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the tensors of one file.

    Attributes:
        used: how many went into the model.
        replaced: how many a later file has too, whose tensors are taken.
        unused: names of the rest; each belongs to a part that the model does not have or does not train.
    """

    path: Path
    used: int
    replaced: int
    unused: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{self.path.name}: {self.used} tensors used"
        if self.replaced:
            line += f", {self.replaced} taken from the later file"
        return f"{line}, {len(self.unused)} of no use here: {some(self.unused)}" if self.unused else line


def our_name(official: str) -> str:
    """This model's name of an official tensor; the name itself where there is none."""
    for before, after in RENAMED.items():
        if official.startswith(before):
            return re.sub(r"attention\.self\.", "attention.attention.", after + official.removeprefix(before))
    return official


def official_name(ours: str) -> str:
    """The official name of one of this model's tensors."""
    for before, after in RENAMED.items():
        if ours.startswith(after):
            name = before + ours.removeprefix(after)
            return re.sub(r"attention\.attention\.(?=query|key|value)", "attention.self.", name)
    return ours


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an official file, a .pth flat or below "model", or a .safetensors. A .pth stays on the disk
    until its tensors are used.

    Raises:
        EnvironmentProblem: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        stored: Any = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except FileNotFoundError:
        raise EnvironmentProblem(f"{path}: not there") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise _unreadable(path, str(error) or type(error).__name__) from None
    if isinstance(stored, dict) and isinstance(stored.get("model"), dict):
        stored = stored["model"]
    tensors = isinstance(stored, dict) and all(isinstance(value, torch.Tensor) for value in stored.values())
    if not stored or not tensors:
        raise EnvironmentProblem(f'{path}: no table of tensors, neither flat nor below "model"')
    return dict(stored)


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # older files cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _unreadable(path: Path, reason: str) -> EnvironmentProblem:
    foreign = re.search(r"GLOBAL (\S+)", reason)
    if foreign is None:
        return EnvironmentProblem(
            f"{path}: cannot be read as a file of tensors: {reason.splitlines()[0]}", hint="is it whole?"
        )
    return EnvironmentProblem(
        f"{path}: beside tensors it holds {foreign[1]}, and such a thing can run any code when it is read",
        hint="if you trust the file, take its tensors out once, where its packages are installed: "
        f"python -c \"import torch; f = '{path.name}'; "
        "torch.save(torch.load(f, map_location='cpu', weights_only=False)['model'], 'tensors-' + f)\"",
    )


def check_shapes(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], hint: str) -> None:
    """Raises:
    EnvironmentProblem: naming tensors of another shape than the model's."""
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    if wrong:
        raise EnvironmentProblem(f"{path}: {len(wrong)} tensors of another size: {some(wrong)}", hint=hint)


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
