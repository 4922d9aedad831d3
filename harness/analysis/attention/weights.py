"""The attention of a model's decoder, read from its layers while it computes.

A query here is a place that predicts a token of the answer: what the model reads to write the word. Its weights are
those of eager attention, which computes them whole; other kernels never hold them.

Legend: B rows, S expanded length, L layers, h query heads.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

import regate
from harness.common.errors import EnvironmentProblem
from harness.models.device import compute_device
from regate.types import Kind
from regate.wrapping import decoder_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from harness.data.sample import Batch
    from harness.models.adapter import Evaluated
    from regate.types import Layout

_EAGER: Final = "eager"


@dataclass(frozen=True, slots=True)
class Attended:
    """Where the queries of each row look, on the CPU.

    Attributes:
        visual_BL: float64, the part of the attention that goes to visual positions, mean over heads and queries.
        weight_BS: float64, the attention to each position, mean over layers, heads and queries; a row sums to one.
        uniform_B: float64, that part if each query looked at all that it can see alike.
    """

    visual_BL: Tensor
    weight_BS: Tensor
    uniform_B: Tensor


@dataclass(slots=True)
class _Watch:
    """Adds up what each layer of one forward pass attends to."""

    queries_BS: Tensor
    by_layer: list[Tensor] = field(default_factory=list)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        weight_BhSS = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        length = self.queries_BS.shape[1]
        if weight_BhSS is None or tuple(weight_BhSS.shape[-2:]) != (length, length):
            raise EnvironmentProblem(
                f"{type(module).__name__} gives no attention weights of every position to every position",
                hint="its attention cannot be drawn: leave out --attended",
            )
        # Of each row its queries alone: in double precision the whole would be large.
        looked = [
            weight_hSS[:, queries_S].double().mean(dim=(0, 1))
            for weight_hSS, queries_S in zip(weight_BhSS, self.queries_BS.to(weight_BhSS.device), strict=True)
        ]
        self.by_layer.append(torch.stack(looked).cpu())


@contextmanager
def _watched(model: nn.Module, queries_BS: Tensor) -> Iterator[_Watch]:
    """The decoder computes by eager attention, and each of its layers tells what it attends to."""
    decoder: Any = decoder_of(model)
    before, watch = decoder.config._attn_implementation, _Watch(queries_BS)
    decoder.set_attn_implementation(_EAGER)
    handles = [layer.self_attn.register_forward_hook(watch) for layer in decoder.layers]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
        decoder.set_attn_implementation(before)


@torch.inference_mode()
def attended(adapter: Evaluated, model: nn.Module, batch: Batch, dtype: torch.dtype | None = None) -> Attended:
    """Where the places that predict the batch's targets look.

    Args:
        model: as `Adapter.load` gives it, in eval mode, on its device.
        dtype: autocast type, None for none.

    Raises:
        EnvironmentProblem: a layer of the decoder gives no attention weights.
    """
    decision = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=0)
    device = compute_device(model)
    with (
        _watched(model, decision.predictor_BS) as watch,
        torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
    ):
        adapter.forward(regate.ScoredLM(model), batch, decision)
    weight_BSL = torch.stack(watch.by_layer, dim=-1)
    weight_BSL /= weight_BSL.sum(dim=1, keepdim=True)  # bfloat16 weights add up to one roughly
    visual_BS = (batch.layout.kind_BS == Kind.VISUAL).double()
    return Attended(
        torch.einsum("bs,bsl->bl", visual_BS, weight_BSL),
        weight_BSL.mean(dim=-1),
        _uniform(batch.layout, decision.predictor_BS),
    )


def _uniform(layout: Layout, queries_BS: Tensor) -> Tensor:
    """The visual part of all positions that a causal query sees, mean over the queries of each row."""
    seen_BS = layout.valid_BS.double().cumsum(dim=1)
    visual_BS = (layout.kind_BS == Kind.VISUAL).double().cumsum(dim=1)
    part_BS = visual_BS / seen_BS.clamp(min=1) * queries_BS
    return part_BS.sum(dim=1) / queries_BS.sum(dim=1)


__all__ = ["Attended", "attended"]
