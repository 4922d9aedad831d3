"""Checkpoints of transformers: where they are, how they are loaded, and what a run with LoRA keeps of itself.

A checkpoint with LoRA holds the trained tensors only, by their names; the frozen ones are the recipe's model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from harness.common.errors import DataError, EnvironmentProblem, StaleError
from harness.common.files import read_json
from harness.models.checkpoint_files import check_loaded, fingerprint, weight_files
from harness.models.hf.internvl import weights as internvl

if TYPE_CHECKING:
    from torch import nn

SCHEMA: Final = 1
TRAINED: Final = "trained.safetensors"
_CARD: Final = "trained.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a checkpoint is.

    Attributes:
        folder: on this machine; of a hub repository, the place where it will be once it is fetched.
        repository, revision: of the hub; None for a folder of the user.
    """

    folder: Path
    repository: str | None = None
    revision: str | None = None

    @property
    def language_model(self) -> Path:
        return self.folder

    def weights(self) -> list[Path]:
        """Every file of weights, in a fixed order."""
        return weight_files(self.folder)


def fetched(repository: str, revision: str, *, network: bool) -> Path | None:
    """The folder of a hub repository at a commit, from the hub's cache of this machine.

    Args:
        network: fetch it where it is not there; False gives None then.

    Raises:
        EnvironmentProblem: it cannot be fetched.
    """
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=not network))
    except LocalEntryNotFoundError:
        if not network:
            return None
        problem = "the hub cannot be reached"
    except (HfHubHTTPError, OSError, ValueError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise EnvironmentProblem(
        f"{repository} at {revision}: not fetched: {problem}",
        hint="name a folder below paths.weights in model.checkpoint, and leave model.revision out",
    )


def load_processor(folder: Path) -> Any:
    """transformers' processor of a checkpoint.

    Raises:
        EnvironmentProblem: it cannot be made, naming a package that is missing.
    """
    if internvl.is_published(folder):
        return internvl.load_processor(folder)
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{folder}: its processor needs a package that is not installed: {str(error).strip()}"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"{folder}: its processor cannot be read: {first}") from None
    if not hasattr(processor, "image_processor"):
        raise EnvironmentProblem(f"{folder}: it has a tokenizer and no image processor")
    if getattr(processor, "chat_template", None) is None:
        raise EnvironmentProblem(
            f"{folder}: no chat template", hint="use the checkpoint that was trained on conversations"
        )
    return processor


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' own class; a tensor too many, missing or of another shape is an error.

    Raises:
        EnvironmentProblem: naming the tensors.
    """
    if internvl.is_published(folder):
        return internvl.load_model(folder, dtype)
    try:
        model, loading = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"{folder}: cannot be loaded: {first}") from None
    check_loaded(str(folder), loading, hint="the weights are another model's, or a file of them is missing")
    return model


def save_trained(model: nn.Module, directory: Path, *, weights: str) -> None:
    """The trained tensors by name, and which weights they belong to.

    Args:
        weights: fingerprint of the frozen model.
    """
    trained = {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    save_file(trained, directory / TRAINED)
    config: Any = model.config
    config.save_pretrained(directory)
    (directory / _CARD).write_text(json.dumps({"schema": SCHEMA, "weights": weights}) + "\n")


def load_trained(model: nn.Module, directory: Path, *, weights: str) -> None:
    """Put what `save_trained` wrote into the model it was trained in.

    Raises:
        DataError: a file of it is damaged.
        StaleError: it belongs to other weights, or to another set of trained tensors.
    """
    card = read_json(directory / _CARD, "the card of trained weights", shape={"schema": int, "weights": str})
    if card["schema"] != SCHEMA or card["weights"] != weights:
        raise StaleError(f"{directory}: was trained in other weights than the recipe's")
    try:
        state = load_file(directory / TRAINED)
    except (OSError, SafetensorError) as error:
        place = directory / TRAINED
        raise DataError(f"{place}: cannot be read ({error})", hint="bring it back from a copy") from None
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: v.shape for n, v in state.items()} != {n: p.shape for n, p in own.items()}:
        raise StaleError(f"{directory}: its tensors are not those that the recipe trains")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def fingerprint_of(files: ModelFiles) -> str:
    """Hash of the checkpoint's weights."""
    return fingerprint(files.weights())
