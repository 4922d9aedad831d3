"""A checkpoint of the tiny family by its folder alone, without the stages that it was made in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from harness.common.errors import EnvironmentProblem
from harness.models.forward import scored_forward
from harness.models.tiny.config import TinyVLMConfig
from harness.models.tiny.model import TinyVLMForConditionalGeneration, tower_parameters
from harness.models.tiny.processor import TinyProcessor
from harness.models.tiny.stages import quiet_transformers

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Batch
    from regate.types import Decision


def load_checkpoint(directory: Path) -> nn.Module:
    """The model, its tower frozen.

    Raises:
        EnvironmentProblem: it is another model's: transformers would fill what is missing at random.
    """
    with quiet_transformers():
        loaded, loading = TinyVLMForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    wrong = sorted(str(name) for kind in ("missing_keys", "unexpected_keys") for name in loading[kind])
    if wrong:
        raise EnvironmentProblem(
            f"{directory}: no checkpoint of the tiny model: {len(wrong)} tensors are missing or foreign, first "
            f"{wrong[0]}",
            hint="is it another model's?",
        )
    model: nn.Module = loaded
    for parameter in tower_parameters(model):
        parameter.requires_grad_(False)
    return model


class TinyCheckpoint:
    """What of an adapter reading with a kept model takes (`models.adapter.Evaluated`)."""

    name = "tiny"
    frame_rule: FrameRule = "spread"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def processor(self) -> TinyProcessor:
        config = TinyVLMConfig.from_pretrained(self.folder)
        return replace(TinyProcessor.load(self.folder), frames_a_token=config.frames_a_token)

    def load(self, directory: Path) -> nn.Module:
        return load_checkpoint(directory)

    def forward(self, model: nn.Module, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        return scored_forward(model, batch, decision, tells_places=True)


__all__ = ["TinyCheckpoint", "load_checkpoint"]
