"""VideoLLaMA2 as an ordinary transformers model: frozen tower, connector, Qwen2 or Mistral decoder.

`from_pretrained` reads the official checkpoint folders and `save_pretrained` writes them, tensor names included.

Legend: B rows, S expanded length, N clips, T frames of a clip, F frames of all clips, P patches, C channels of the
tower, H and W pixels, Q visual tokens of a clip, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from harness.models.checkpoint_files import load_checked
from harness.models.multimodal import MultimodalDecoder, MultimodalLM, MultimodalPreTrained
from harness.models.videollama2.config import VideoLLaMA2Config
from harness.models.videollama2.connector import make_connector

if TYPE_CHECKING:
    from collections.abc import Sequence


INPUTS = ("pixel_values", "frame_counts")
"""What goes in once, with the prompt."""
RENAMED = {
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.vision_tower.",
}
"""Beginnings of the official tensor names, and of this model's. All others are the same."""


class VisionTower(nn.Module):
    """SigLIP or CLIP up to the layer that is read. It is never trained and runs without gradients.

    The layers behind it, the last norm and the pooling head are loaded and saved, and not computed.
    """

    def __init__(self, config: VideoLLaMA2Config) -> None:
        super().__init__()
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False).requires_grad_(False)
        self.layers = config.tower_layers

    @torch.no_grad()
    def forward(self, pixel_values_FCHW: Tensor) -> Tensor:
        """Normalised frames to patch features [F, P, C]; CLIP's class token is left out."""
        tower: Any = self.vision_tower
        hidden_FPC: Tensor = tower.embeddings(pixel_values_FCHW.to(tower.dtype))
        with_class = hasattr(tower, "pre_layrnorm")
        if with_class:
            hidden_FPC = tower.pre_layrnorm(hidden_FPC)
        for layer in tower.encoder.layers[: self.layers]:
            hidden_FPC = layer(hidden_FPC, None)
        return hidden_FPC[:, 1:] if with_class else hidden_FPC


class VideoLLaMA2Model(MultimodalDecoder, MultimodalPreTrained):
    """Tower, connector and decoder, without the output embedding."""

    config_class = VideoLLaMA2Config
    visual_inputs = INPUTS

    def __init__(self, config: VideoLLaMA2Config) -> None:
        super().__init__(config)
        text: Any = config.text_config
        channels = config.vision_config.hidden_size  # type: ignore[union-attr]
        self.vision_tower = VisionTower(config)
        self.mm_projector = make_connector(config.mm_projector_type, channels, text.hidden_size)
        self.language_model = AutoModel.from_config(text, trust_remote_code=False)
        self.post_init()

    def get_video_features(self, pixel_values: Tensor, frame_counts: Sequence[int] | None = None) -> Tensor:
        """Visual tokens [N, Q, D].

        Args:
            pixel_values: clips [N, T, 3, H, W], or the frames of all clips [F, 3, H, W].
            frame_counts: frames of each clip: config.num_frames, or 1 for an image, which stands for that many equal
                ones and costs one. None: every clip has the same number.

        Raises:
            ValueError: a clip has another number of frames.
        """
        frames = self.config.num_frames
        if pixel_values.dim() == 5:
            frame_counts = [pixel_values.shape[1]] * pixel_values.shape[0]
            pixel_values = pixel_values.flatten(0, 1)
        elif frame_counts is None:
            frame_counts = [frames] * (pixel_values.shape[0] // frames)
        if any(count not in (1, frames) for count in frame_counts) or sum(frame_counts) != pixel_values.shape[0]:
            raise ValueError(
                f"{pixel_values.shape[0]} frames for clips of {list(frame_counts)}: each has {frames}, or is 1 image"
            )
        features_FPC = self.vision_tower(pixel_values)
        weight = next(self.mm_projector.parameters())
        tokens_NQD: Tensor = self.mm_projector(features_FPC.to(weight.dtype), frame_counts, frames)
        return tokens_NQD

    def black_clip(self) -> dict[str, Any]:
        """A picture, as in the official code."""
        size = self.config.vision_config.image_size
        black = torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32)
        return {"pixel_values": black, "frame_counts": [1]}


class VideoLLaMA2ForConditionalGeneration(MultimodalLM, MultimodalPreTrained, GenerationMixin):  # type: ignore[misc]
    """The whole model. The tower has `requires_grad` off."""

    config_class = VideoLLaMA2Config
    visual_inputs = INPUTS

    def __init__(self, config: VideoLLaMA2Config) -> None:
        super().__init__(config)
        _register_names()
        text: Any = config.text_config
        self.model = VideoLLaMA2Model(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(_take_official_names)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, but a tensor too many, missing or of another shape is an error.

        Raises:
            EnvironmentProblem: naming the tensors.
        """
        _register_names()
        tell = kwargs.pop("output_loading_info", False)
        model, loading = load_checked(super().from_pretrained, pretrained_model_name_or_path, args, kwargs)
        model.model.vision_tower.requires_grad_(False)  # loading puts new parameters in place of the frozen ones
        return (model, loading) if tell else model


def _register_names() -> None:
    """Tell transformers the official names: both when loading and when saving, whoever does it."""
    renamings = [WeightRenaming(rf"^{official}".replace(".", r"\."), ours) for official, ours in RENAMED.items()]
    register_checkpoint_conversion_mapping(VideoLLaMA2ForConditionalGeneration.__name__, renamings, overwrite=True)


def _take_official_names(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """`load_state_dict` reads both kinds of names: the Trainer resumes by it, from what `save_pretrained` wrote, and
    passes over names that it does not know with a warning."""
    for name in list(state_dict):
        if name.startswith(prefix):
            known = prefix + our_name(name.removeprefix(prefix))
            if known != name:
                state_dict[known] = state_dict.pop(name)


def our_name(official: str) -> str:
    """This model's name of a tensor of an official checkpoint."""
    for before, after in RENAMED.items():
        if official.startswith(before):
            return after + official.removeprefix(before)
    return official
