"""A micro-batch through a model, up to the logits of its scored targets.

Legend: B rows, S expanded length, N scored targets, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.common.transfer import to_device
from harness.models.device import compute_device
from regate.types import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor, nn

    from harness.data.sample import Batch
    from regate.types import Decision


def inputs_on(inputs: Mapping[str, Any], batch: Batch, device: torch.device) -> dict[str, Any]:
    """Arguments of a model that computes on `device`: copied there without waiting, and pixels normalised there.

    Args:
        inputs: those of `batch`, or what was made of them.
    """
    moved = {name: to_device(value, device) if hasattr(value, "to") else value for name, value in inputs.items()}
    return batch.model_inputs(moved)


def scored_forward(
    model: nn.Module, batch: Batch, decision: Decision, *, tells_places: bool = False
) -> tuple[Tensor, Tensor]:
    """What `Adapter.forward` is for every model whose inputs are all in `batch.inputs`.

    Args:
        tells_places: the model is one of this package's, which does not look for its placeholders where it is told
            them (`visual_places` of `harness.models.multimodal`).
    """
    device = compute_device(model)
    inputs = inputs_on(batch.inputs, batch, device)
    if tells_places:
        place_n = (batch.layout.kind_BS == Kind.VISUAL).flatten().nonzero().squeeze(1)
        inputs["visual_places"] = to_device(place_n, device)
    # The rows are counted on the CPU, where their number is known without waiting for the device.
    logits_NV = model(predictor_BS=decision.predictor_rows, **inputs)
    return logits_NV, to_device(decision.targets_N, device)
