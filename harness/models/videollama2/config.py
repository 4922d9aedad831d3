"""The configuration of VideoLLaMA2: nested in transformers' way, flat on disk as the official checkpoints have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from harness.common.errors import EnvironmentProblem
from harness.config.weight_files import read_settings
from harness.models.videollama2.sizes import CONNECTORS, TOWERS, visual_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILY: Final = "videollama2_"
LANGUAGE_MODELS: Final = {"qwen2": "Qwen2", "mistral": "Mistral"}
"""Decoders by transformers' model_type, and how the official class names write them."""
OFFICIAL_PLACEHOLDER: Final = -201
"""The official code's id of `<video>`; outside every vocabulary."""
_FLAT: Final = (
    "mm_vision_tower",
    "mm_projector_type",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "num_frames",
    "image_aspect_ratio",
    "tokenizer_model_max_length",
    "placeholder_token_id",
)
"""Keys of the flat file that are fields of the configuration itself."""
_OTHER: Final = ("mm_", "tune_mm", "freeze_mm", "use_mm", "tokenizer_")
"""Beginnings of the official keys that only the official training script reads; kept and written back."""


class VideoLLaMA2Config(PreTrainedConfig):  # type: ignore[misc]
    """Tower, connector and decoder.

    Attributes:
        mm_vision_tower: name of the tower, for the official code; `vision_config` is what counts here.
        mm_vision_select_layer: index into the tower's hidden states; -2 is the output of the last layer but one.
        num_frames: frames of a clip, and how often an image is repeated.
        placeholder_token_id: stands at each visual position in input_ids; may lie outside the vocabulary.
        official: further keys of the official file.
    """

    model_type = "videollama2_qwen2"
    sub_configs_defaults = {  # noqa: RUF012 - a ClassVar of transformers
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    mm_vision_tower: str = "google/siglip-so400m-patch14-384"
    mm_projector_type: str = "stc_connector_v35"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    num_frames: int = 16
    image_aspect_ratio: str | None = "pad"
    tokenizer_model_max_length: int = 2048
    placeholder_token_id: int = OFFICIAL_PLACEHOLDER
    official: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side of a frame."""
        vision: Any = self.vision_config
        return int(vision.image_size // vision.patch_size)

    @property
    def visual_tokens(self) -> int:
        """Q, of one clip or image."""
        return visual_tokens(self.mm_projector_type, self.num_frames, self.grid)

    @property
    def tower_layers(self) -> int:
        """How many layers of the tower are computed."""
        layers = int(self.vision_config.num_hidden_layers)  # type: ignore[union-attr]
        chosen = self.mm_vision_select_layer
        return chosen if chosen >= 0 else layers + 1 + chosen

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both forms are read: the flat one of the official checkpoints and the nested one."""
        stored, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if stored and "text_config" not in stored:
            stored = nested(stored, Path(pretrained_model_name_or_path))
        return stored, rest

    def to_json_string(self, use_diff: bool = True) -> str:
        """The flat form, so that the official code reads what is saved."""
        return json.dumps(self.flat(), indent=2, sort_keys=True) + "\n"

    def flat(self) -> dict[str, Any]:
        """The official form, with the tower's sizes beside it under `vision_config`."""
        text = {**self.text_config.to_diff_dict()}  # type: ignore[union-attr]
        decoder = text.pop("model_type")
        rope = text.pop("rope_parameters", None) or {}
        text["rope_theta"] = rope.get("rope_theta", 10000.0)
        if rope.get("rope_type", "default") != "default":
            text["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
        for key in ("dtype", "layer_types", "architectures"):
            text.pop(key, None)
        vision = self.vision_config.to_diff_dict()  # type: ignore[union-attr]
        whole = {
            **text,
            **(self.official or {}),
            **{key: getattr(self, key) for key in _FLAT},
            "architectures": [f"Videollama2{LANGUAGE_MODELS[decoder]}ForCausalLM"],
            "model_type": FAMILY + decoder,
            "mm_hidden_size": vision["hidden_size"],
            "tie_word_embeddings": self.tie_word_embeddings,
            "vision_config": {key: value for key, value in vision.items() if key != "transformers_version"},
        }
        if self.dtype is not None:
            whole["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        return whole


def nested(flat: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration's own fields from the official flat form.

    Raises:
        EnvironmentProblem: it is no VideoLLaMA2, its tower is not known, or its sizes contradict each other.
    """
    decoder = str(flat.get("model_type", "")).removeprefix(FAMILY)
    if decoder not in LANGUAGE_MODELS:
        known = ", ".join(FAMILY + name for name in LANGUAGE_MODELS)
        raise EnvironmentProblem(f"{folder}: model_type is {flat.get('model_type')!r}; known are {known}")
    own = {key: flat[key] for key in _FLAT if key in flat}
    vision = flat.get("vision_config") or tower_config(str(flat.get("mm_vision_tower")), folder)
    if flat.get("mm_hidden_size", vision["hidden_size"]) != vision["hidden_size"]:
        raise EnvironmentProblem(
            f"{folder}: mm_hidden_size is {flat['mm_hidden_size']}, its tower {flat.get('mm_vision_tower')} has "
            f"{vision['hidden_size']}"
        )
    check_choices(own, str(folder))
    taken = {*_FLAT, "vision_config", "mm_hidden_size", "model_type", "architectures", "torch_dtype", "dtype"}
    rest = {key: value for key, value in flat.items() if key not in taken}
    other = {key: value for key, value in rest.items() if key.startswith(_OTHER)}
    text = {key: value for key, value in rest.items() if key not in other}
    dtype = flat.get("dtype", flat.get("torch_dtype"))
    return {
        **own,
        **({"dtype": dtype} if dtype else {}),
        "tie_word_embeddings": flat.get("tie_word_embeddings", False),
        "official": other,
        "vision_config": dict(vision),
        "text_config": {**text, "model_type": decoder},
    }


def check_choices(fields: Mapping[str, Any], where: str) -> None:
    """Refuse connectors and features that this code does not have.

    Raises:
        EnvironmentProblem: with those that it has.
    """
    kind = fields.get("mm_projector_type", "stc_connector_v35")
    if kind not in CONNECTORS:
        raise EnvironmentProblem(f"{where}: mm_projector_type is {kind!r}; known are {', '.join(CONNECTORS)}")
    feature = fields.get("mm_vision_select_feature", "patch")
    if feature != "patch":
        raise EnvironmentProblem(f"{where}: mm_vision_select_feature is {feature!r}; only 'patch' is known")


def tower_config(name: str, folder: Path | None = None) -> dict[str, Any]:
    """The sizes of a vision tower: of a folder with a config.json, or of one of the two official towers.

    Args:
        folder: where a relative name is looked for.

    Raises:
        EnvironmentProblem: it is neither.
    """
    place = Path(name) if folder is None else folder / name
    if (place / "config.json").is_file():
        stored: dict[str, Any] = read_settings(place / "config.json")
        if "vision_config" in stored:  # the config of a whole CLIP or SigLIP
            stored = {**stored["vision_config"], "model_type": f"{stored['model_type']}_vision_model"}
        if stored.get("model_type") not in ("siglip_vision_model", "clip_vision_model"):
            raise EnvironmentProblem(f"{place}: a SigLIP or CLIP tower is expected, not {stored.get('model_type')!r}")
        return stored
    known = TOWERS.get(Path(name).name)
    if known is None:
        raise EnvironmentProblem(
            f"vision tower {name!r}: no config.json at {place}, and it is none of {', '.join(TOWERS)}",
            hint="put the tower's folder there",
        )
    return dict(known)
