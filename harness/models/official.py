"""Models that are evaluated as they are, by the name that `model.adapter` of an evaluation gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.errors import EnvironmentProblem
from harness.config.model import VideoChat2Checkpoint, VideoLLaMA2Checkpoint
from harness.models.adapter import scored_forward

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.config.evaluation import EvaluationRecipe
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from harness.models.videochat2.official import OfficialVideoChat2
    from harness.models.videollama2.processor import VideoLLaMA2Conversations
    from regate.types import Decision


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
