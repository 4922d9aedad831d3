"""Self-distillation of dense steps: the KL divergence from what the elided forward pass of a batch predicts to what
the dense one does. Not the paper's; DualSpeed's (arXiv 2602.03815) at temperature 1.

The elided pass is the one that `Gate.elided` decides; no gradient runs through it. The divergence is taken at the
targets that both passes score.

Legend: N losses of the dense step, M of the elided pass, m targets of both, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regate.errors import LayoutError
from regate.loss import chunks_of, compute_dtype
from regate.transfer import on_device

if TYPE_CHECKING:
    from regate.types import Decision


class _Divergence(torch.autograd.Function):
    """sum over the vocabulary of p (log p - log q), row chunk by row chunk, with p from the elided logits."""

    @staticmethod
    def forward(ctx: Any, logits_mV: Tensor, elided_mV: Tensor) -> Tensor:
        dtype = compute_dtype(logits_mV)
        loss_m = torch.empty(logits_mV.shape[0], dtype=dtype, device=logits_mV.device)
        for part in chunks_of(logits_mV):
            log_p, log_q = (logits[part].to(dtype).log_softmax(dim=1) for logits in (elided_mV, logits_mV))
            loss_m[part] = (log_p.exp() * (log_p - log_q)).sum(dim=1)
        ctx.save_for_backward(logits_mV, elided_mV)
        return loss_m

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_m: Tensor) -> tuple[Tensor, None]:
        logits_mV, elided_mV = ctx.saved_tensors
        grad_mV = torch.empty_like(logits_mV)
        for part in chunks_of(logits_mV):
            q, p = (logits[part].to(grad_m.dtype).softmax(dim=1) for logits in (logits_mV, elided_mV))
            grad_mV[part] = q.sub_(p).mul_(grad_m[part, None])
        return grad_mV, None


def distil_loss(decision: Decision, logits_NV: Tensor, elided: Decision, elided_MV: Tensor) -> Tensor:
    """The divergence at each of the dense step's losses, in nats; 0 at those that the elided pass does not score.

    Args:
        decision: of the dense step.
        logits_NV: its logits, in the order of `decision.predictor_BS`.
        elided: what `Gate.elided` made of it.
        elided_MV: the logits of that pass, likewise; detached.

    Returns:
        N, float32 (float64 for float64 logits).

    Raises:
        LayoutError: the elided pass scores a target that the dense one does not.
    """
    shared_BS = elided.targets_BS & decision.targets_BS
    if not torch.equal(shared_BS, elided.targets_BS):
        raise LayoutError("the elided pass scores targets that the dense step does not: they are of two batches")
    of_dense_m = on_device(shared_BS[decision.losses_BS].nonzero().squeeze(1), logits_NV.device)
    of_elided_m = on_device(shared_BS[elided.losses_BS].nonzero().squeeze(1), logits_NV.device)
    student_mV, teacher_mV = logits_NV.index_select(0, of_dense_m), elided_MV.detach().index_select(0, of_elided_m)
    loss_m: Tensor = _Divergence.apply(student_mV, teacher_mV)
    return loss_m.new_zeros(logits_NV.shape[0]).index_copy(0, of_dense_m, loss_m)
