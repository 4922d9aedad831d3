"""A micro-batch through a model, up to the logits of its scored targets.

Legend: B rows, S expanded length, N scored targets, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.models.device import compute_device, to_device
from regate.types import Kind

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.data.sample import Batch
    from regate.types import Decision


def scored_forward(
    model: nn.Module, batch: Batch, decision: Decision, *, tells_places: bool = False
) -> tuple[Tensor, Tensor]:
    """What `Adapter.forward` is for every model whose inputs are all in `batch.inputs`.

    Args:
        tells_places: the model is one of this package's, which does not look for its placeholders where it is told
            them (`visual_places` of `harness.models.multimodal`).
    """
    device = compute_device(model)
    inputs: dict[str, Any] = {
        name: to_device(value, device) if hasattr(value, "to") else value for name, value in batch.inputs.items()
    }
    if tells_places:
        place_n = (batch.layout.kind_BS == Kind.VISUAL).flatten().nonzero().squeeze(1)
        inputs["visual_places"] = to_device(place_n, device)
    # The rows are counted on the CPU, where their number is known without waiting for the device.
    logits_NV = model(predictor_BS=decision.predictor_rows, **inputs)
    return logits_NV, to_device(decision.targets_N, device)
