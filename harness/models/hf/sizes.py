"""Sizes of models of transformers from a recipe alone, and floating-point operations of a vision side. No torch.

A multiply-add counts two. Norms and element-wise work are left out, as in the usual counts. Attention is counted over
a whole picture; towers that attend in windows do less.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import RecipeError
from harness.config.model import HFModel, TinyHFModel
from harness.models.footprint import Footprint, Part, footprint, layer_parameters, transformer_block

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.config.recipe import Recipe


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """What a vision side is made of.

    Attributes:
        tower_weights: of the tower's matrices that every patch meets.
        tower_hidden, tower_layers: of its attention.
        projector_weights: (weights, patches that share a row) of each matrix behind the tower.
    """

    tower_weights: int
    tower_hidden: int
    tower_layers: int
    projector_weights: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class VisionFlops:
    """Forward pass of a sample's pictures."""

    tower: float
    projector: float

    @property
    def forward(self) -> float:
        return self.tower + self.projector

    def backward_ratio(self, *, tower: bool, projector: bool) -> float:
        """Backward FLOPs over forward ones; both gradients where a part is trained, none below the lowest one."""
        work = (2 * self.tower if tower else 0.0) + (2 * self.projector if tower or projector else 0.0)
        return work / self.forward


def vision_flops(sizes: VisionSizes, patches: int, pictures: int) -> VisionFlops:
    """Forward pass over the patches of a sample.

    Args:
        pictures: among which attention is apart: frames, tiles.
    """
    linear = 2.0 * sizes.tower_weights * patches
    attention = 4.0 * sizes.tower_layers * sizes.tower_hidden * patches * (patches / max(1, pictures))
    projector = sum(2.0 * weights * patches / shared for weights, shared in sizes.projector_weights)
    return VisionFlops(linear + attention, projector)


# --- a recipe's model, before anything of it is there -----------------------------------------------------

_SIDE: Final = 448
"""Pixels along a side of a frame, where the data do not say."""
PROMPT: Final = 40
TARGETS: Final = 280
"""As for VideoLLaMA2, on whose conversations the recipes train."""

PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "InternVL3_5-8B": {
        "model_type": "internvl",
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": [448, 448],
            "patch_size": [14, 14],
        },
        "text_config": {
            "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
    },
    "InternVL3_5-14B": {
        "model_type": "internvl",
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": [448, 448],
            "patch_size": [14, 14],
        },
        "text_config": {
            "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        },
    },
    "Qwen2.5-VL-7B-Instruct": {
        "model_type": "qwen2_5_vl",
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14},
        "text_config": {
            "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944,
            "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        },
    },
    "Qwen2.5-VL-3B-Instruct": {
        "model_type": "qwen2_5_vl",
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14},
        "text_config": {
            "model_type": "qwen2_5_vl_text", "hidden_size": 2048, "intermediate_size": 11008,
            "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    },
    "Qwen3-VL-8B-Instruct": {
        "model_type": "qwen3_vl",
        "vision_config": {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
        },
        "text_config": {
            "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288,
            "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
            "vocab_size": 151936,
        },
    },
    "llava-onevision-qwen2-7b-ov-hf": {
        "model_type": "llava_onevision",
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "image_size": 384,
            "patch_size": 14,
        },
        "text_config": {
            "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        },
    },
    "SmolVLM2-500M-Video-Instruct": {
        "model_type": "smolvlm",
        "scale_factor": 4,
        "vision_config": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 512,
            "patch_size": 16,
        },
        "text_config": {
            "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
            "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
        },
    },
}  # fmt: skip
"""Fields of the config.json of published checkpoints, by the repository's name."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A vision side by the fields of its config.json.

    Attributes:
        width, inner, layers: of the tower.
        hidden: of the decoder.
        patch: pixels along a side.
        side: patches along a side of a picture of fixed size; 0 where the size is free.
    """

    fields: Mapping[str, Any]
    hidden: int

    @property
    def vision(self) -> Mapping[str, Any]:
        vision: Mapping[str, Any] = self.fields["vision_config"]
        return vision

    @property
    def width(self) -> int:
        return int(self.vision["hidden_size"])

    @property
    def inner(self) -> int:
        return int(self.vision["intermediate_size"])

    @property
    def layers(self) -> int:
        return int(self.vision.get("num_hidden_layers") or self.vision["depth"])

    @property
    def patch(self) -> int:
        return _first(self.vision["patch_size"])

    @property
    def side(self) -> int:
        return _first(self.vision["image_size"]) // self.patch

    @property
    def entry(self) -> int:
        """Weights that make a patch a row, without bias."""
        return 3 * self.patch**2 * self.width

    @property
    def block(self) -> int:
        return transformer_block(self.width, self.inner)


def _first(value: Any) -> int:
    return int(value[0] if isinstance(value, list | tuple) else value)


