"""A whole VideoChat2 in the official form, evaluated as it is."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from harness.models.device import compute_dtype
from harness.models.forward import scored_forward
from harness.models.videochat2.image_processing import Pixels
from harness.models.videochat2.processor import VideoChat2Conversations
from harness.models.videochat2.weights import Lora, ModelFiles, build, config_of, merge_adapters, qformer_tokenizer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.config.evaluation import EvaluationRecipe
    from harness.config.model import VideoChat2Checkpoint
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from harness.models.videochat2.config import VideoChat2Config
    from regate.types import Decision


class OfficialVideoChat2:
    """The official file of stage 3 or of the HD variant on its language model; what of an adapter an evaluation
    needs. Frames are chosen as the official MVBench evaluation does."""

    frame_rule: FrameRule = "mvbench"

    def __init__(self, recipe: EvaluationRecipe, model: VideoChat2Checkpoint) -> None:
        self._frames = recipe.frames
        self._precision = recipe.precision
        self._model = model
        self.files = files_of(Path(recipe.paths.weights), model)

    @property
    def name(self) -> str:
        return self._model.adapter

    @cached_property
    def config(self) -> VideoChat2Config:
        """What the files make.

        Raises:
            EnvironmentProblem: a file cannot be read, or is that of another stage or model.
        """
        return config_of(self.files)

    def processor(self) -> VideoChat2Conversations:
        """Tokenizers of the folders, sizes of the checkpoint. Errors as `config`."""
        model, config = self._model, self.config
        vision: Any = config.vision_config
        qformer: Any = config.qformer_config
        return VideoChat2Conversations(
            AutoTokenizer.from_pretrained(self.files.language_model, trust_remote_code=False),
            qformer_tokenizer(self.files.qformer_tokenizer),
            Pixels(vision.image_size, model.colours, hd=model.hd),
            self._frames,
            config.visual_tokens,
            config.placeholder_token_id,
            qformer_length=min(model.max_length, qformer.max_position_embeddings),
            max_length=model.max_length,
            bos_as_ones=model.bos_as_ones,
        )

    def load(self, directory: Path) -> nn.Module:
        """The checkpoint with its adapters, or folded into one; the language model in the type that is computed in.

        Args:
            directory: the checkpoint's file, or the folder of stage 3's.
        """
        files = replace(self.files, stage3=stage3_file(directory))
        model = build(files, base_dtype=compute_dtype(self._precision))
        return merge_adapters(model) if self._model.merged else model

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision, tells_places=True)


def files_of(root: Path, model: VideoChat2Checkpoint) -> ModelFiles:
    """Where the files of an evaluated checkpoint are.

    Args:
        root: what the model's paths start at.
    """
    return ModelFiles(
        root / model.language_model,
        root / model.qformer_tokenizer,
        stage3=stage3_file(root / model.checkpoint),
        lora=Lora(model.lora.rank, model.lora.alpha, model.lora.dropout),
        bos_as_ones=model.bos_as_ones,
    )


def stage3_file(place: Path) -> Path:
    """The file itself, or the one of the published name in a folder."""
    return place / "videochat2_mistral_7b_stage3.pth" if place.is_dir() else place
