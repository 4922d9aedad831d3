"""A small video LLM of plain transformers classes: per-frame CNN, projector, Qwen2 decoder.

It is built as the real ones are (tower, connector, `AutoModel` decoder, placeholders filled by masked_scatter),
so whatever works on it by `get_decoder()` and `base_model` works on them. transformers' own `from_pretrained`
reads its checkpoints; there is no remote code.

Legend: B rows, S expanded length, N clips, T frames, C channels, H and W pixels or cells, P visual tokens of
a clip, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from harness.models.multimodal import MultimodalDecoder, MultimodalLM, MultimodalPreTrained
from harness.models.tiny.config import TinyTowerConfig, TinyVLMConfig, check_sizes
from harness.models.tiny.sizes import PROJECTOR_WIDTH, features_a_token

NORM_GROUP = 8
"""Channels of a GroupNorm group."""
INPUTS = ("pixel_values", "tower_features")
"""What goes in once, with the prompt: frames, or what the frozen tower said of them before."""


class TinyTower(PreTrainedModel):  # type: ignore[misc]
    """Frames one by one through a strided CNN with GroupNorm and GELU."""

    config_class = TinyTowerConfig
    base_model_prefix = "tower"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = False

    def __init__(self, config: TinyTowerConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        before = 3
        for channels, kernel in zip(config.channels, config.kernels, strict=True):
            layers += [
                nn.Conv2d(before, channels, kernel, stride=2, padding=kernel // 2),
                nn.GroupNorm(max(1, channels // NORM_GROUP), channels),
                nn.GELU(),
            ]
            before = channels
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Frames [N, 3, H, W], float, normalised; `last_hidden_state` is [N, C, grid, grid]."""
        return BaseModelOutput(last_hidden_state=self.layers(pixel_values))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class TinyProjector(nn.Module):
    """Space and time to depth, then a two-layer perceptron into the decoder's width.

    Each token also gets a learned vector of its place, which a convolution's output does not tell. It starts as
    large as the features: smaller ones left the decoder unable to see motion.
    """

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__()
        text = config.text_config
        width = features_a_token(config)
        inner = PROJECTOR_WIDTH * text.hidden_size  # type: ignore[union-attr]
        self.linear_1 = nn.Linear(width, inner)
        self.act = nn.GELU()
        self.merges = (config.frames_a_token, config.cells_a_token)
        self.linear_2 = nn.Linear(inner, text.hidden_size)  # type: ignore[union-attr]
        self.place_PD = nn.Parameter(torch.randn(config.visual_tokens, text.hidden_size))  # type: ignore[union-attr]

    def forward(self, features_NTCHW: Tensor) -> Tensor:
        """Cell features to tokens [N, P, D], in (time, row, column) order."""
        n, t, c, h, w = features_NTCHW.shape
        f, s = self.merges
        blocks = features_NTCHW.reshape(n, t // f, f, c, h // s, s, w // s, s)
        merged_NPC = blocks.permute(0, 1, 4, 6, 2, 5, 7, 3).reshape(n, -1, f * s * s * c)
        tokens_NPD: Tensor = self.linear_2(self.act(self.linear_1(merged_NPC))) + self.place_PD
        return tokens_NPD


class TinyVLMModel(MultimodalDecoder, MultimodalPreTrained):
    """Tower, projector and decoder, without the output embedding."""

    config_class = TinyVLMConfig
    input_modalities = ("video", "text")
    visual_inputs = INPUTS

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__(config)
        check_sizes(config)
        self.vision_tower = TinyTower(config.vision_config)  # type: ignore[arg-type]
        self.projector = TinyProjector(config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def get_video_features(self, pixel_values: Tensor | None, tower_features: Tensor | None = None) -> Tensor:
        """Clips [N, T, 3, H, W], or what `tower_features` gave for them, to visual tokens [N, P, D]."""
        if tower_features is None:
            assert pixel_values is not None
            tower_features = self.tower_features(pixel_values)
        features_NPD: Tensor = self.projector(tower_features)
        return features_NPD

    def tower_features(self, pixel_values: Tensor) -> Tensor:
        """Clips [N, T, 3, H, W] to what the tower says of them [N, T, C, grid, grid]."""
        n, t = pixel_values.shape[:2]
        cells: Tensor = self.vision_tower(pixel_values.flatten(0, 1)).last_hidden_state
        return cells.view(n, t, *cells.shape[1:])

    def black_clip(self) -> dict[str, Any]:
        size = self.config.vision_config.image_size
        return {"pixel_values": torch.zeros(1, self.config.frames, 3, size, size, device=self.device)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """transformers' own; features of the projector as large as the places. (The tower has its own.)"""
        super()._init_weights(module)
        if isinstance(module, TinyProjector):
            init.normal_(module.place_PD)
            for linear in (module.linear_1, module.linear_2):
                init.normal_(linear.weight, std=linear.in_features**-0.5)


class TinyVLMForConditionalGeneration(MultimodalLM, MultimodalPreTrained, GenerationMixin):  # type: ignore[misc]
    """The whole model."""

    config_class = TinyVLMConfig
    input_modalities = ("video", "text")
    visual_inputs = INPUTS

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = TinyVLMModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)  # type: ignore[union-attr]
        self.post_init()


def tower_parameters(model: nn.Module) -> list[torch.nn.Parameter]:
    """Those that stay frozen after stage (a)."""
    return [parameter for name, parameter in model.named_parameters() if "vision_tower." in name]
