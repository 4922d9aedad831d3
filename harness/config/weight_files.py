"""What the keys that name weights must point at, and what of it is not there. Reads no weights, imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, EnvironmentProblem
from harness.common.files import odd_kind, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.recipe import Recipe

SHARDED: Final = "model.safetensors"
"""Stands for the whole of a model's safetensors: one file, or an index and the shards that it names."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One field of `model:` that names weights which cannot be made here.

    Attributes:
        field: the recipe's key below `model`.
        files: names inside the folder that the field points at. Where it is one file, the field may point at the
            file itself.
        hub_id: the repository on the Hugging Face hub that holds them.
        gigabytes: of the files together; None where the publisher does not say.
        licence: of the weights, as published.
        words: where the files come from, in other words than the usual ones; it may hold {hub_id} and {licence}.
        whole: the model reads more of the repository than `files`, which only show whether it is there.
    """

    field: str
    files: tuple[str, ...]
    hub_id: str
    gigabytes: float | None
    licence: str
    words: str | None = None
    whole: bool = False

    @property
    def origin(self) -> str:
        if self.words is not None:
            return self.words.format(hub_id=self.hub_id, licence=self.licence)
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


SEEING: Final = Requirement(
    "gate.reference.pictures",
    ("config.json", "tokenizer_config.json", SHARDED),
    "the repository of a multimodal model with the student's tokenizer, or a kept model of a run,",
    None,
    "see its model page",
)
"""A teacher that sees the pictures, other than the student's own starting weights."""


def missing_weights(recipe: Recipe) -> list[str]:
    """One line for each file that the recipe's models need and that is not there, with where it comes from.

    Empty for the models that `harness prepare` makes.
    """
    root = Path(recipe.paths.weights)
    lines = recipe.model.missing(root)
    if recipe.gate is not None and recipe.gate.needs_reference:
        lines += _missing(TEACHER, recipe.gate.reference.model, TEACHER.field, root)
        if isinstance(recipe.gate.reference.pictures, str):
            lines += _missing(SEEING, recipe.gate.reference.pictures, SEEING.field, root)
    return lines


def missing_files(section: Any, needs: Sequence[Requirement], root: Path) -> list[str]:
    """One line for each file below `root` that a `model:` section needs and that is not there."""
    return [
        line for need in needs for line in _missing(need, getattr(section, need.field), f"model.{need.field}", root)
    ]


def _missing(need: Requirement, value: str | None, key: str, root: Path) -> list[str]:
    if value is None or (len(need.files) == 1 and (root / value).is_file()):
        return []
    odd = [f"{path}: {kind}, not a file; named by {key}" for path, kind in _odd_files(root / value)]
    absent = [file for name in need.files for file in absent_files(root / value, name)]
    return odd + [f"{file}: {need.origin}; named by {key}" for file in absent]


def _odd_files(target: Path) -> list[tuple[Path, str]]:
    """What is neither a file nor a folder, at the place of weights or directly in their folder: whoever reads the
    folder reads more of it than is named here, and would wait for a pipe for ever."""
    places = sorted(target.iterdir()) if target.is_dir() else [target]
    return [(path, kind) for path in places if (kind := odd_kind(path)) is not None]


def missing_checkpoint(recipe: EvaluationRecipe) -> list[str]:
    """One line for each file that the evaluated model needs and that is not there."""
    return recipe.model.missing(Path(recipe.paths.weights))


def absent_files(target: Path, name: str) -> list[Path]:
    """The files that `name` stands for and that are not at `target`."""
    if name == SHARDED:
        return _absent_shards(target)
    if target.suffix == Path(name).suffix and not target.is_dir():
        return [] if target.is_file() else [target]
    file = target / name
    return [] if file.is_file() else [file]


def read_settings(path: Path, shape: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A JSON file beside published weights.

    Args:
        shape: what must be in it, see `harness.common.files.problems_of`.

    Raises:
        EnvironmentProblem: it is not there, or damaged.
    """
    hint = f"fetch {path.parent.name} again"
    if not path.exists():
        raise EnvironmentProblem(f"{path}: not there", hint=hint)
    try:
        return read_json(path, "settings of a model", shape=shape)
    except DataError as error:
        raise EnvironmentProblem(str(error), hint=hint) from None


def _absent_shards(folder: Path) -> list[Path]:
    index = folder / f"{SHARDED}.index.json"
    if not index.is_file():
        single = folder / SHARDED
        return [] if single.is_file() else [single]
    shards = sorted(set(read_settings(index, {"weight_map": dict})["weight_map"].values()))
    return [folder / shard for shard in shards if not (folder / shard).is_file()]
