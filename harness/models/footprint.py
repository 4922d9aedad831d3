"""What the model of a recipe takes, in numbers, before anything of it is there. No torch, no transformers.

Legend: H hidden size, I width of the perceptron.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.config.weight_files import read_settings
from harness.models.flops import decoder_shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.models.adapter import DecoderShape


@dataclass(frozen=True, slots=True)
class Part:
    """A part in front of the decoder; FLOPs and values are those of one sample.

    Attributes:
        trained: whether its parameters get gradients.
        again: FLOPs that are computed a second time in the backward pass.
        kept: values that are kept from the forward pass for the backward pass.
        at_once: values that exist for a while only, where a part of it is computed a second time.
    """

    name: str
    parameters: int
    trained: bool
    forward: float
    backward: float = 0.0
    again: float = 0.0
    kept: int = 0
    at_once: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """A model: its parts in front of the decoder, and the decoder.

    Attributes:
        decoder: its sizes; `vision_flops` and `vision_backward` are left at 0, since `parts` has them.
        layer_parameters: of one decoder layer, adapters not counted.
        other_parameters: embeddings, head and last norm.
        adapters: LoRA parameters of layers and head; 0 where the decoder itself is trained.
        head_adapters: those of the head.
        visual_tokens: of one clip or image.
        side: pixels along a side of a frame as the model reads it.
        tower_output: values that a frozen tower gives for one sample, where they can be kept for later steps; None
            where the tower is trained, or the family cannot take them.
        prompt, targets: tokens of an ordinary sample, where nobody counted or stated them.
        sources: where the sizes are from, one sentence each.
    """

    parts: tuple[Part, ...]
    decoder: DecoderShape
    layer_parameters: int
    other_parameters: int
    adapters: int
    head_adapters: int
    visual_tokens: int
    side: int
    prompt: int
    targets: int
    sources: tuple[str, ...]
    tower_output: int | None = None

    @property
    def decoder_parameters(self) -> int:
        return self.decoder.layers * self.layer_parameters + self.other_parameters

    @property
    def trained(self) -> int:
        """Parameters with gradient and optimizer state."""
        own = self.adapters or self.decoder_parameters
        return own + sum(part.parameters for part in self.parts if part.trained)

    @property
    def frozen(self) -> int:
        own = self.decoder_parameters if self.adapters else 0
        return own + sum(part.parameters for part in self.parts if not part.trained)

    @property
    def parameters(self) -> int:
        return self.trained + self.frozen


def footprint(
    text: Mapping[str, Any],
    parts: tuple[Part, ...],
    *,
    visual_tokens: int,
    side: int,
    prompt: int,
    targets: int,
    sources: tuple[str, ...],
    adapters: int = 0,
    head_adapters: int = 0,
    tower_output: int | None = None,
) -> Footprint:
    """Of a language model by the fields of its config.json.

    Args:
        adapters: LoRA parameters of the layers; the decoder is then frozen.
        head_adapters: those of the head.
    """
    more = {"trainable_linear": 0.0, "adapter_parameters": adapters} if adapters else {}
    shape = decoder_shape(SimpleNamespace(**text), **more)
    head = 1 if text.get("tie_word_embeddings") else 2
    return Footprint(
        parts=parts,
        decoder=shape,
        layer_parameters=layer_parameters(shape, biases=text["model_type"] == "qwen2"),
        other_parameters=head * shape.vocabulary * shape.hidden + shape.hidden,
        adapters=adapters + head_adapters,
        head_adapters=head_adapters,
        visual_tokens=visual_tokens,
        side=side,
        prompt=prompt,
        targets=targets,
        sources=sources,
        tower_output=tower_output,
    )


def layer_parameters(shape: DecoderShape, *, biases: bool) -> int:
    """Attention, perceptron and two norms of a Llama-like layer.

    Args:
        biases: of queries, keys and values, as Qwen2 has them.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.hidden * (2 * queries + 2 * keys) + (queries + 2 * keys if biases else 0)
    return attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden


def kept_by_a_layer(shape: DecoderShape) -> int:
    """Values that one decoder layer keeps for its backward pass, a position: the inputs of its products, norms and
    activations. The attention's own are a row of statistics, which is left out."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return 4 * shape.hidden + 2 * queries + 2 * keys + 4 * shape.intermediate


def transformer_block(width: int, intermediate: int) -> int:
    """Parameters of an encoder block: four products with biases, two layers, two norms."""
    return 4 * (width**2 + width) + 2 * width * intermediate + intermediate + width + 4 * width


def read_sizes(folder: Path, published: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], str]:
    """The fields of a folder's config.json, or the published ones, and in words which of them they are.

    Args:
        name: of the published model.
    """
    path = folder / "config.json"
    if not path.is_file():
        return published, f"{name} as published (no {path})"
    fields: dict[str, Any] = read_settings(path)
    if "vision_config" in fields:  # the file of a whole CLIP or SigLIP
        fields = {**fields["vision_config"], "model_type": f"{fields['model_type']}_vision_model"}
    return {**published, **fields}, f"{path}"
