"""InternVL's published checkpoints (`-Pretrained`, `-Instruct`) as transformers' model and processor, and back.

They bring code of their own, which is never run: their tensors are renamed, their configuration translated, and their
tokenizer is given the names that transformers' processor looks for.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessor,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen3Config,
)

from harness.common.errors import EnvironmentProblem
from harness.config.weight_files import read_settings
from harness.models.checkpoint_files import check_loaded, read_folder
from harness.models.hf.internvl import checkpoint_names, config
from harness.models.hf.internvl.chat import END, START, TEMPLATE
from harness.models.hf.internvl.image_processing import IMAGENET

if TYPE_CHECKING:
    from pathlib import Path

NAMED_TOKENS: Final = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Special tokens by the names that transformers' processor asks the tokenizer for. Only the last is not published: it
stands for a video until its frames do, and never reaches the model."""


def is_published(folder: Path) -> bool:
    """Whether the folder holds a checkpoint in the form of InternVL's publishers."""
    try:
        written = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("model_type") == config.PUBLISHED


def read_config(folder: Path) -> Any:
    """transformers' configuration of a published checkpoint.

    Raises:
        EnvironmentProblem: it cannot be translated, and the field is named; or the tokenizer is another model's.
    """
    translated, _ = _read(folder)
    return translated


def load_processor(folder: Path) -> Any:
    """transformers' processor of a published checkpoint, which has none of its own.

    Raises:
        EnvironmentProblem: configuration or tokenizer are not those of InternVL3.5.
    """
    written = read_settings(folder / "config.json")
    size, most, least = config.tiles_stated(written, str(folder))
    translated, _ = _read(folder)
    square = {"height": size, "width": size}
    colours = {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}
    image = GotOcr2ImageProcessor(
        size=square, crop_to_patches=True, min_patches=least, max_patches=most, **colours
    )
    video = InternVLVideoProcessor(size=square, **colours)
    tokens = translated.image_seq_length
    tokenizer = _tokenizer(folder, extra_special_tokens=dict(NAMED_TOKENS))
    return InternVLProcessor(image, tokenizer, video, image_seq_length=tokens, chat_template=TEMPLATE)


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    """A published checkpoint in transformers' class; every tensor is accounted for.

    Raises:
        EnvironmentProblem: naming the tensors that are missing, too many or of another shape; or a head that is not
            the embedding where the configuration says so.
    """
    translated, tokenizer = _read(folder)
    state = read_folder(folder)
    tied = bool(translated.tie_word_embeddings)
    if tied and checkpoint_names.HEAD in state:
        head = state.pop(checkpoint_names.HEAD)
        embedding = state.get(checkpoint_names.EMBEDDING)
        if embedding is None or not torch.equal(head, embedding):
            raise EnvironmentProblem(
                f"{folder}: config.json says tie_word_embeddings is true, and the head differs from the embedding"
            )
    ours = shapes_of(translated)
    renamed = checkpoint_names.to_transformers(state, ours, str(folder))
    del state
    model, loading = InternVLForConditionalGeneration.from_pretrained(
        None, config=translated, state_dict=renamed, dtype=dtype, output_loading_info=True
    )
    check_loaded(str(folder), loading)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    return model


def shapes_of(translated: Any) -> dict[str, torch.Size]:
    """Names and shapes of a configuration's tensors in transformers; a tied head is not among them."""
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(translated)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if translated.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def save_published(model: Any, processor: Any, directory: Path) -> None:
    """Write a checkpoint in the form of InternVL's publishers, for whoever runs their code.

    Args:
        model: transformers' InternVL over Qwen3.
        processor: its `InternVLProcessor`.

    Raises:
        EnvironmentProblem: it is another model.
    """
    image = processor.image_processor
    written = config.to_official(model.config, image.max_patches, image.min_patches)
    written["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    state = checkpoint_names.to_official(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop(checkpoint_names.HEAD, None)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in state.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    processor.tokenizer.save_pretrained(str(directory))


def _read(folder: Path) -> tuple[Any, Any]:
    """The translated configuration, and the tokenizer as it is published.

    Raises:
        EnvironmentProblem: as `read_config`.
    """
    written = read_settings(folder / "config.json")
    tokenizer = _tokenizer(folder)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    published = [*(token for name, token in NAMED_TOKENS.items() if name != "video_token"), START, END]
    unknown = [token for token in published if token not in vocabulary]
    if unknown:
        raise EnvironmentProblem(
            f"{folder}: its tokenizer does not know {', '.join(unknown)}", hint="it is the tokenizer of another model"
        )
    translated = config.from_official(written, vocabulary[NAMED_TOKENS["context_image_token"]], str(folder))
    rows, largest = translated.text_config.vocab_size, max(vocabulary.values())
    if largest >= rows:
        raise EnvironmentProblem(
            f"{folder}: its tokenizer has the id {largest}, and config.json {rows} rows of embeddings"
        )
    return translated, tokenizer


def _tokenizer(folder: Path, **further: Any) -> Any:
    try:
        # With a configuration of the decoder, transformers does not look for a class of the published model's.
        return AutoTokenizer.from_pretrained(folder, config=Qwen3Config(), trust_remote_code=False, **further)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"{folder}: its tokenizer cannot be read: {first}") from None
