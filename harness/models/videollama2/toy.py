"""VideoLLaMA2 at toy size: a language model with its tokenizer, a vision tower and a projector, weights generated.

The three parts are stored as their publishers store them, so that a run on them goes the whole way of a run on
published weights. The weights are drawn, not trained: such a run tests the path, not the method.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from harness.common.errors import RecipeError
from harness.config.model import TinyVideoLLaMA2Model
from harness.models.artifacts import Toy
from harness.models.videollama2.connector import make_connector
from harness.models.videollama2.image_processing import SETTINGS
from harness.models.videollama2.sizes import TOY_SIZE, visual_tokens
from harness.models.videollama2.weights import PROJECTOR, ModelFiles

if TYPE_CHECKING:

    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet

SCHEMA: Final = 1
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE: Final = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with the default system turn, as Qwen2 has it."""
_HEAD_STD: Final = 0.08
"""Larger than usual, so that a few steps of a toy run change something."""


def files_of(recipe: Recipe) -> ModelFiles:
    """Where the files of a recipe's toy model are; both arms of a pair share them."""
    model = _model(recipe)
    root = TOY.folder(recipe).root
    return ModelFiles(
        root / "language_model",
        root / "vision_tower",
        root / "projector" / "mm_projector.safetensors",
        model.projector_type,
        image_aspect_ratio=model.image_aspect_ratio,
        max_length=model.max_length,
    )


def train_tokenizer(texts: list[str], vocabulary: int, max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, split as GPT-2's, with Qwen2's three special tokens behind its entries."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL) - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sorted(set(texts)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=[SPECIAL[1]],
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _make_language_model(model: TinyVideoLLaMA2Model, data: DataSet, folder: Path) -> None:
    texts = [turn.text for sample in data.samples for turn in sample.turns]
    tokenizer = train_tokenizer(texts, model.vocabulary, model.max_length)
    config = Qwen2Config(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden,
        intermediate_size=2 * model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=max(1, model.heads // 2),
        initializer_range=_HEAD_STD,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def _make_tower(model: TinyVideoLLaMA2Model, data: DataSet, folder: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=model.tower_hidden,
        intermediate_size=2 * model.tower_hidden,
        num_hidden_layers=model.tower_layers,
        num_attention_heads=2,
        image_size=TOY_SIZE,
        patch_size=model.patch,
    )
    SiglipVisionModel(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": TOY_SIZE, "width": TOY_SIZE},
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")


def _make_projector(model: TinyVideoLLaMA2Model, data: DataSet, folder: Path) -> None:
    state = make_connector(model.projector_type, model.tower_hidden, model.hidden).state_dict()
    tensors = {PROJECTOR + name: value.contiguous() for name, value in state.items()}
    save_file(tensors, folder / "mm_projector.safetensors")


def _model(recipe: Recipe) -> TinyVideoLLaMA2Model:
    assert isinstance(recipe.model, TinyVideoLLaMA2Model)
    return recipe.model


def _check_sizes(recipe: Recipe) -> None:
    model = _model(recipe)
    if model.hidden % (2 * model.heads) or model.tower_hidden % 2:
        raise RecipeError(
            f"model.heads {model.heads} does not divide model.hidden {model.hidden} into heads of an even size, or "
            f"model.tower_hidden {model.tower_hidden} is odd"
        )
    try:
        visual_tokens(model.projector_type, recipe.data.frames, TOY_SIZE // model.patch)
    except ValueError as error:
        raise RecipeError(f"model.patch {model.patch}: {error}") from None


TOY: Final = Toy(
    "tiny-videollama2",
    SCHEMA,
    {
    "language_model": _make_language_model,
    "vision_tower": _make_tower,
    "projector": _make_projector,
},
    _check_sizes,
)
