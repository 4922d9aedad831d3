"""VideoChat2 as an ordinary transformers model: UMT-L, QFormer, projector, Mistral decoder.

Whatever the number of frames, a clip becomes the same number of visual tokens. What they show depends on the
instruction, which the QFormer reads with the pictures.

Legend: B rows, S expanded length, N clips, T frames of a clip, F frames of all clips, P patches of a clip, C
channels, H and W pixels, L instruction tokens, Q visual tokens of a clip, D hidden size, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModel, GenerationMixin
from transformers import initialization as init

from harness.common.errors import EnvironmentProblem
from harness.models.checkpoint_files import load_checked
from harness.models.multimodal import MultimodalDecoder, MultimodalLM, MultimodalPreTrained
from harness.models.videochat2.config import VideoChat2Config
from harness.models.videochat2.qformer import make_qformer
from harness.models.videochat2.vision import UMTModel

if TYPE_CHECKING:
    from collections.abc import Sequence


CHECKPOINT: Final = "stage3.safetensors"
"""The trained tensors of a checkpoint folder, by their official names; config.json beside it names the base."""
VISION: Final = ("vision", "vision_layernorm", "qformer", "query_tokens", "extra_query_tokens", "projector")
"""Attributes of `VideoChat2Model` that are trained whole; the decoder below them is frozen, or has adapters."""
INPUTS: Final = ("pixel_values", "frame_counts", "qformer_input_ids", "qformer_attention_mask", "bos_as_ones")
"""What goes in once, with the prompt."""


class VideoChat2Model(MultimodalDecoder, MultimodalPreTrained):
    """Everything but the output embedding."""

    config_class = VideoChat2Config
    visual_inputs = INPUTS

    def __init__(self, config: VideoChat2Config) -> None:
        super().__init__(config)
        vision: Any = config.vision_config
        qformer: Any = config.qformer_config
        text: Any = config.text_config
        if qformer.encoder_hidden_size != vision.hidden_size:
            raise ValueError(f"the QFormer reads {qformer.encoder_hidden_size} channels, not {vision.hidden_size}")
        self.vision = UMTModel(vision)
        self.vision_layernorm = nn.LayerNorm(vision.hidden_size, eps=config.vision_layernorm_eps)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, qformer.hidden_size))
        self.extra_query_tokens = nn.Parameter(torch.zeros(1, config.num_extra_query_tokens, qformer.hidden_size))
        self.qformer = make_qformer(qformer, config.qformer_drop_path_rate)
        self.projector = nn.Linear(qformer.hidden_size, text.hidden_size)
        self.language_model = AutoModel.from_config(text, trust_remote_code=False)
        self.post_init()

    def get_video_features(
        self,
        pixel_values: Tensor,
        frame_counts: Sequence[int] | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Visual tokens [N, Q, D].

        Args:
            pixel_values: clips [N, T, 3, H, W], or the frames of all clips [F, 3, H, W] with `frame_counts`.
            frame_counts: frames of each clip, 1 for an image.
            qformer_input_ids: the instruction of each clip, [N, L].
            qformer_attention_mask: 0 on padding, [N, L]; None for none. Positions count from the first column,
                padding included, so the official left padding shifts those of a short instruction.

        Raises:
            ValueError: frames and counts, or clips and instructions, differ in number.
        """
        if pixel_values.dim() == 5:
            frame_counts = [pixel_values.shape[1]] * pixel_values.shape[0]
            pixel_values = pixel_values.flatten(0, 1)
        counts = [] if frame_counts is None else list(frame_counts)
        if sum(counts) != pixel_values.shape[0]:
            raise ValueError(f"{pixel_values.shape[0]} frames for clips of {counts}")
        if qformer_input_ids is None or qformer_input_ids.shape[0] != len(counts):
            given = 0 if qformer_input_ids is None else qformer_input_ids.shape[0]
            raise ValueError(f"{given} instructions in qformer_input_ids for {len(counts)} clips")
        if qformer_attention_mask is None:
            qformer_attention_mask = torch.ones_like(qformer_input_ids)
        clips = pixel_values.split(counts)  # type: ignore[no-untyped-call]
        order: list[int] = []
        tokens: list[Tensor] = []
        for count in dict.fromkeys(counts):  # clips of one length together: images beside videos
            rows = [row for row, own in enumerate(counts) if own == count]
            pixels_NTCHW, text_NL, mask_NL = (
                torch.stack([of_clip[row] for row in rows])
                for of_clip in (clips, qformer_input_ids, qformer_attention_mask)
            )
            tokens_NQD = self._clips(pixels_NTCHW, text_NL, mask_NL)
            if len(rows) == len(counts):
                return tokens_NQD
            tokens += tokens_NQD.unbind()
            order += rows
        # No index of rows: it would be an array on the host, whose copy an accelerator is waited for.
        return torch.stack([tokens[order.index(row)] for row in range(len(counts))])

    def _clips(self, pixels_NTCHW: Tensor, text_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Visual tokens of clips with one number of frames."""
        weight = self.vision.patch_embed.proj.weight
        seen_NPC = self.vision_layernorm(self.vision(pixels_NTCHW.to(weight.dtype)))
        queries_NQC = torch.cat([self.query_tokens, self.extra_query_tokens], dim=1).expand(len(seen_NPC), -1, -1)
        count = queries_NQC.shape[1]
        mask = torch.cat([mask_NL.new_ones(len(mask_NL), count), mask_NL], dim=1)
        read = self.qformer(
            input_ids=text_NL, attention_mask=mask, query_embeds=queries_NQC, encoder_hidden_states=seen_NPC
        )
        tokens_NQD: Tensor = self.projector(read.last_hidden_state[:, :count])
        return tokens_NQD

    def begin_rows(self, embeds_BSD: Tensor, visual: dict[str, Any]) -> Tensor:
        """The official training's first embedding: the number of the `<s>` token in every dimension.

        Args:
            visual: holds `bos_as_ones`, for all rows or for each (bool B); None takes the configuration's.
        """
        ones: Tensor | bool | None = visual.pop("bos_as_ones")
        ones = self.config.bos_as_ones if ones is None else ones
        if ones is False:
            return embeds_BSD
        first_BS = torch.zeros(embeds_BSD.shape[:2], dtype=torch.bool, device=embeds_BSD.device)
        first_BS[:, 0] = ones if isinstance(ones, bool) else ones.to(embeds_BSD.device)
        number = float(self.config.text_config.bos_token_id)
        return embeds_BSD.masked_fill(first_BS[..., None], number)

    def black_clip(self) -> dict[str, Any]:
        """A picture and an instruction of two words: they reach all that is trained beside the decoder."""
        size = self.config.vision_config.image_size
        black = torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32)
        words = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        return {"pixel_values": black, "frame_counts": [1], "qformer_input_ids": words}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.query_tokens, std=0.02)
            init.zeros_(self.extra_query_tokens)


class VideoChat2ForConditionalGeneration(MultimodalLM, MultimodalPreTrained, GenerationMixin):  # type: ignore[misc]
    """The whole model."""

    config_class = VideoChat2Config
    visual_inputs = INPUTS
    after_prompt = {"bos_as_ones": False}  # noqa: RUF012

    def __init__(self, config: VideoChat2Config) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = VideoChat2Model(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' own for a whole model; a tensor too many, missing or of another shape is an error.

        Raises:
            EnvironmentProblem: naming the tensors, or the folder holds adapters without their base.
        """
        where = pretrained_model_name_or_path
        if where is not None and (Path(where) / CHECKPOINT).is_file():
            raise EnvironmentProblem(
                f"{where}: holds adapters without their base",
                hint="harness.models.videochat2.weights.load_pretrained(folder, language_model) folds them into it",
            )
        if kwargs.get("output_loading_info"):
            return super().from_pretrained(where, *args, **kwargs)
        return load_checked(super().from_pretrained, where, args, kwargs)[0]
