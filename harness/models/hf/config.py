"""The configuration of a checkpoint of transformers: read, and refused where it contradicts the tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from transformers import AutoConfig

from harness.common.errors import EnvironmentProblem
from harness.config.weight_files import read_settings
from harness.models.hf.internvl import weights as internvl
from harness.models.hf.internvl.config import PUBLISHED

if TYPE_CHECKING:
    from pathlib import Path

_SCALED: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


def read_config(folder: Path) -> Any:
    """transformers' configuration of the checkpoint.

    Raises:
        EnvironmentProblem: there is none, or transformers does not know the model.
    """
    if internvl.is_published(folder):
        return internvl.read_config(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(
            f"{folder}: no configuration of a model that transformers knows: {first}",
            hint="models that bring code of their own are not loaded",
        ) from None
    text = config.get_text_config()
    for name in _SCALED:
        value = getattr(text, name, None)
        if isinstance(value, int | float) and value not in (0, 1):
            raise EnvironmentProblem(f"{folder}: its logits are changed behind the head ({name} = {value})")
    return config


def is_internvl(folder: Path) -> bool:
    """Whether the folder holds an InternVL, in its publishers' form or in transformers'."""
    try:
        written = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("model_type") in ("internvl", PUBLISHED)


def visual_ids(config: Any, processor: Any, where: str) -> tuple[int, ...]:
    """Token ids of visual positions: of pictures, then of videos where the model has another one.

    Raises:
        EnvironmentProblem: configuration and tokenizer differ, or the configuration names none.
    """
    ids: list[int] = []
    for kind in ("image", "video"):
        stated = getattr(config, f"{kind}_token_id", None)
        if stated is None:
            continue
        own = getattr(processor, f"{kind}_token_id", None)
        if own is not None and int(own) != int(stated):
            raise EnvironmentProblem(
                f"{where}: config.json says that {kind}_token_id is {stated}, the tokenizer that it is {own}",
                hint="the configuration or the tokenizer is another model's",
            )
        ids.append(int(stated))
    if not ids:
        raise EnvironmentProblem(f"{where}: config.json names no image_token_id")
    return tuple(dict.fromkeys(ids))


def check_typed(config: Any, processor: Any, where: str) -> None:
    """A model with positions of three axes is told which positions are visual.

    Raises:
        EnvironmentProblem: its processor does not say so; some models then count positions as in text, silently.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if "mrope_section" in rope and not getattr(processor, "return_mm_token_type_ids", False):
        raise EnvironmentProblem(
            f"{where}: {type(processor).__name__} does not give mm_token_type_ids, and the model's positions have "
            "three axes",
            hint="the processor is another model's, or its settings turn return_mm_token_type_ids off",
        )


def check_tied(folder: Path, config: Any, head_and_embedding_shared: bool) -> None:
    """The head is tied to the embedding exactly where the checkpoint says so.

    Raises:
        EnvironmentProblem: it is not.
    """
    written = read_settings(folder / "config.json")
    stated = written.get("tie_word_embeddings", written.get("text_config", {}).get("tie_word_embeddings"))
    if stated is not None and bool(stated) != head_and_embedding_shared:
        tied = "tied" if head_and_embedding_shared else "not tied"
        raise EnvironmentProblem(
            f"{folder}: config.json says tie_word_embeddings is {stated}, and the loaded head is {tied}"
        )
