"""VideoLLaMA2 out of three parts: a language model, a vision tower and a pre-trained projector."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig

from harness.common.errors import EnvironmentProblem
from harness.models.videollama2.config import FAMILY, LANGUAGE_MODELS, VideoLLaMA2Config, check_choices, tower_config
from harness.models.videollama2.connector import make_connector
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

PROJECTOR: Final = "model.mm_projector."
TOWER: Final = "model.vision_tower.vision_tower."
_MARK: Final = "mm_projector."
_PIECE: Final = 1 << 20
_INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts are, and how they are put together.

    Attributes:
        language_model: folder of a Qwen2 or Mistral checkpoint with its tokenizer.
        vision_tower: folder of a SigLIP or CLIP checkpoint, the whole model or its vision half.
        projector: `mm_projector.bin` or .safetensors; None starts an untrained connector.
    """

    language_model: Path
    vision_tower: Path
    projector: Path | None
    projector_type: str = "stc_connector_v35"
    num_frames: int = 16
    image_aspect_ratio: str = "pad"
    max_length: int = 2048

    def files(self) -> list[Path]:
        """Every file of weights, in a fixed order."""
        found = [*weight_files(self.language_model), *weight_files(self.vision_tower)]
        return [*found, self.projector] if self.projector else found


def config_of(parts: Parts) -> VideoLLaMA2Config:
    """The configuration that the parts make.

    Raises:
        EnvironmentProblem: the language model is neither Qwen2 nor Mistral, or the projector's own config.json says
            that it is another connector.
    """
    told = json.loads((parts.language_model / "config.json").read_text()).get("model_type")
    if told not in LANGUAGE_MODELS:
        raise EnvironmentProblem(
            f"{parts.language_model}: model_type is {told!r}; known are {', '.join(LANGUAGE_MODELS)}",
            hint="a whole VideoLLaMA2 is no language model: name the one that it was made from",
        )
    text = AutoConfig.from_pretrained(parts.language_model)
    check_choices({"mm_projector_type": parts.projector_type}, "model.projector_type")
    if parts.projector is not None:
        _check_projector_type(parts.projector, parts.projector_type)
    return VideoLLaMA2Config(
        text_config=text,
        vision_config=tower_config(str(parts.vision_tower)),
        mm_vision_tower=parts.vision_tower.name,
        mm_projector_type=parts.projector_type,
        num_frames=parts.num_frames,
        image_aspect_ratio=parts.image_aspect_ratio,
        tokenizer_model_max_length=parts.max_length,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def assemble(
    parts: Parts, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> VideoLLaMA2ForConditionalGeneration:
    """The model of the parts.

    Args:
        dtype: of all weights.
        seed: of an untrained connector.

    Raises:
        EnvironmentProblem: a part cannot be read, or its tensors are not those of the configuration.
    """
    config = config_of(parts)
    state = {name: value for name, value in read_folder(parts.language_model).items() if ".rotary_emb." not in name}
    state |= {TOWER + name: value for name, value in _vision_half(read_folder(parts.vision_tower)).items()}
    projector = _untrained(config, seed) if parts.projector is None else read_projector(parts.projector)
    state |= {PROJECTOR + name: value for name, value in projector.items()}
    model: VideoLLaMA2ForConditionalGeneration = VideoLLaMA2ForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype
    )
    return model


def read_projector(path: Path) -> dict[str, Tensor]:
    """The connector's tensors by their names within it.

    Raises:
        EnvironmentProblem: the file cannot be read as tensors alone, or holds none of a connector.
    """
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise EnvironmentProblem(f"{path}: not there") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"{path}: cannot be read as a file of tensors: {first}") from None
    kept = {name.split(_MARK, 1)[1]: value for name, value in found.items() if _MARK in name}
    if not kept:
        raise EnvironmentProblem(f"{path}: holds no tensor named {_MARK}*")
    return kept


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors checkpoint.

    Raises:
        EnvironmentProblem: a file is missing or damaged.
    """
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
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
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
                head = file.read(_PIECE)
                file.seek(max(0, size - _PIECE))
                total.update(f"{path.name}\0{size}\0".encode())
                total.update(hashlib.sha256(head + file.read()).digest())
        except OSError:
            raise EnvironmentProblem(f"{path}: not there") from None
    return total.hexdigest()


def _vision_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's own tensors, of a whole CLIP or SigLIP or of its vision model saved alone."""
    half = {name: value for name, value in state.items() if name.startswith("vision_model.")}
    return half or {f"vision_model.{name}": value for name, value in state.items()}


def _check_projector_type(projector: Path, kind: str) -> None:
    """The two STC connectors have the same tensors, so only the file's own config can tell them apart."""
    beside = projector.parent / "config.json"
    if beside.is_file():
        config: dict[str, Any] = json.loads(beside.read_text())
        stated = config.get("mm_projector_type", kind)
        if str(config.get("model_type", "")).startswith(FAMILY) and stated != kind:
            raise EnvironmentProblem(
                f"{projector}: {beside.name} says it is a {stated}, the recipe a {kind}",
                hint="set model.projector_type",
            )


def _untrained(config: VideoLLaMA2Config, seed: int) -> dict[str, Tensor]:
    vision: Any = config.vision_config
    text: Any = config.text_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_connector(config.mm_projector_type, vision.hidden_size, text.hidden_size).state_dict()
