"""Seven families of transformers at toy size, weights drawn, stored as their publishers store them.

A run on them goes the whole way of a run on published weights: it tests the path, not the method. Chat templates are
short ones in each family's manner; tokenizers are byte-level and trained on the conversations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from harness.common.errors import RecipeError
from harness.config.model import TinyHFModel
from harness.models.artifacts import Toy
from harness.models.hf.sizes import PATCH, TILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet

SCHEMA: Final = 2
CHECKPOINT: Final = "checkpoint"
_HEAD_STD: Final = 0.08
"""Larger than usual, so that a few steps of a toy run change something."""


@dataclass(frozen=True, slots=True)
class ToyFamily:
    """How a family's toy checkpoint is made.

    Attributes:
        architecture: name of the transformers class.
        template: its chat template.
        config: from the recipe's section and the ids of the special tokens.
        processor: from the tokenizer.
        named_tokens: special tokens that the tokenizer knows by an attribute.
        special: further special tokens. The first closes a turn.
    """

    architecture: str
    template: str
    config: Callable[[TinyHFModel, Callable[[str], int]], Any]
    processor: Callable[[Any], Any]
    special: tuple[str, ...]
    named_tokens: Mapping[str, str] = field(default_factory=dict)


def chat_template(
    user: str, assistant: str, close: str, image: str, video: str, *, system: str = "", default: str = ""
) -> str:
    """A chat template: each turn is opened by its role, the media stand where the content has them.

    Args:
        user, assistant: what opens the turn.
        close: what closes a turn.
        system: what opens a system turn; empty where the family has none.
        default: the system turn of conversations without one.
    """
    opened = {"user": user, "assistant": assistant, "system": system}

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"

    roles = "".join(
        f"{{% {'if' if place == 0 else 'elif'} message['role'] == '{role}' %}}{{{{ {quoted(text)} }}}}"
        for place, (role, text) in enumerate(opened.items())
    )
    first = (
        f"{{% if messages[0]['role'] != 'system' %}}{{{{ {quoted(system + default + close)} }}}}{{% endif %}}"
        if default
        else ""
    )
    return (
        first + "{% for message in messages %}" + roles + "{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{{{{ {quoted(image)} }}}}"
        f"{{% elif part['type'] == 'video' %}}{{{{ {quoted(video)} }}}}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        f"{{{{ {quoted(close)} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {quoted(assistant)} }}}}{{% endif %}}"
    )


def media_first_template(user: tuple[str, str], assistant: tuple[str, str], generate: str) -> str:
    """A chat template that writes a turn's pictures, then its videos, then its text, whatever their order.

    Args:
        user, assistant: what stands before and behind such a turn's content.
        generate: what opens an answer.
    """

    def listed(kind: str, written: str) -> str:
        return f"{{% for part in message['content'] if part['type'] == '{kind}' %}}{{{{ {written} }}}}{{% endfor %}}"

    def turn(around: tuple[str, str], media: str) -> str:
        before, behind = (text.replace("\n", "\\n") for text in around)
        words = listed("text", "part['text']")
        return f"{{{{ '{before}' }}}}{media}{words}{{{{ '{behind}' }}}}"

    media = listed("image", "'<image>\\n'") + listed("video", "'<video>\\n'")
    opening = generate.replace("\n", "\\n")
    return (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}" + turn(assistant, "")
        + "{% else %}" + turn(user, media) + "{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}{{ '" + opening + "' }}{% endif %}"
    )  # fmt: skip


def train_tokenizer(texts: list[str], family: ToyFamily, vocabulary: int, max_length: int) -> Any:
    """A byte-level BPE tokenizer whose first special token closes a turn; `<pad>` pads."""
    special = list(dict.fromkeys(("<pad>", *family.special, *family.named_tokens.values())))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=family.special[0],
        extra_special_tokens=dict(family.named_tokens),
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[2:]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = family.template
    return tokenizer


# --- configurations --------------------------------------------------------------------------------------


def _text(model: TinyHFModel, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": model.vocabulary,
        "hidden_size": model.hidden,
        "intermediate_size": 2 * model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": max(1, model.heads // 2),
        "head_dim": model.hidden // model.heads,
        "initializer_range": _HEAD_STD,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
        **more,
    }


def _tower(model: TinyHFModel, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": model.tower_hidden,
        "intermediate_size": 2 * model.tower_hidden,
        "num_hidden_layers": model.tower_layers,
        "num_attention_heads": 2,
        **more,
    }


def _rope(model: TinyHFModel, **more: Any) -> dict[str, Any]:
    """Rotary positions of three axes: time gets what height and width leave of half a head."""
    half = model.hidden // model.heads // 2
    side = half // 3
    section = [half - 2 * side, side, side]
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section, **more}


def _internvl(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = transformers.InternVLVisionConfig(
        **_tower(model, image_size=[TILE, TILE], patch_size=[PATCH, PATCH], attention_bias=True)
    )
    return transformers.InternVLConfig(
        vision_config=vision,
        text_config=transformers.Qwen3Config(**_text(model)),
        image_token_id=token("<IMG_CONTEXT>"),
        image_seq_length=(TILE // PATCH // 2) ** 2,
        tie_word_embeddings=False,
    )


def _qwen2_5_vl(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = {
        "depth": model.tower_layers, "hidden_size": model.tower_hidden, "intermediate_size": 2 * model.tower_hidden,
        "num_heads": 2, "patch_size": PATCH, "window_size": 4 * PATCH, "out_hidden_size": model.hidden,
        "fullatt_block_indexes": [model.tower_layers - 1],
    }  # fmt: skip
    text = _text(model, rope_parameters=_rope(model), model_type="qwen2_5_vl_text")
    return transformers.Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=False, **_qwen_ids(token)
    )


def _qwen3_vl(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = {
        "depth": model.tower_layers, "hidden_size": model.tower_hidden, "intermediate_size": 2 * model.tower_hidden,
        "num_heads": 2, "patch_size": PATCH, "out_hidden_size": model.hidden, "num_position_embeddings": 16,
        "deepstack_visual_indexes": list(range(min(model.layers, model.tower_layers))),
    }  # fmt: skip
    text = _text(model, rope_parameters=_rope(model, mrope_interleaved=True))
    return transformers.Qwen3VLConfig(
        vision_config=vision, text_config=text, tie_word_embeddings=False, **_qwen_ids(token)
    )


def _qwen_ids(token: Callable[[str], int]) -> dict[str, int]:
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def _llava_onevision(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = transformers.SiglipVisionConfig(
        **_tower(model, image_size=TILE, patch_size=PATCH, vision_use_head=False)
    )
    return transformers.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**_text(model)),
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=_PINPOINTS,
        tie_word_embeddings=False,
    )


def _llava_next_video(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = transformers.CLIPVisionConfig(**_tower(model, image_size=TILE, patch_size=PATCH))
    cells = (TILE // PATCH) ** 2
    return transformers.LlavaNextVideoConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_text(model)),
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=_PINPOINTS,
        image_seq_length=cells,
        video_seq_length=cells // 4,
        tie_word_embeddings=False,
    )


def _smolvlm(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = transformers.SmolVLMVisionConfig(**_tower(model, image_size=TILE, patch_size=PATCH))
    return transformers.SmolVLMConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**_text(model)),
        image_token_id=token("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def _video_llama_3(model: TinyHFModel, token: Callable[[str], int]) -> Any:
    vision = transformers.VideoLlama3VisionConfig(**_tower(model, patch_size=PATCH))
    return transformers.VideoLlama3Config(
        vision_config=vision,
        text_config=transformers.Qwen2Config(**_text(model)),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        tie_word_embeddings=False,
    )


# --- processors ------------------------------------------------------------------------------------------

_PINPOINTS: Final = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE]]
_SIDE: Final = {"height": TILE, "width": TILE}
_IMAGENET: Final = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_BUDGET: Final = {"size": {"shortest_edge": TILE * TILE, "longest_edge": 16 * TILE * TILE}, "patch_size": PATCH}


def _internvl_processor(tokenizer: Any) -> Any:
    image = transformers.GotOcr2ImageProcessor(size=_SIDE, crop_to_patches=True, max_patches=4, **_IMAGENET)
    video = transformers.InternVLVideoProcessor(size=_SIDE, **_IMAGENET)
    tokens = (TILE // PATCH // 2) ** 2
    return transformers.InternVLProcessor(image, tokenizer, video, image_seq_length=tokens)


def _qwen2_5_vl_processor(tokenizer: Any) -> Any:
    image = transformers.Qwen2VLImageProcessor(**_BUDGET)
    return transformers.Qwen2_5_VLProcessor(image, tokenizer, transformers.Qwen2VLVideoProcessor(**_BUDGET))


def _qwen3_vl_processor(tokenizer: Any) -> Any:
    image, video = transformers.Qwen2VLImageProcessor(**_BUDGET), transformers.Qwen3VLVideoProcessor(**_BUDGET)
    return transformers.Qwen3VLProcessor(image, tokenizer, video)


def _llava_onevision_processor(tokenizer: Any) -> Any:
    image = transformers.LlavaOnevisionImageProcessor(size=_SIDE, image_grid_pinpoints=_PINPOINTS)
    video = transformers.LlavaOnevisionVideoProcessor(size=_SIDE)
    return transformers.LlavaOnevisionProcessor(
        image, tokenizer, video, num_image_tokens=(TILE // PATCH) ** 2, vision_feature_select_strategy="full"
    )


def _llava_next_video_processor(tokenizer: Any) -> Any:
    size = {"size": {"shortest_edge": TILE}, "crop_size": _SIDE}
    return transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(**size),
        transformers.LlavaNextImageProcessor(image_grid_pinpoints=_PINPOINTS, **size),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _smolvlm_processor(tokenizer: Any) -> Any:
    size = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**size),
        tokenizer,
        transformers.SmolVLMVideoProcessor(**{**size, "size": {"longest_edge": TILE}}),
        image_seq_len=(TILE // PATCH // 2) ** 2,
    )


def _video_llama_3_processor(tokenizer: Any) -> Any:
    image = transformers.VideoLlama3ImageProcessor(**_BUDGET)
    return transformers.VideoLlama3Processor(image, tokenizer, transformers.VideoLlama3VideoProcessor(**_BUDGET))


# --- the families ----------------------------------------------------------------------------------------

_CHATML: Final = {
    "user": "<|im_start|>user\n", "assistant": "<|im_start|>assistant\n", "system": "<|im_start|>system\n",
    "close": "<|im_end|>\n",
}  # fmt: skip
_PADS: Final = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>", "video": "<|vision_start|><|video_pad|><|vision_end|>"
}  # fmt: skip
_QWEN: Final = (
    "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
)  # fmt: skip
_SMOLVLM: Final = (
    "<|im_start|>{% for message in messages %}{{ message['role'].capitalize() + ':' }}"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""Knows no videos, as the published one: transformers' processor takes one of its own for them."""
