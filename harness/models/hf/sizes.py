"""Sizes of models of transformers from a recipe alone, and floating-point operations of a vision side. No torch.

A multiply-add counts two. Norms and element-wise work are left out, as in the usual counts. Windows of a tower are
counted as full; at the rim of a picture they are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import RecipeError
from harness.config.model import HFModel, TinyHFModel
from harness.config.weight_files import read_settings
from harness.models.footprint import Footprint, Part, footprint, layer_parameters, transformer_block

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from harness.config.recipe import Recipe


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """What a vision side is made of.

    Attributes:
        entry_weights: of what makes a patch a row.
        layer_weights: of the matrices of all layers of the tower.
        hidden, layers: of the tower's attention.
        projector_weights: (weights, patches that share a row) of each matrix behind the tower.
        class_tokens: rows of a picture beside its patches.
        windowed: layers that attend within windows of `window` patches; the others over a whole picture.
    """

    entry_weights: int
    layer_weights: int
    hidden: int
    layers: int
    projector_weights: tuple[tuple[int, float], ...]
    class_tokens: int = 0
    windowed: int = 0
    window: int = 0


@dataclass(frozen=True, slots=True)
class VisionFlops:
    """Forward pass of a sample's pictures.

    Attributes:
        entry: what makes patches rows.
        layers: of the tower.
    """

    entry: float
    layers: float
    projector: float

    @property
    def tower(self) -> float:
        return self.entry + self.layers

    @property
    def tower_backward(self) -> float:
        """Where the tower is trained: nothing below the patches has a gradient."""
        return self.entry + 2 * self.layers

    @property
    def forward(self) -> float:
        return self.tower + self.projector

    def backward_ratio(self, *, tower: bool, projector: bool, checkpointing: bool = False) -> float:
        """Backward FLOPs over forward ones; both gradients where a part is trained, none below the lowest one.

        Args:
            checkpointing: the layers of a trained tower are computed a second time.
        """
        work = (self.tower_backward if tower else 0.0) + (2 * self.projector if tower or projector else 0.0)
        work += self.layers if tower and checkpointing else 0.0
        return work / self.forward


def vision_flops(sizes: VisionSizes, patches: int, pictures: int) -> VisionFlops:
    """Forward pass over the patches of a sample.

    Args:
        pictures: tiles, frames or pairs of frames, within which the tower attends.
    """
    rows = patches + sizes.class_tokens * pictures
    whole = rows / max(1, pictures)
    linear = 2.0 * sizes.layer_weights * rows
    attended = (sizes.layers - sizes.windowed) * whole + sizes.windowed * min(sizes.window, whole)
    projector = sum(2.0 * weights * patches / shared for weights, shared in sizes.projector_weights)
    entry = 2.0 * sizes.entry_weights * patches
    return VisionFlops(entry, linear + 4.0 * sizes.hidden * rows * attended, projector)


# --- a recipe's model, before anything of it is there -----------------------------------------------------

_SIDE: Final = 448
"""Pixels along a side of a frame, where the data do not say."""
PROMPT: Final = 40
TARGETS: Final = 280
"""As for VideoLLaMA2, on whose conversations the recipes train."""

@dataclass(frozen=True, slots=True)
class PublishedSizes:
    """A published checkpoint.

    Attributes:
        fields: of its config.json, as far as sizes depend on them.
        parameters: in all, as the publisher's files hold them.
        source: where both are from.
    """

    fields: Mapping[str, Any]
    parameters: int
    source: str


_INTERNVIT_300M: Final = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
}  # fmt: skip
_QWEN2_5_VISION: Final = {
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
    "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
_SMOLVLM_VISION: Final = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 512, "patch_size": 16,
}  # fmt: skip
_CONFIG_JSON: Final = "config.json of the repository; the count is that of its safetensors"

PUBLISHED: Final[Mapping[str, PublishedSizes]] = {
    "InternVL3_5-8B": PublishedSizes(
        {
            "model_type": "internvl",
            "vision_config": _INTERNVIT_300M,
            "text_config": {
                "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            },
            "tie_word_embeddings": False,
        },
        8_528_318_464,
        "shapes of all 745 tensors of the repository, renamed",
    ),
    "InternVL3_5-14B": PublishedSizes(
        {
            "model_type": "internvl",
            "vision_config": _INTERNVIT_300M,
            "text_config": {
                "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
                "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            },
            "tie_word_embeddings": False,
        },
        15_119_523_840,
        "shapes of all 789 tensors of the repository, renamed",
    ),
    "Qwen2.5-VL-7B-Instruct": PublishedSizes(
        {
            "model_type": "qwen2_5_vl",
            "vision_config": {**_QWEN2_5_VISION, "out_hidden_size": 3584},
            "text_config": {
                "model_type": "qwen2_5_vl_text", "hidden_size": 3584, "intermediate_size": 18944,
                "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
            },
            "tie_word_embeddings": False,
        },
        8_292_166_656,
        _CONFIG_JSON,
    ),
    "Qwen2.5-VL-3B-Instruct": PublishedSizes(
        {
            "model_type": "qwen2_5_vl",
            "vision_config": {**_QWEN2_5_VISION, "out_hidden_size": 2048},
            "text_config": {
                "model_type": "qwen2_5_vl_text", "hidden_size": 2048, "intermediate_size": 11008,
                "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
            },
            "tie_word_embeddings": True,
        },
        3_754_622_976,
        _CONFIG_JSON,
    ),
    "Qwen3-VL-8B-Instruct": PublishedSizes(
        {
            "model_type": "qwen3_vl",
            "vision_config": {
                "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
                "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24], "out_hidden_size": 4096,
            },
            "text_config": {
                "model_type": "qwen3_vl_text", "hidden_size": 4096, "intermediate_size": 12288,
                "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                "vocab_size": 151936,
            },
            "tie_word_embeddings": False,
        },
        8_767_123_696,
        _CONFIG_JSON,
    ),
    "llava-onevision-qwen2-7b-ov-hf": PublishedSizes(
        {
            "model_type": "llava_onevision",
            "vision_config": {
                "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16,
                "image_size": 384, "patch_size": 14, "vision_use_head": False,
            },
            "text_config": {
                "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152128,
            },
            "tie_word_embeddings": False,
        },
        8_030_807_584,
        "the script of transformers that converts the original weights (26 layers of the tower, 64 more entries of "
        "the vocabulary than Qwen2-7B); the count is the sum of these shapes",
    ),
    "SmolVLM2-256M-Video-Instruct": PublishedSizes(
        {
            "model_type": "smolvlm",
            "scale_factor": 4,
            "vision_config": _SMOLVLM_VISION,
            "text_config": {
                "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49280,
            },
            "tie_word_embeddings": False,
        },
        256_484_928,
        _CONFIG_JSON,
    ),
    "SmolVLM2-500M-Video-Instruct": PublishedSizes(
        {
            "model_type": "smolvlm",
            "scale_factor": 4,
            "vision_config": _SMOLVLM_VISION,
            "text_config": {
                "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32,
                "num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
            },
            "tie_word_embeddings": False,
        },
        507_482_304,
        _CONFIG_JSON,
    ),
}  # fmt: skip
"""By the repository's name, without what `_SUFFIXES` names."""
_SUFFIXES: Final = ("-HF", "-Pretrained", "-Instruct", "-MPO")
"""Of InternVL3.5's repositories, whose sizes are the same."""


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
        matrices: weights of the projector's matrices.
        tokens: visual tokens of a clip of so many frames with so many pixels along a side.
        patches: that the tower reads of such a clip.
        reads: patches that share a row of the projector.
        gated: whether a layer of the tower has three matrices in its perceptron, not two.
        class_tokens: rows of a picture beside its patches.
        frames: that a patch spans.
    """

    tower: Callable[[Plain], int]
    projector: Callable[[Plain], int]
    matrices: Callable[[Plain], int]
    tokens: Callable[[Plain, int, int], int]
    patches: Callable[[Plain, int, int], int]
    reads: Callable[[Plain], float]
    gated: bool = False
    class_tokens: int = 0
    frames: int = 1

    def sizes(self, plain: Plain) -> VisionSizes:
        layer = 4 * plain.width**2 + (3 if self.gated else 2) * plain.width * plain.inner
        full = plain.vision.get("fullatt_block_indexes")
        return VisionSizes(
            self.frames * plain.entry,
            plain.layers * layer,
            plain.width,
            plain.layers,
            ((self.matrices(plain), self.reads(plain)),),
            self.class_tokens,
            0 if full is None else plain.layers - len(full),
            window_patches(plain.vision),
        )


def window_patches(vision: Mapping[str, Any]) -> int:
    """Patches of a whole window; 0 where the tower has none."""
    return (int(vision["window_size"]) // int(vision["patch_size"])) ** 2 if "window_size" in vision else 0


def _fixed(plain: Plain, frames: int, side: int) -> int:
    return frames * plain.side**2


def _free(merge: int, frames_a_row: int = 1) -> Callable[[Plain, int, int], int]:
    def patches(plain: Plain, frames: int, side: int) -> int:
        along = max(1, round(side / (plain.patch * merge))) * merge
        return -(-frames // frames_a_row) * along**2

    return patches


def _two_matrices(reads: int) -> Callable[[Plain], int]:
    """Of a perceptron as wide as the decoder, over so many patches side by side."""
    return lambda plain: (reads * plain.width + plain.hidden) * plain.hidden


def _merger(plain: Plain) -> int:
    """The matrices of one of Qwen's mergers."""
    return 4 * plain.width * (4 * plain.width + plain.hidden)


