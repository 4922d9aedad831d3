"""VideoChat2 at toy size: a Mistral with its tokenizer and the files of stages 1 and 2, weights generated.

They are stored as their publishers store them, so that a run on them goes the whole way of a run on published
weights. The weights are drawn, not trained: such a run tests the path, not the method.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from harness.common.errors import RecipeError
from harness.config.model import TinyVideoChat2Model
from harness.models.artifacts import Toy
from harness.models.videochat2 import checkpoint_names as names
from harness.models.videochat2.config import UMTConfig, VideoChat2Config
from harness.models.videochat2.conversation import training_conversation
from harness.models.videochat2.model import VideoChat2ForConditionalGeneration
from harness.models.videochat2.sizes import TOY_SIZE, TOY_WORDS
from harness.models.videochat2.weights import Lora, ModelFiles

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet

SCHEMA: Final = 1
VISION_HEADS: Final = 2
QFORMER_HEADS: Final = 2
SPECIAL: Final = ("<unk>", "<s>", "</s>")
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_SPACE: Final = "\u2581"
_HEAD_STD: Final = 0.08
"""Larger than usual, so that a few steps of a toy run change something."""


def files_of(recipe: Recipe) -> ModelFiles:
    """Where the files of a recipe's toy model are; both arms of a pair share them."""
    model = _model(recipe)
    root = TOY.folder(recipe).root
    vision = root / "vision"
    return ModelFiles(
        root / "language_model",
        vision,
        vision / "umt_l16_qformer.safetensors",
        vision / "videochat2_mistral_7b_stage2.safetensors",
        lora=Lora(model.lora.rank, model.lora.alpha, model.lora.dropout),
        bos_as_ones=model.bos_as_ones,
        vision_heads=VISION_HEADS,
        image_size=TOY_SIZE,
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer like Mistral's: spaces become a letter of their own, no split before the merges, and bytes for
    what no entry holds."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = _spaces()
    trained.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")  # so that no entry spans two words
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL) - len(bytes_), initial_alphabet=[_SPACE], show_progress=False
    )
    trained.train_from_iterator(sorted(set(texts)), trainer)
    learned = json.loads(trained.to_str())["model"]
    entries = sorted(learned["vocab"], key=lambda entry: int(learned["vocab"][entry]))
    vocab = {entry: place for place, entry in enumerate([*SPECIAL, *bytes_, *entries])}
    merges = [tuple(merge) for merge in learned["merges"]]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token=SPECIAL[0], byte_fallback=True, fuse_unk=True))
    backend.normalizer = _spaces()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([AddedToken(entry, normalized=False, special=True) for entry in SPECIAL])
    unknown, begin, end = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        clean_up_tokenization_spaces=False,
    )


def _spaces() -> Any:
    return normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])


def _make_language_model(model: TinyVideoChat2Model, data: DataSet, folder: Path) -> None:
    conversations = [training_conversation(sample, data.frames) for sample in data.samples]
    texts = [text for spoken in conversations for text in (spoken.before, spoken.after)]
    tokenizer = train_tokenizer(texts, model.vocabulary)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden,
        intermediate_size=2 * model.hidden,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=max(1, model.heads // 2),
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=None,
        initializer_range=_HEAD_STD,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def _make_vision(model: TinyVideoChat2Model, data: DataSet, folder: Path) -> None:
    """What stages 1 and 2 leave, and BERT's folder: words and sizes of the QFormer."""
    instructions = [turn.text for sample in data.samples for turn in sample.turns if turn.role == "system"]
    words = sorted({word for text in instructions for word in text.lower().split() if word.isalpha()})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *".,?!()", *(f"##{c}" for c in LETTERS)]
    entries = list(dict.fromkeys([*entries, *words]))
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}\n')
    bert = {
        "model_type": "bert",
        "hidden_size": model.qformer_hidden,
        "intermediate_size": 2 * model.qformer_hidden,
        "num_hidden_layers": model.qformer_layers,
        "num_attention_heads": QFORMER_HEADS,
        "max_position_embeddings": TOY_WORDS,
        "vocab_size": len(entries),
        "layer_norm_eps": 1e-12,
    }
    (folder / "config.json").write_text(json.dumps(bert, indent=1) + "\n")
    config = VideoChat2Config(
        vision_config=UMTConfig(
            hidden_size=model.vision_hidden,
            intermediate_size=2 * model.vision_hidden,
            num_hidden_layers=model.vision_layers,
            num_attention_heads=VISION_HEADS,
            image_size=TOY_SIZE,
            patch_size=model.patch,
        ).to_dict(),
        qformer_config={**bert, "vocab_size": len(entries) + 1, "encoder_hidden_size": model.vision_hidden}
        | {"model_type": "instructblipvideo_qformer"},
        text_config={"model_type": "mistral", "hidden_size": model.hidden, "num_hidden_layers": 1}
        | {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 1, "vocab_size": 8},
        num_query_tokens=model.queries,
        num_extra_query_tokens=model.queries,
    )
    drawn = VideoChat2ForConditionalGeneration(config).state_dict()
    state = {names.official_name(name): value.contiguous() for name, value in drawn.items()}
    vision = {name: value for name, value in state.items() if not name.startswith(names.BASE)}
    later = {name: value for name, value in vision.items() if not names.TEXT_HALF.match(name)}
    first = {
        name: value
        for name, value in vision.items()
        if name.split(".")[0] not in ("mistral_proj", "extra_query_tokens")
    }
    save_file(first, folder / "umt_l16_qformer.safetensors", metadata={"format": "pt"})
    save_file(later, folder / "videochat2_mistral_7b_stage2.safetensors", metadata={"format": "pt"})


def _model(recipe: Recipe) -> TinyVideoChat2Model:
    assert isinstance(recipe.model, TinyVideoChat2Model)
    return recipe.model


def _check_sizes(recipe: Recipe) -> None:
    model = _model(recipe)
    if model.hidden % (2 * model.heads):
        raise RecipeError(
            f"model.heads {model.heads} does not divide model.hidden {model.hidden} into heads of an even size"
        )
    if TOY_SIZE % model.patch:
        raise RecipeError(f"model.patch {model.patch} does not divide the picture's {TOY_SIZE} pixels")
    for name, heads in (("vision_hidden", VISION_HEADS), ("qformer_hidden", QFORMER_HEADS)):
        if getattr(model, name) % heads:
            raise RecipeError(f"model.{name} {getattr(model, name)} is odd")


TOY: Final = Toy(
    "tiny-videochat2",
    SCHEMA,
    {"language_model": _make_language_model, "vision": _make_vision},
    _check_sizes,
)
