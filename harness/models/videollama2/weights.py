"""VideoLLaMA2 out of three parts: a language model, a vision tower and a pre-trained projector."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig

from harness.common.errors import EnvironmentProblem
from harness.config.weight_files import read_settings
from harness.models.checkpoint_files import read_folder, weight_files
from harness.models.videollama2.config import FAMILY, LANGUAGE_MODELS, VideoLLaMA2Config, check_choices, tower_config
from harness.models.videollama2.connector import make_connector
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PROJECTOR: Final = "model.mm_projector."
TOWER: Final = "model.vision_tower.vision_tower."
_MARK: Final = "mm_projector."


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the files are, and how they are put together.

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

    def weights(self) -> list[Path]:
        """Every file of weights, in a fixed order."""
        published = [*weight_files(self.language_model), *weight_files(self.vision_tower)]
        return [*published, self.projector] if self.projector else published


def config_of(files: ModelFiles) -> VideoLLaMA2Config:
    """The configuration that the files make.

    Raises:
        EnvironmentProblem: the language model is neither Qwen2 nor Mistral, or the projector's own config.json says
            that it is another connector.
    """
    model_type = read_settings(files.language_model / "config.json").get("model_type")
    if model_type not in LANGUAGE_MODELS:
        raise EnvironmentProblem(
            f"{files.language_model}: model_type is {model_type!r}; known are {', '.join(LANGUAGE_MODELS)}",
            hint="a whole VideoLLaMA2 is no language model: name the one that it was made from",
        )
    text = AutoConfig.from_pretrained(files.language_model, trust_remote_code=False)
    check_choices({"mm_projector_type": files.projector_type}, "model.projector_type")
    if files.projector is not None:
        _check_projector_type(files.projector, files.projector_type)
    return VideoLLaMA2Config(
        text_config=text,
        vision_config=tower_config(str(files.vision_tower)),
        mm_vision_tower=files.vision_tower.name,
        mm_projector_type=files.projector_type,
        num_frames=files.num_frames,
        image_aspect_ratio=files.image_aspect_ratio,
        tokenizer_model_max_length=files.max_length,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def assemble(
    files: ModelFiles, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> VideoLLaMA2ForConditionalGeneration:
    """The model of the files.

    Args:
        dtype: of all weights.
        seed: of an untrained connector.

    Raises:
        EnvironmentProblem: a part cannot be read, or its tensors are not those of the configuration.
    """
    config = config_of(files)
    state = {name: value for name, value in read_folder(files.language_model).items() if ".rotary_emb." not in name}
    state |= {TOWER + name: value for name, value in _vision_half(read_folder(files.vision_tower)).items()}
    projector = _untrained(config, seed) if files.projector is None else read_projector(files.projector)
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
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise EnvironmentProblem(f"{path}: not there") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"{path}: cannot be read as a file of tensors: {first}") from None
    kept = {name.split(_MARK, 1)[1]: value for name, value in tensors.items() if _MARK in name}
    if not kept:
        raise EnvironmentProblem(f"{path}: holds no tensor named {_MARK}*")
    return kept


def _vision_half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tower's own tensors, of a whole CLIP or SigLIP or of its vision model saved alone."""
    half = {name: value for name, value in state.items() if name.startswith("vision_model.")}
    return half or {f"vision_model.{name}": value for name, value in state.items()}


def _check_projector_type(projector: Path, kind: str) -> None:
    """The two STC connectors have the same tensors, so only the file's own config can tell them apart."""
    beside = projector.parent / "config.json"
    if beside.is_file():
        config: dict[str, Any] = read_settings(beside)
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
