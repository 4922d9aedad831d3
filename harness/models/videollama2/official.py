"""A whole VideoLLaMA2 in the official form, evaluated as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from harness.common.errors import EnvironmentProblem
from harness.models.device import compute_dtype
from harness.models.forward import scored_forward
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.image_processing import read_pixels
from harness.models.videollama2.model import VideoLLaMA2ForConditionalGeneration
from harness.models.videollama2.processor import VideoLLaMA2Conversations

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.model import VideoLLaMA2Checkpoint
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from regate.types import Decision


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
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return VideoLLaMA2Conversations(tokenizer, pixels, self._frames, config.visual_tokens, self._model.max_length)

    def load(self, directory: Path) -> nn.Module:
        """The checkpoint, for the evaluation's number of frames and in the type that it computes in."""
        dtype = compute_dtype(self._precision)
        model: nn.Module = VideoLLaMA2ForConditionalGeneration.from_pretrained(directory, dtype=dtype)
        config: Any = model.config
        config.num_frames = self._frames
        config.placeholder_token_id = self.processor().placeholder_id
        return model

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision, tells_places=True)