def _mlp(before: int, inner: int, after: int) -> int:
    return before * inner + inner + inner * after + after


@dataclass(frozen=True, slots=True)
class VisionFamily:
    """A family's vision side by its sizes.

    Attributes:
        tower, projector: parameters.
        tokens: visual tokens of a clip of so many frames with so many pixels along a side.
        patches: that the tower reads of such a clip.
        reads: patches that share a row of the projector.
    """

    tower: Callable[[Plain], int]
    projector: Callable[[Plain], int]
    tokens: Callable[[Plain, int, int], int]
    patches: Callable[[Plain, int, int], int]
    reads: Callable[[Plain], float]


def _fixed(plain: Plain, frames: int, side: int) -> int:
    return frames * plain.side**2


def _free(merge: int, frames_a_row: int = 1) -> Callable[[Plain, int, int], int]:
    def patches(plain: Plain, frames: int, side: int) -> int:
        along = max(1, round(side / (plain.patch * merge))) * merge
        return -(-frames // frames_a_row) * along**2

    return patches


def _qwen2_5_tower(plain: Plain) -> int:
    width, inner = plain.width, plain.inner
    block = 2 * width + 4 * (width**2 + width) + 3 * width * inner + 2 * inner + width
    return 2 * plain.entry + plain.layers * block


def _qwen3_projector(plain: Plain) -> int:
    wide = 4 * plain.width
    deep = len(plain.vision["deepstack_visual_indexes"])
    return 2 * plain.width + _mlp(wide, wide, plain.hidden) + deep * (2 * wide + _mlp(wide, wide, plain.hidden))


def _siglip_tower(plain: Plain) -> int:
    return plain.entry + plain.width + plain.side**2 * plain.width + plain.layers * plain.block + 2 * plain.width


_FREE = _free(2)
_PAIRS = _free(2, 2)
FAMILIES: Final[Mapping[str, VisionFamily]] = {
    "internvl": VisionFamily(
        tower=lambda p: p.entry + p.width + (p.side**2 + 2) * p.width + p.layers * (p.block + 2 * p.width),
        projector=lambda p: 8 * p.width + _mlp(4 * p.width, p.hidden, p.hidden),
        tokens=lambda p, frames, side: _fixed(p, frames, side) // 4,
        patches=_fixed,
        reads=lambda p: 4,
    ),
    "llava_onevision": VisionFamily(
        tower=_siglip_tower,
        projector=lambda p: _mlp(p.width, p.hidden, p.hidden) + p.hidden,
        tokens=lambda p, frames, side: frames * (-(-p.side // 2)) ** 2 + 1,
        patches=_fixed,
        reads=lambda p: 1,
    ),
    "llava_next_video": VisionFamily(
        tower=lambda p: p.entry + (p.side**2 + 2) * p.width + p.layers * p.block + 4 * p.width,
        projector=lambda p: _mlp(p.width, p.hidden, p.hidden) + p.hidden,
        tokens=lambda p, frames, side: _fixed(p, frames, side) // 4,
        patches=_fixed,
        reads=lambda p: 1,
    ),
    "smolvlm": VisionFamily(
        tower=_siglip_tower,
        projector=lambda p: p.width * int(p.fields["scale_factor"]) ** 2 * p.hidden,
        tokens=lambda p, frames, side: _fixed(p, frames, side) // int(p.fields["scale_factor"]) ** 2,
        patches=_fixed,
        reads=lambda p: int(p.fields["scale_factor"]) ** 2,
    ),
    "qwen2_5_vl": VisionFamily(
        tower=_qwen2_5_tower,
        projector=lambda p: p.width + _mlp(4 * p.width, 4 * p.width, p.hidden),
        tokens=lambda p, frames, side: _PAIRS(p, frames, side) // 4,
        patches=_PAIRS,
        reads=lambda p: 4,
    ),
    "qwen3_vl": VisionFamily(
        tower=lambda p: (
            2 * p.entry + p.width + int(p.vision["num_position_embeddings"]) * p.width + p.layers * p.block
        ),
        projector=_qwen3_projector,
        tokens=lambda p, frames, side: _PAIRS(p, frames, side) // 4,
        patches=_PAIRS,
        reads=lambda p: 4,
    ),
    "video_llama_3": VisionFamily(
        tower=lambda p: p.entry + p.width + p.layers * p.block + 2 * p.width,
        projector=lambda p: _mlp(p.width, p.hidden, p.hidden),
        tokens=lambda p, frames, side: _FREE(p, frames, side) // 4,
        patches=_FREE,
        reads=lambda p: 4,
    ),
}
"""By the model_type of config.json."""


def footprint_of(recipe: Recipe) -> Footprint:
    """Of a recipe's model.

    Raises:
        RecipeError: its files are not there, and neither they nor its family are known by name.
    """
    model = recipe.model
    assert isinstance(model, HFModel | TinyHFModel)
    fields, sources = _fields(recipe)
    family = FAMILIES.get(fields["model_type"])
    if family is None:
        raise RecipeError(
            f"{recipe.name}: the sizes of a {fields['model_type']} are not known before it is loaded",
            hint=f"known are {', '.join(FAMILIES)}",
        )
    text = fields["text_config"]
    plain = Plain(fields, int(text["hidden_size"]))
    side = getattr(recipe.data, "size", _SIDE)
    frames = recipe.data.frames
    tokens, patches = family.tokens(plain, frames, side), family.patches(plain, frames, side)
    sizes = VisionSizes(
        family.tower(plain), plain.width, plain.layers, ((family.projector(plain), family.reads(plain)),)
    )
    work = vision_flops(sizes, patches, frames)
    through = model.tower.train or model.projector.train
    block_keeps = plain.layers * patches * (8 * plain.width + 2 * plain.inner)
    parts = (
        Part(
            "vision tower",
            family.tower(plain),
            trained=model.tower.train,
            forward=work.tower,
            backward=2 * work.tower if model.tower.train else 0.0,
            kept=block_keeps if model.tower.train else 0,
        ),
        Part(
            "projector",
            family.projector(plain),
            trained=model.projector.train,
            forward=work.projector,
            backward=2 * work.projector if through else 0.0,
            kept=tokens * (4 * plain.width + 2 * plain.hidden) if through else 0,
        ),
    )
    adapters = 0 if model.lora is None else model.lora.rank * _lora_width(text)
    whole = footprint(
        {**text, "tie_word_embeddings": text.get("tie_word_embeddings", fields.get("tie_word_embeddings", False))},
        parts,
        visual_tokens=tokens,
        side=side,
        prompt=PROMPT,
        targets=TARGETS,
        sources=sources,
        adapters=adapters,
    )
    return replace(whole, layer_parameters=_layer_parameters(whole, text["model_type"]))


def _layer_parameters(whole: Footprint, kind: str) -> int:
    """With the biases of Qwen2's attention, and the norms of Qwen3's queries and keys."""
    plain = layer_parameters(whole.decoder, biases=kind.startswith("qwen2"))
    return plain + (2 * whole.decoder.head_dim if kind.startswith("qwen3") else 0)


def _lora_width(text: Mapping[str, Any]) -> int:
    """Inputs and outputs of all linear layers of the decoder."""
    hidden, inner, heads = (int(text[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = int(text.get("head_dim") or hidden // heads)
    queries, keys = heads * head, int(text["num_key_value_heads"]) * head
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)
    return int(text["num_hidden_layers"]) * (attention + 3 * (hidden + inner))


def _fields(recipe: Recipe) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    model = recipe.model
    if isinstance(model, TinyHFModel):
        return toy_fields(model), ("sizes of the recipe",)
    assert isinstance(model, HFModel)
    name = Path(model.checkpoint).name
    path = Path(recipe.paths.weights) / model.checkpoint / "config.json"
    if path.is_file():
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "text_config" not in fields:  # older Qwen2.5-VL keep the decoder's fields at the top
            fields["text_config"] = {**fields, "model_type": f"{fields['model_type']}_text"}
        return fields, (f"sizes of {path}",)
    if name not in PUBLISHED:
        raise RecipeError(
            f"{recipe.name}: {path} is not there, and no published sizes are known of {name}",
            hint=f"known are {', '.join(PUBLISHED)}",
        )
    return PUBLISHED[name], (f"sizes of {name} as published ({path} is not there)",)


TILE: Final = 32
"""Pixels along a side of a picture that a toy tower of fixed size reads."""
PATCH: Final = 8


def toy_fields(model: TinyHFModel) -> dict[str, Any]:
    """What config.json of a toy model holds of these sizes."""
    text_type = {
        "internvl": "qwen3", "qwen2_5_vl": "qwen2_5_vl_text", "qwen3_vl": "qwen3_vl_text",
        "llava_onevision": "qwen2", "video_llama_3": "qwen2",
    }.get(model.family, "llama")  # fmt: skip
    return {
        "model_type": model.family,
        "scale_factor": 2,
        "vision_config": {
            "hidden_size": model.tower_hidden,
            "intermediate_size": 2 * model.tower_hidden,
            "num_hidden_layers": model.tower_layers,
            "image_size": TILE,
            "patch_size": PATCH,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": list(range(min(model.layers, model.tower_layers))),
        },
        "text_config": {
            "model_type": text_type,
            "hidden_size": model.hidden,
            "intermediate_size": 2 * model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": max(1, model.heads // 2),
            "head_dim": model.hidden // model.heads,
            "vocab_size": model.vocabulary,
        },
    }