def _qwen2_5_tower(plain: Plain) -> int:
    width, inner = plain.width, plain.inner
    block = 2 * width + 4 * (width**2 + width) + 3 * width * inner + 2 * inner + width
    return 2 * plain.entry + plain.layers * block


def _deep(plain: Plain) -> int:
    return len(plain.vision["deepstack_visual_indexes"])


def _qwen3_projector(plain: Plain) -> int:
    wide = 4 * plain.width
    merger = _mlp(wide, wide, plain.hidden)
    return 2 * plain.width + merger + _deep(plain) * (2 * wide + merger)


def _siglip_tower(plain: Plain) -> int:
    return plain.entry + plain.width + plain.side**2 * plain.width + plain.layers * plain.block + 2 * plain.width


def _scaled(plain: Plain) -> int:
    """Patches that SmolVLM's connector puts side by side."""
    return int(plain.fields["scale_factor"]) ** 2


_OF_ALL_FRAMES: Final = ("qwen3_vl", "video_llama_3")
"""Families whose processor shares a video's pixels among its frames."""
_FREE = _free(2)
_PAIRS = _free(2, 2)
FAMILIES: Final[Mapping[str, VisionFamily]] = {
    "internvl": VisionFamily(
        tower=lambda p: p.entry + p.width + (p.side**2 + 2) * p.width + p.layers * (p.block + 2 * p.width),
        projector=lambda p: 8 * p.width + _mlp(4 * p.width, p.hidden, p.hidden),
        matrices=_two_matrices(4),
        tokens=lambda p, frames, side: _fixed(p, frames, side) // 4,
        patches=_fixed,
        reads=lambda p: 4,
        class_tokens=1,
    ),
    "llava_onevision": VisionFamily(
        tower=_siglip_tower,
        projector=lambda p: _mlp(p.width, p.hidden, p.hidden) + p.hidden,
        matrices=_two_matrices(1),
        tokens=lambda p, frames, side: frames * (-(-p.side // 2)) ** 2 + 1,
        patches=_fixed,
        reads=lambda p: 1,
    ),
    "llava_next_video": VisionFamily(
        tower=lambda p: p.entry + (p.side**2 + 2) * p.width + p.layers * p.block + 4 * p.width,
        projector=lambda p: _mlp(p.width, p.hidden, p.hidden) + p.hidden,
        matrices=_two_matrices(1),
        tokens=lambda p, frames, side: _fixed(p, frames, side) // 4,
        patches=_fixed,
        reads=lambda p: 4,
        class_tokens=1,
    ),
    "smolvlm": VisionFamily(
        tower=_siglip_tower,
        projector=lambda p: p.width * _scaled(p) * p.hidden,
        matrices=lambda p: p.width * _scaled(p) * p.hidden,
        tokens=lambda p, frames, side: _fixed(p, frames, side) // _scaled(p),
        patches=_fixed,
        reads=_scaled,
    ),
    "qwen2_5_vl": VisionFamily(
        tower=_qwen2_5_tower,
        projector=lambda p: p.width + _mlp(4 * p.width, 4 * p.width, p.hidden),
        matrices=_merger,
        tokens=lambda p, frames, side: _PAIRS(p, frames, side) // 4,
        patches=_PAIRS,
        reads=lambda p: 4,
        gated=True,
        frames=2,
    ),
    "qwen3_vl": VisionFamily(
        tower=lambda p: (
            2 * p.entry + p.width + int(p.vision["num_position_embeddings"]) * p.width + p.layers * p.block
        ),
        projector=_qwen3_projector,
        matrices=lambda p: (1 + _deep(p)) * _merger(p),
        tokens=lambda p, frames, side: _PAIRS(p, frames, side) // 4,
        patches=_PAIRS,
        reads=lambda p: 4,
        frames=2,
    ),
    "video_llama_3": VisionFamily(
        tower=lambda p: p.entry + p.width + p.layers * p.block + 2 * p.width,
        projector=lambda p: _mlp(p.width, p.hidden, p.hidden),
        matrices=_two_matrices(1),
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
    frames = recipe.data.frames
    side, assumed = _side(recipe, fields["model_type"])
    tokens, patches = family.tokens(plain, frames, side), family.patches(plain, frames, side)
    work = vision_flops(family.sizes(plain), patches, -(-frames // family.frames))
    through = model.tower.train or model.projector.train
    layer = patches * (8 * plain.width + 2 * plain.inner)
    again = model.tower.train and recipe.train.gradient_checkpointing
    keeps = plain.layers * (patches * plain.width if again else layer)
    parts = (
        Part(
            "vision tower",
            family.tower(plain),
            trained=model.tower.train,
            forward=work.tower,
            backward=work.tower_backward if model.tower.train else 0.0,
            again=work.layers if again else 0.0,
            kept=keeps if model.tower.train else 0,
            at_once=layer if again else 0,
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
        side=side if family.patches is not _fixed else plain.side * plain.patch,
        prompt=PROMPT,
        targets=TARGETS,
        sources=sources if family.patches is _fixed else (*sources, assumed),
        adapters=adapters,
    )
    return replace(whole, layer_parameters=_layer_parameters(whole, text["model_type"]))


def _side(recipe: Recipe, family: str) -> tuple[int, str]:
    """Pixels along a side of a square frame, for towers that read any size, and in words where they are from."""
    size = getattr(recipe.data, "size", None)
    side, words = (size, "") if size is not None else (_SIDE, ", an assumption")
    budget = getattr(recipe.model, "video_pixels", None)
    if budget is not None:
        shared = recipe.data.frames if family in _OF_ALL_FRAMES else 1
        least, most = (isqrt(pixels // shared) for pixels in budget)
        if not least <= side <= most:
            side, words = (least if side < least else most), ", as model.video_pixels allows"
    return side, f"frames of {side} x {side} pixels{words}"


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
        fields: dict[str, Any] = read_settings(path)
        if "text_config" not in fields:  # older Qwen2.5-VL keep the decoder's fields at the top
            fields["text_config"] = {**fields, "model_type": f"{fields['model_type']}_text"}
        return fields, (str(path),)
    known = PUBLISHED.get(name) or PUBLISHED.get(_without_suffix(name))
    if known is None:
        raise RecipeError(
            f"{recipe.name}: {path} is not there, and no published sizes are known of {name}",
            hint=f"known are {', '.join(PUBLISHED)}",
        )
    return known.fields, (f"{name} as published (no {path}): {known.source}",)


def _without_suffix(name: str) -> str:
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


TILE: Final = 32
"""Pixels along a side of a picture that a toy tower of fixed size reads."""
PATCH: Final = 8


def toy_fields(model: TinyHFModel) -> dict[str, Any]:
    """What config.json of a toy model holds of these sizes."""
    text_type = {
        "internvl": "qwen3", "qwen2_5_vl": "qwen2_5_vl_text", "qwen3_vl": "qwen3_vl_text",
        "llava_onevision": "qwen2", "video_llama_3": "qwen2",
    }.get(model.family, "llama")  # fmt: skip
    windowed = model.family == "qwen2_5_vl"
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
            **({"window_size": 4 * PATCH, "fullatt_block_indexes": [model.tower_layers - 1]} if windowed else {}),
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
