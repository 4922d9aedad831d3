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
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init

from harness.common.errors import EnvironmentProblem
from harness.models.checkpoint_files import load_checked
from harness.models.multimodal import check_inputs, fill, head
from harness.models.videochat2.config import VideoChat2Config
from harness.models.videochat2.qformer import make_qformer
from harness.models.videochat2.vision import UMTModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import Cache
    from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

CHECKPOINT: Final = "stage3.safetensors"
"""The trained tensors of a checkpoint folder, by their official names; config.json beside it names the base."""
VISION: Final = ("vision", "vision_layernorm", "qformer", "query_tokens", "extra_query_tokens", "projector")
"""Attributes of `VideoChat2Model` that are trained whole; the decoder below them is frozen, or has adapters."""
INPUTS: Final = ("pixel_values", "frame_counts", "qformer_input_ids", "qformer_attention_mask", "bos_as_ones")
"""What goes in once, with the prompt."""


class VideoChat2PreTrained(PreTrainedModel):  # type: ignore[misc]
    """What the two classes below share: the flags that transformers reads from the class."""

    config_class = VideoChat2Config
    base_model_prefix = "model"
    input_modalities = ("video", "image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ("past_key_values",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VideoChat2Model):
            init.normal_(module.query_tokens, std=0.02)
            init.zeros_(module.extra_query_tokens)


class VideoChat2Model(VideoChat2PreTrained):
    """Everything but the output embedding."""

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
        self.language_model = AutoModel.from_config(text)
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
        found: list[Tensor] = []
        for count in dict.fromkeys(counts):  # clips of one length together: images beside videos
            rows = [row for row, own in enumerate(counts) if own == count]
            pixels_NTCHW = torch.stack([clips[row] for row in rows])
            found.append(self._clips(pixels_NTCHW, qformer_input_ids[rows], qformer_attention_mask[rows]))
            order += rows
        tokens_NQD = torch.cat(found)
        if len(found) == 1:
            return tokens_NQD
        return tokens_NQD[torch.tensor(order).argsort().to(tokens_NQD.device)]

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

    def merge(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        frame_counts: Sequence[int] | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        bos_as_ones: Tensor | bool | None = None,
    ) -> Tensor:
        """Embeddings BSD with the visual tokens, in order, where the placeholders stand.

        Raises:
            ValueError: placeholders and visual tokens differ in number, or there are no frames for them.
        """
        placeholder_BS = input_ids == self.config.placeholder_token_id
        embeds_BSD: Tensor = self.get_input_embeddings()(input_ids.masked_fill(placeholder_BS, 0))
        embeds_BSD = self._begin(embeds_BSD, self.config.bos_as_ones if bos_as_ones is None else bos_as_ones)
        features = None
        if pixel_values is not None:
            features = self.get_video_features(pixel_values, frame_counts, qformer_input_ids, qformer_attention_mask)
        elif self.training and not bool(placeholder_BS.any()):
            return embeds_BSD + self._nothing()
        return fill(embeds_BSD, placeholder_BS, features)

    def _begin(self, embeds_BSD: Tensor, ones: Tensor | bool) -> Tensor:
        """The official training's first row: the number of the `<s>` token in every dimension.

        Args:
            ones: for all rows, or for each (bool B).
        """
        if ones is False:
            return embeds_BSD
        first_BS = torch.zeros(embeds_BSD.shape[:2], dtype=torch.bool, device=embeds_BSD.device)
        first_BS[:, 0] = ones if isinstance(ones, bool) else ones.to(embeds_BSD.device)
        number = float(self.config.text_config.bos_token_id)
        return torch.where(first_BS[..., None], embeds_BSD.new_tensor(number), embeds_BSD)

    def _nothing(self) -> Tensor:
        """Zero, through all that is trained beside the decoder: a micro-batch of text calls the same modules as all
        others, so processes that share gradients or weights stay in step."""
        size = self.config.vision_config.image_size
        black = torch.zeros(1, 3, size, size, device=self.device, dtype=torch.float32)
        words = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        return self.get_video_features(black, [1], words).sum() * 0.0

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_counts: Sequence[int] | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        bos_as_ones: Tensor | bool | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`inputs_embeds` stands for `input_ids` after the merge; exactly one of the two is given.

        Args:
            bos_as_ones: see `VideoChat2Config`; None takes the configuration's, a bool tensor says it for each row.
        """
        check_inputs(input_ids, inputs_embeds, pixel_values)
        if input_ids is not None:
            inputs_embeds = self.merge(
                input_ids, pixel_values, frame_counts, qformer_input_ids, qformer_attention_mask, bos_as_ones
            )
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class VideoChat2ForConditionalGeneration(VideoChat2PreTrained, GenerationMixin):  # type: ignore[misc]
    """The whole model."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

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

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_counts: Sequence[int] | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        bos_as_ones: Tensor | bool | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given (transformers' own shift and normalisation)."""
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            frame_counts=frame_counts,
            qformer_input_ids=qformer_input_ids,
            qformer_attention_mask=qformer_attention_mask,
            bos_as_ones=bos_as_ones,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return head(self, outputs, labels, logits_to_keep, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Frames and instruction go in once, with the prompt; the cache carries them afterwards."""
        once = {name: kwargs.pop(name, None) for name in INPUTS}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        whole = is_first_iteration or not kwargs.get("use_cache", True)
        return inputs | (once if whole else {"bos_as_ones": False})
