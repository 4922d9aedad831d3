"""What the losses of a step's targets are weighed by: `train.loss_norm`.

`token`, `sample` and `square` are InternVL's reductions: each scored target weighs 1, 1 / n or 1 / sqrt(n), n being
the scored targets of its own sample; a micro-batch's weighed sum is divided by the mean over processes of its sum of
weights, and the micro-batches of a step are averaged. Where nothing is elided n is the number of the sample's labels,
so a dense step is the official loss.

Legend: B rows, N losses of the micro-batch, M micro-batches of the step on this process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch

from regate.top_k import budget
from regate.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from regate.types import Decision

LossNorm = Literal["global_tokens", "micro_batch", "token", "sample", "square"]
_EXPONENT: Final[Mapping[LossNorm, float]] = {"token": 0.0, "sample": 1.0, "square": 0.5}
"""A target weighs n to minus this."""


@dataclass(frozen=True, slots=True)
class MicroBatchNorm:
    """How the losses of a micro-batch become what is differentiated.

    Attributes:
        scale: of the weighed sum; of several processes a float64 scalar on the device, which nothing waits for.
            accelerate divides by the number of micro-batches, and data parallelism averages over processes.
        weight_B: float32, of each loss of a row; None where all weigh one.
    """

    scale: float | Tensor
    weight_B: Tensor | None = None

    def total(self, decision: Decision, kept_loss_N: Tensor) -> Tensor:
        """The number that is differentiated.

        Args:
            kept_loss_N: the losses, zero where they do not train.
        """
        scale = self.scale if isinstance(self.scale, float) else self.scale.to(kept_loss_N.dtype)
        if self.weight_B is None:
            return kept_loss_N.sum() * scale
        weight_N = self.weight_B.repeat_interleave(decision.losses_BS.sum(dim=1).cpu())
        return (kept_loss_N * on_device(weight_N, kept_loss_N.device).to(kept_loss_N.dtype)).sum() * scale


def norms_of(
    decisions: Sequence[Decision],
    norm: LossNorm,
    *,
    sum_processes: Callable[[Tensor], Tensor],
    processes: int,
    accumulation: int,
) -> list[MicroBatchNorm]:
    """How each micro-batch of this process's step is normed; every process comes here.

    Args:
        decisions: M of them, as many as on every other process.
        sum_processes: the sum of a tensor over all processes, on the device; not asked where there is one process.
        accumulation: what accelerate divides the loss of a micro-batch by.
    """
    if norm == "micro_batch":
        return [MicroBatchNorm(1.0 / max(1, decision.counts.scored)) for decision in decisions]
    if norm == "global_tokens":
        scored = sum(decision.counts.scored for decision in decisions)
        if processes == 1:
            return [MicroBatchNorm(accumulation / max(1, scored))] * len(decisions)
        total = sum_processes(torch.tensor(scored, dtype=torch.float64)).clamp(min=1)
        return [MicroBatchNorm(processes * accumulation / total)] * len(decisions)
    weights = [weight_of(scored_per_row(decision), norm) for decision in decisions]
    sums = [(weight_B * scored_per_row(d)).sum() for weight_B, d in zip(weights, decisions, strict=True)]
    sums_M = torch.stack(sums) if processes == 1 else sum_processes(torch.stack(sums))
    scale_M = torch.where(sums_M > 0, processes / sums_M, 0.0)
    scales = scale_M.tolist() if processes == 1 else scale_M.unbind()
    return [MicroBatchNorm(scale, weight_B.float()) for scale, weight_B in zip(scales, weights, strict=True)]


def weight_of(scored_B: Tensor, norm: LossNorm) -> Tensor:
    """float64 B, the weight of each scored target of a row with so many; 0 where it has none."""
    weight_B = scored_B.double().clamp(min=1) ** -_EXPONENT[norm]
    return torch.where(scored_B > 0, weight_B, 0.0)


def scored_per_row(decision: Decision) -> Tensor:
    """int64 B, targets of each row that train. Where they are chosen after the forward pass, their number is known
    before it."""
    targets_B = decision.targets_BS.sum(dim=1)
    if int(targets_B.sum()) == decision.counts.scored:
        return targets_B
    return budget(targets_B, decision.keep_ratio)
