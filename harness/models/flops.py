"""Floating-point operations by part: what a family's formulas are held against at the size of its publication."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from harness.models.adapter import DecoderShape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class VisionPart:
    """A part in front of the decoder, for one sample.

    Attributes:
        run: its forward pass on the meta device.
        formula: FLOPs of its forward and backward pass by the family's formula.
        again: FLOPs that are computed a second time in the backward pass.
        trained: whether there is a backward pass.
    """

    name: str
    run: Callable[[], Tensor]
    formula: float
    again: float = 0.0
    trained: bool = True


@dataclass(frozen=True, slots=True)
class FullSize:
    """A model at the size of its publication on the meta device: its parts can be run and counted, with no memory.

    Attributes:
        vision: the parts in front of the decoder, in order.
        decoder: takes inputs_embeds [B, S, D] and attention_mask [B, 1, S, S].
        head: takes rows [N, D].
        visual_tokens: of one clip.
        head_adapter_parameters: LoRA parameters of the head.
        checkpointed: whether the published training computes the decoder's layers again.
        note: to be printed beside the figures.
    """

    vision: tuple[VisionPart, ...]
    decoder: nn.Module
    head: nn.Module
    shape: DecoderShape
    visual_tokens: int
    head_adapter_parameters: int = 0
    checkpointed: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """A family's published model and an ordinary sample of its data.

    Attributes:
        build: from the frames of a clip and the layers of the decoder (None for all of them).
        frames: numbers of frames that it is trained with.
        prompt: tokens of template, instruction and question.
        targets: tokens of the answers.
    """

    build: Callable[[int, int | None], FullSize]
    frames: tuple[int, ...]
    prompt: int
    targets: int


def decoder_shape(text: Any, **more: Any) -> DecoderShape:
    """Sizes of a language model's configuration; `more` are the fields that are not its own."""
    return DecoderShape(
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        intermediate=text.intermediate_size,
        vocabulary=text.vocab_size,
        **more,
    )


def convolution_backward(
    grad_shape: Sequence[int], input_shape: Sequence[int], weight_shape: Sequence[int], *rest: Any, **outputs: Any
) -> int:
    """What torch's FlopCounterMode shall count for `aten.convolution_backward`: as much as forward for each of the
    input's and the weight's gradient. Its own formula takes the weight gradient of a depthwise convolution for that
    of a dense one, 3584 times too much at full size.

    Args:
        rest: as torch hands them on; the last says which gradients are wanted.
    """
    wanted = rest[-1]
    forward = 2 * prod(weight_shape) * grad_shape[0] * prod(grad_shape[2:])
    return forward * (int(wanted[0]) + int(wanted[1]))
