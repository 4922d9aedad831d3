"""The config.json of InternVL's published checkpoints, field by field, to transformers' and back.

Three defaults of transformers' `InternVLConfig` load without complaint and are wrong for InternVL3.5 (tied head, id
of the visual token, tower without biases), and `Qwen3Config` has another rotary base. So no field that the model is
made of takes a default: it is translated, or refused by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import InternVLConfig, InternVLVisionConfig, Qwen3Config

from harness.common.errors import EnvironmentProblem

if TYPE_CHECKING:
    from collections.abc import Mapping

PUBLISHED: Final = "internvl_chat"
"""`model_type` of the published form."""
TEXT: Final = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "max_position_embeddings", "attention_bias",
    "attention_dropout", "initializer_range",
)  # fmt: skip
"""Fields of `llm_config` that have the same name and meaning in transformers."""
VISION: Final = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_channels": "num_channels",
    "hidden_act": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "norm_type": "norm_type",
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
    "attention_dropout": "attention_dropout",
    "dropout": "hidden_dropout_prob",
    "initializer_range": "initializer_range",
}
"""Fields of `vision_config`, and their names in transformers."""
FIXED: Final[Mapping[str, Mapping[str, Any]]] = {
    "": {"ps_version": "v2", "template": "internvl2_5", "use_backbone_lora": 0, "use_llm_lora": 0},
    "llm_config": {"model_type": "qwen3", "rope_scaling": None, "use_sliding_window": False},
    "vision_config": {"model_type": "intern_vit_6b"},
}
"""Fields that transformers' model or this program's text has one value of."""


def from_official(config: Mapping[str, Any], image_token_id: int, where: str) -> InternVLConfig:
    """transformers' configuration of a published one.

    Args:
        image_token_id: of the visual token, by the checkpoint's tokenizer.

    Raises:
        EnvironmentProblem: a field is missing, or says what transformers' model does not do; it is named.
    """
    for part, fields in FIXED.items():
        section = _section(config, part, where) if part else config
        for name, value in fields.items():
            # What is absent is off; a version or a type that is absent is an older model's.
            stated = section.get(name, value) if not value else _field(section, name, part, where)
            if stated != value:
                raise EnvironmentProblem(
                    f"{where}: config.json says {_named(part, name)} is {section[name]!r}; known is {value!r}"
                )
    text, vision = (_section(config, part, where) for part in ("llm_config", "vision_config"))
    ratio, layer = (_field(config, name, "", where) for name in ("downsample_ratio", "select_layer"))
    size = _field(config, "force_image_size", "", where)
    patch, trained = (_field(vision, name, "vision_config", where) for name in ("patch_size", "image_size"))
    if size != trained:
        raise EnvironmentProblem(
            f"{where}: config.json says force_image_size is {size} and vision_config.image_size {trained}"
        )
    translated = {ours: _field(vision, theirs, "vision_config", where) for theirs, ours in VISION.items()}
    tied = _tied(config, text, where)
    return InternVLConfig(
        vision_config=InternVLVisionConfig(image_size=[size, size], patch_size=[patch, patch], **translated),
        text_config=_text_config(text, tied, where),
        image_token_id=image_token_id,
        image_seq_length=int((size // patch * ratio) ** 2),
        downsample_ratio=ratio,
        projector_hidden_act="gelu",
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )


def to_official(config: Any, most_tiles: int, least_tiles: int) -> dict[str, Any]:
    """The published form of transformers' configuration.

    Args:
        config: an `InternVLConfig` over Qwen3.
        most_tiles, least_tiles: of a picture.

    Raises:
        EnvironmentProblem: it is of a model that is not published in this form.
    """
    text, vision = config.text_config, config.vision_config
    if text.model_type != "qwen3" or vision.image_size[0] != vision.image_size[1]:
        raise EnvironmentProblem(
            f"a model with the decoder {text.model_type} and tiles of {vision.image_size} is not published in this "
            "form"
        )
    rope = text.rope_parameters
    llm = {name: getattr(text, name) for name in TEXT}
    llm |= {"rope_theta": rope["rope_theta"], "bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id}
    tower = {theirs: getattr(vision, ours) for theirs, ours in VISION.items()}
    tower |= {"image_size": vision.image_size[0], "patch_size": vision.patch_size[0], "drop_path_rate": 0.0}
    return {
        **FIXED[""],
        "architectures": ["InternVLChatModel"],
        "model_type": PUBLISHED,
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": vision.image_size[0],
        "max_dynamic_patch": most_tiles,
        "min_dynamic_patch": least_tiles,
        "select_layer": config.vision_feature_layer,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_thumbnail": True,
        "llm_config": {**FIXED["llm_config"], "architectures": ["Qwen3ForCausalLM"], **llm},
        "vision_config": {**FIXED["vision_config"], "architectures": ["InternVisionModel"], **tower},
    }


def tiles_stated(config: Mapping[str, Any], where: str) -> tuple[int, int, int]:
    """Pixels along a tile, and most and least tiles of a picture.

    Raises:
        EnvironmentProblem: a field is missing, or pictures are not cut as InternVL3.5's are.
    """
    for name in ("dynamic_image_size", "use_thumbnail"):
        if _field(config, name, "", where) is not True:
            raise EnvironmentProblem(f"{where}: config.json says {name} is {config[name]!r}; known is True")
    size, most, least = (
        int(_field(config, name, "", where))
        for name in ("force_image_size", "max_dynamic_patch", "min_dynamic_patch")
    )
    return size, most, least


def _text_config(text: Mapping[str, Any], tied: bool, where: str) -> Qwen3Config:
    fields = {name: _field(text, name, "llm_config", where) for name in TEXT}
    theta = float(_field(text, "rope_theta", "llm_config", where))
    return Qwen3Config(
        **fields,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        bos_token_id=text.get("bos_token_id"),
        eos_token_id=text.get("eos_token_id"),
        tie_word_embeddings=tied,
    )


def _tied(config: Mapping[str, Any], text: Mapping[str, Any], where: str) -> bool:
    """Whether the head is the embedding: the flag may stand above, within `llm_config`, or at both places."""
    stated = {bool(part["tie_word_embeddings"]) for part in (config, text) if "tie_word_embeddings" in part}
    if len(stated) != 1:
        raise EnvironmentProblem(
            f"{where}: config.json says of tie_word_embeddings {'nothing' if not stated else 'true and false'}"
        )
    return stated.pop()


def _section(config: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise EnvironmentProblem(f"{where}: config.json has no {name}", hint="it is not of InternVL's published form")
    return section


def _field(section: Mapping[str, Any], name: str, part: str, where: str) -> Any:
    if name not in section:
        raise EnvironmentProblem(f"{where}: config.json has no {_named(part, name)}, which has no default here")
    return section[name]


def _named(part: str, name: str) -> str:
    return f"{part}.{name}" if part else name