_HELPFUL: Final = "You are a helpful assistant."

FAMILIES: Final[Mapping[str, ToyFamily]] = {
    "internvl": ToyFamily(
        "InternVLForConditionalGeneration",
        chat_template(**_CHATML, image="<IMG_CONTEXT>\n", video="<video>\n"),
        _internvl,
        _internvl_processor,
        ("<|im_end|>", "<|im_start|>"),
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "llava_next_video": ToyFamily(
        "LlavaNextVideoForConditionalGeneration",
        # Nothing opens an answer but the end of the question.
        media_first_template(("[INST] ", " [/INST]"), (" ", "</s> "), ""),
        _llava_next_video,
        _llava_next_video_processor,
        ("</s>", "<image>", "<video>"),
    ),
    "llava_onevision": ToyFamily(
        "LlavaOnevisionForConditionalGeneration",
        media_first_template(
            (_CHATML["user"], _CHATML["close"]), (_CHATML["assistant"], _CHATML["close"]), _CHATML["assistant"]
        ),
        _llava_onevision,
        _llava_onevision_processor,
        ("<|im_end|>", "<|im_start|>", "<image>", "<video>"),
    ),
    "qwen2_5_vl": ToyFamily(
        "Qwen2_5_VLForConditionalGeneration",
        chat_template(**_CHATML, **_PADS, default=_HELPFUL),
        _qwen2_5_vl,
        _qwen2_5_vl_processor,
        _QWEN,
    ),
    "qwen3_vl": ToyFamily(
        "Qwen3VLForConditionalGeneration",
        chat_template(**_CHATML, **_PADS),
        _qwen3_vl,
        _qwen3_vl_processor,
        _QWEN,
    ),
    "smolvlm": ToyFamily(
        "SmolVLMForConditionalGeneration",
        _SMOLVLM,
        _smolvlm,
        _smolvlm_processor,
        ("<end_of_utterance>", "<|im_start|>", "<image>", "<video>", "<fake_token_around_image>", "<global-img>"),
    ),
    "video_llama_3": ToyFamily(
        "VideoLlama3ForConditionalGeneration",
        chat_template(**_CHATML, image="<|image_pad|>\n", video="<|video_pad|>\n"),
        _video_llama_3,
        _video_llama_3_processor,
        ("<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|video_pad|>"),
    ),
}


def _make_checkpoint(model: TinyHFModel, data: DataSet, folder: Path) -> None:
    family = FAMILIES[model.family]
    texts = [turn.text for sample in data.samples for turn in sample.turns]
    tokenizer = train_tokenizer(texts, family, model.vocabulary, model.max_length)
    config = family.config(model, tokenizer.convert_tokens_to_ids)
    network = getattr(transformers, family.architecture)(config)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder)
    processor = family.processor(tokenizer)
    processor.chat_template = family.template
    processor.save_pretrained(str(folder))


def section(recipe: Recipe) -> TinyHFModel:
    assert isinstance(recipe.model, TinyHFModel)
    return recipe.model


def _check_sizes(recipe: Recipe) -> None:
    model = section(recipe)
    if model.hidden % (2 * model.heads) or model.hidden // model.heads < 8 or model.tower_hidden % 8:
        raise RecipeError(
            f"model.heads {model.heads} does not divide model.hidden {model.hidden} into heads of an even size of at "
            f"least 8, or model.tower_hidden {model.tower_hidden} is not a multiple of 8"
        )


TOY: Final = Toy("tiny-hf", SCHEMA, {CHECKPOINT: _make_checkpoint}, _check_sizes)
