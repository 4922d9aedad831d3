"""What a recipe's weight fields must point at, and what of it is not there. Reads no weights, imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from harness.config.recipe import Recipe

SHARDED: Final = "model.safetensors"
"""Stands for the whole of a model's safetensors: one file, or an index and the shards that it names."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One field of `model:` that names weights which cannot be made here.

    Attributes:
        field: the recipe's key below `model`.
        files: names inside the folder that the field points at. A field that ends in the suffix of the only
            file may point at that file itself.
        hub_id: the repository on the Hugging Face hub that holds them.
        gigabytes: of the files together; None where the publisher does not say.
        licence: of the weights, as published.
    """

    field: str
    files: tuple[str, ...]
    hub_id: str
    gigabytes: float | None
    licence: str

    @property
    def origin(self) -> str:
        size = "size not stated" if self.gigabytes is None else f"{self.gigabytes:g} GB"
        return f"from {self.hub_id} on the Hugging Face hub ({size}, {self.licence})"


TEACHER: Final = Requirement(
    "gate.reference.model",
    ("config.json", SHARDED),
    "the repository of a language model with the student's tokenizer, such as Qwen/Qwen2-1.5B-Instruct,",
    None,
    "see its model page",
)
"""A teacher other than the student's own language model."""
REQUIREMENTS: Final[dict[str, tuple[Requirement, ...]]] = {
    "tiny": (),
    "tiny_videochat2": (),
    "tiny_videollama2": (),
    "videollama2": (
        Requirement(
            "language_model",
            ("config.json", "tokenizer.json", "tokenizer_config.json", SHARDED),
            "Qwen/Qwen2-7B-Instruct",
            15.2,
            "Apache-2.0",
        ),
        Requirement(
            "vision_tower",
            ("config.json", "preprocessor_config.json", SHARDED),
            "google/siglip-so400m-patch14-384",
            3.5,
            "Apache-2.0",
        ),
        Requirement(
            "projector",
            ("mm_projector.bin",),
            "DAMO-NLP-SG/VideoLLaMA2.1-7B-16F-Base",
            0.75,
            "Apache-2.0",
        ),
    ),
    "videochat2": (
        Requirement(
            "language_model",
            ("config.json", "tokenizer.json", SHARDED),
            "mistralai/Mistral-7B-Instruct-v0.2",
            14.5,
            "Apache-2.0; access is granted on its model page",
        ),
        Requirement(
            "qformer_tokenizer", ("config.json", "vocab.txt"), "google-bert/bert-base-uncased", 0.0003, "Apache-2.0"
        ),
        Requirement("stage1", ("umt_l16_qformer.pth",), "OpenGVLab/videochat", None, "MIT"),
        Requirement(
            "stage2",
            ("videochat2_mistral_7b_stage2.pth",),
            "OpenGVLab/VideoChat2_stage2_Mistral_7B",
            None,
            "MIT",
        ),
        Requirement(
            "stage3",
            ("videochat2_mistral_7b_stage3.pth",),
            "OpenGVLab/VideoChat2_stage3_Mistral_7B",
            2.1,
            "MIT",
        ),
    ),
}
"""By adapter, in the order of the recipe's fields. A field that is None is not needed."""


def missing_weights(recipe: Recipe) -> list[str]:
    """One line for each file that the recipe's model needs and that is not there, with where it comes from.

    Empty for the tiny models: their weights are made by `harness prepare`.
    """
    wanted = [
        (need, f"model.{need.field}", getattr(recipe.model, need.field))
        for need in REQUIREMENTS[recipe.model.adapter]
    ]
    if recipe.gate is not None and recipe.gate.needs_reference:
        wanted.append((TEACHER, TEACHER.field, recipe.gate.reference.model))
    return [
        f"{file}: {need.origin}; named by {field}"
        for need, field, value in wanted
        if value is not None
        for name in need.files
        for file in absent_files(Path(recipe.paths.weights) / value, name)
    ]


def absent_files(target: Path, name: str) -> list[Path]:
    """The files that `name` stands for and that are not at `target`."""
    if name == SHARDED:
        return _absent_shards(target)
    if target.suffix == Path(name).suffix and not target.is_dir():
        return [] if target.is_file() else [target]
    file = target / name
    return [] if file.is_file() else [file]


def _absent_shards(folder: Path) -> list[Path]:
    index = folder / f"{SHARDED}.index.json"
    if not index.is_file():
        single = folder / SHARDED
        return [] if single.is_file() else [single]
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [folder / shard for shard in shards if not (folder / shard).is_file()]
