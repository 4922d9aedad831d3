"""Models that are evaluated as they are, by the name that `model.adapter` of an evaluation gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.errors import EnvironmentProblem
from harness.config.evaluation import VideoChat2Checkpoint, VideoLLaMA2Checkpoint
from harness.config.weight_files import REQUIREMENTS, absent_files
from harness.models.adapter import scored_forward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.config.evaluation import EvaluationRecipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from harness.models.videochat2.official import OfficialVideoChat2
    from harness.models.videollama2.processor import VideoLLaMA2Conversations
    from regate.types import Decision


def missing_checkpoint(recipe: EvaluationRecipe) -> list[str]:
    """One line for each file that the evaluated model needs and that is not there. Reads no weights."""
    root, model = Path(recipe.paths.weights), recipe.model
    if model.checkpoint is None:
        return []
    if isinstance(model, VideoChat2Checkpoint):
        return _missing_videochat2(root, model)
    if not isinstance(model, VideoLLaMA2Checkpoint):
        return [] if (root / model.checkpoint).is_dir() else [f"{root / model.checkpoint}: named by model.checkpoint"]
    needed = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    whole = "a whole VideoLLaMA2, such as DAMO-NLP-SG/VideoLLaMA2.1-7B-16F on the Hugging Face hub (Apache-2.0)"
    tower = "the tower's, such as google/siglip-so400m-patch14-384 on the Hugging Face hub; its weights are not read"
    lines = [
        f"{file}: of {whole}; named by model.checkpoint"
        for name in needed
        for file in absent_files(root / model.checkpoint, name)
    ]
    settings = root / model.vision_tower / "preprocessor_config.json"
    return lines if settings.is_file() else [*lines, f"{settings}: {tower}; named by model.vision_tower"]


def _missing_videochat2(root: Path, model: VideoChat2Checkpoint) -> list[str]:
    """The files are those that a training from stage 3 needs."""
    fields = {"stage3": "checkpoint", "language_model": "language_model", "qformer_tokenizer": "qformer_tokenizer"}
    return [
        f"{file}: {need.origin}; named by model.{fields[need.field]}"
        for need in REQUIREMENTS[model.adapter]
        if need.field in fields
        for name in need.files
        for file in _absent(root / getattr(model, fields[need.field]), name)
    ]


def _absent(target: Path, name: str) -> list[Path]:
    return [] if target.is_file() else absent_files(target, name)


def evaluated_for(recipe: EvaluationRecipe) -> OfficialVideoLLaMA2 | OfficialVideoChat2:
    """The model of an evaluation through this project's own code."""
    if isinstance(recipe.model, VideoChat2Checkpoint):
        from harness.models.videochat2.official import OfficialVideoChat2

        return OfficialVideoChat2(recipe, recipe.model)
    assert isinstance(recipe.model, VideoLLaMA2Checkpoint)
    return OfficialVideoLLaMA2(recipe, recipe.model)


class OfficialVideoLLaMA2:
    """A whole VideoLLaMA2 in the official form; what of an adapter an evaluation needs.

    The number of frames is the evaluation's, everything else the checkpoint's own.
    """

    frame_rule: FrameRule = "spread"

    def __init__(self, recipe: EvaluationRecipe, model: VideoLLaMA2Checkpoint) -> None:
        self._frames = recipe.frames
        self._precision = recipe.precision
        self._model = model
        self._root = Path(recipe.paths.weights)

    @property
    def name(self) -> str:
        return self._model.adapter

    def processor(self) -> VideoLLaMA2Conversations:
        """Tokenizer and template of the checkpoint, pixels of the tower.

        Raises:
            EnvironmentProblem: the folder holds another model, or one whose tower reads other pixels.
        """
        from transformers import AutoTokenizer

        from harness.models.videollama2.config import VideoLLaMA2Config
        from harness.models.videollama2.image_processing import read_pixels
        from harness.models.videollama2.processor import VideoLLaMA2Conversations

        folder = self._root / self._model.checkpoint
        config: Any = VideoLLaMA2Config.from_pretrained(folder)
        config.num_frames = self._frames
        pixels = read_pixels(self._root / self._model.vision_tower, self._model.image_aspect_ratio)
        if pixels.size != config.vision_config.image_size:
            raise EnvironmentProblem(
                f"model.vision_tower {self._model.vision_tower} reads {pixels.size} pixels, the tower of {folder} "
                f"{config.vision_config.image_size}",
                hint=f"name the folder of {config.mm_vision_tower}",
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return VideoLLaMA2Conversations(tokenizer, pixels, self._frames, config.visual_tokens, self._model.max_length)

    def load(self, directory: Path) -> nn.Module:
        """The checkpoint, for the evaluation's number of frames and in the type that it computes in."""
        import torch

        from harness.models.device import computes_bfloat16
        from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration

        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(self._precision, torch.float32)
        if self._precision == "auto" and computes_bfloat16():
            dtype = torch.bfloat16
        model: nn.Module = VideoLLaMA2ForConditionalGeneration.from_pretrained(directory, dtype=dtype)
        config: Any = model.config
        config.num_frames = self._frames
        config.placeholder_token_id = self.processor().placeholder_id
        return model

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision)
