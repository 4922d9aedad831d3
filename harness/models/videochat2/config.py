"""The configuration of VideoChat2: vision transformer, QFormer, language model and what joins them.

The defaults are the released sizes; none of the official files states them, so they stand here and are checked
against the tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import AutoConfig, InstructBlipVideoQFormerConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

LORA_TARGETS: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "lm_head",
)
"""Linear layers that get an adapter; these names occur in the language model and its head only."""
QFORMER: Final[Mapping[str, Any]] = {"vocab_size": 30523, "encoder_hidden_size": 1024}
"""The official QFormer where it is not BERT-base: one word more, [DEC], and the width of the pictures."""


class UMTConfig(PreTrainedConfig):  # type: ignore[misc]
    """UMT-L/16 as VideoChat2 builds it.

    Attributes:
        num_hidden_layers: 23 of the 24 blocks: the output of the last but one is read, the last is never built.
        table_frames: frames of the fixed position table, which is stretched to those of a clip.
        checkpoint_blocks: so many blocks are computed again in the backward pass (18 in the official stage 3).
    """

    model_type = "videochat2_umt"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 16
    table_frames: int = 4
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    checkpoint_blocks: int = 0

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size


class VideoChat2Config(PreTrainedConfig):  # type: ignore[misc]
    """The whole model.

    Attributes:
        vision_layernorm_eps: of the norm between vision transformer and QFormer.
        num_query_tokens: queries of stage 1.
        num_extra_query_tokens: queries that stage 2 added.
        qformer_drop_path_rate: stochastic depth of the last QFormer layer; it grows evenly from 0 at the first.
        placeholder_token_id: stands at each visual position in input_ids; outside the vocabulary.
        bos_as_ones: the official training writes the number of the `<s>` token (1) into every dimension of the
            row's first embedding, in place of the token's embedding. The released weights were trained so.
        lora: rank, alpha and dropout of the adapters; None for a model without (or with merged) adapters.
        language_model: name of the frozen base that the adapters belong to.
        language_model_fingerprint: of that base's files.
    """

    model_type = "videochat2"
    sub_configs_defaults = {  # noqa: RUF012 - a ClassVar of transformers
        "vision_config": SubConfigSpec(config_class=UMTConfig),
        "qformer_config": SubConfigSpec(config_class=InstructBlipVideoQFormerConfig, init_kwargs=dict(QFORMER)),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="mistral"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    qformer_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_layernorm_eps: float = 1e-12
    num_query_tokens: int = 32
    num_extra_query_tokens: int = 64
    qformer_drop_path_rate: float = 0.2
    placeholder_token_id: int = 32000
    bos_as_ones: bool = True
    lora: dict[str, Any] | None = None
    language_model: str | None = None
    language_model_fingerprint: str | None = None
    tie_word_embeddings: bool = False

    @property
    def visual_tokens(self) -> int:
        """Q, of one clip or image, however many frames it has."""
        return self.num_query_tokens + self.num_extra_query_tokens
