"""Checkpoint folders of transformers: their files, their tensors, and whether a model took all of them.

Torch is imported where tensors are read.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import EnvironmentProblem
from harness.config.weight_files import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

OTHER_PART: Final = "is a file missing, or the connector or decoder another one than config.json says?"
_PIECE: Final = 1 << 20
_INDEX: Final = "model.safetensors.index.json"


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors checkpoint.

    Raises:
        EnvironmentProblem: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        try:
            state |= load_file(file)
        except FileNotFoundError:
            raise EnvironmentProblem(f"{file}: not there", hint=f"fetch {folder.name} again") from None
        except (OSError, SafetensorError) as error:
            raise EnvironmentProblem(f"{file}: damaged: {error}", hint=f"fetch {folder.name} again") from None
    return state


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those that its index names, or the only one."""
    index = folder / _INDEX
    if index.is_file():
        shards = read_settings(index, {"weight_map": dict})["weight_map"].values()
        return [folder / name for name in sorted(set(shards))]
    return [folder / "model.safetensors"]


def fingerprint(files: Sequence[Path]) -> str:
    """A hash that tells files of weights apart without reading tens of gigabytes: of each its name, its size, and
    its first and last mebibyte (a safetensors file starts with the names and shapes of its tensors).

    Raises:
        EnvironmentProblem: a file is not there.
    """
    total = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                beginning = file.read(_PIECE)
                file.seek(max(0, size - _PIECE))
                total.update(f"{path.name}\0{size}\0".encode())
                total.update(hashlib.sha256(beginning + file.read()).digest())
        except OSError:
            raise EnvironmentProblem(f"{path}: not there") from None
    return total.hexdigest()


def check_loaded(where: str, loading: Mapping[str, Any], hint: str = OTHER_PART) -> None:
    """Every tensor of the checkpoint was used, and every tensor of the model was filled.

    Args:
        loading: what transformers' `output_loading_info` tells.
        hint: what may be the reason.

    Raises:
        EnvironmentProblem: naming up to four tensors of each kind.
    """
    complaints = []
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in loading.get(f"{kind}_keys", ()))
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            complaints.append(f"{len(names)} {kind}: {', '.join(names[:4])}{more}")
    if complaints:
        raise EnvironmentProblem(
            f"{where}: its tensors are not those of this configuration: {'; '.join(complaints)}",
            hint=hint,
        )


def load_checked(
    load: Callable[..., Any], where: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """A model by transformers' own `from_pretrained`; a tensor too many, missing or of another shape is an error.

    Args:
        load: `from_pretrained` of the base class.
        where, args, kwargs: its arguments.

    Returns:
        The model, and what `output_loading_info` tells.

    Raises:
        EnvironmentProblem: the folder cannot be read, or its tensors are not the model's; they are named.
    """
    asked = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, loading = load(where, *args, **asked)
    except OSError as error:
        raise EnvironmentProblem(f"{where}: cannot be read: {error}") from None
    check_loaded(str(where), loading)
    return model, loading
