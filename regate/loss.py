"""Per-token cross entropy (Eq. 1 for the teacher, the training loss for the student).

Legend: B rows, S expanded length, N scored targets, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from regate import process
from regate.errors import ConfigError, LayoutError
from regate.types import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from regate.types import Decision

_CHUNK_ELEMENTS = 1 << 24  # 64 MiB of float32 at a time


class _TokenLoss(torch.autograd.Function):
    """-log softmax at the target, row chunk by row chunk, in float32 whatever the logits' type is.

    Only the logits themselves and one number a row are kept for the backward pass, where each chunk's softmax is
    made again. No N x V array of another type is ever alive.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        dtype = compute_dtype(logits_NV)
        norm_N = torch.empty(logits_NV.shape[0], dtype=dtype, device=logits_NV.device)
        loss_N = torch.empty_like(norm_N)
        for part in chunks_of(logits_NV):
            chunk = logits_NV[part].to(dtype)
            norm_N[part] = chunk.logsumexp(dim=1)
            loss_N[part] = norm_N[part] - chunk.gather(1, targets_N[part, None]).squeeze(1)
        ctx.save_for_backward(logits_NV, targets_N, norm_N)
        return loss_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, targets_N, norm_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for part in chunks_of(logits_NV):
            chunk = (logits_NV[part].to(norm_N.dtype) - norm_N[part, None]).exp_()
            chunk.scatter_add_(1, targets_N[part, None], -torch.ones_like(norm_N[part, None]))
            grad_NV[part] = chunk.mul_(grad_N[part, None])
        return grad_NV, None


def token_loss(logits_NV: Tensor, targets_N: Tensor, *, backend: Literal["torch", "liger"] = "torch") -> Tensor:
    """The loss of each scored target, in nats.

    Args:
        logits_NV: float, one row a target.
        targets_N: int64.
        backend: "liger" uses liger-kernel's fused kernel (CUDA only; it overwrites the logits by their gradient).

    Returns:
        float32 N (float64 for float64 logits). Empty for N = 0, and its sum then still has a gradient, of zeros.
    """
    if backend == "liger":
        return _liger_loss(logits_NV, targets_N)
    loss_N: Tensor = _TokenLoss.apply(logits_NV, targets_N)
    return loss_N


def causal_token_loss(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    """`token_loss` for a model that returns logits everywhere.

    Args:
        logits_BSV: float; row i predicts the token at i + 1.
        targets_BS: int64 labels at their own positions, -100 where not scored (`Decision.labels_BS`).

    Returns:
        float32 N, row by row, in the order of `Decision.targets_N`.
    """
    scored_BS = targets_BS[:, 1:] != IGNORE
    return token_loss(logits_BSV[:, :-1][scored_BS], targets_BS[:, 1:][scored_BS])


def count_scored(decisions: Sequence[Decision], *, device: torch.device | str = "cpu", group: Any = None) -> int:
    """Scored targets of an optimizer step, over all its micro-batches and all processes: the loss's divisor.

    The step's loss is the sum of all scored losses over this number. Data parallelism averages gradients over
    processes, and accelerate (or DeepSpeed) divides by the accumulation steps: multiply by both to undo them.

    Args:
        decisions: this process's micro-batches of the step, if it has any.
        device: where the processes' backend reduces (the accelerator for NCCL).

    Raises:
        LayoutError: no process has a target in this step.
    """
    counts = [(decision.counts.scored, decision.counts.target) for decision in decisions]
    sums = torch.tensor([sum(column) for column in zip(*counts, strict=True)] or [0, 0], device=device)
    if process.in_use():
        torch.distributed.all_reduce(sums, group=group)
    scored, targets = int(sums[0]), int(sums[1])
    if targets == 0:
        rows = sum(len(decision.sample_ids_B) for decision in decisions)
        raise LayoutError(
            f"the step has no targets: every label of its rows ({rows} here) is {IGNORE}; check the labels that the "
            "collator makes, and the truncation"
        )
    return max(1, scored)  # `candidates: text` may select prompt tokens only


def compute_dtype(logits_NV: Tensor) -> torch.dtype:
    """In which a loss is computed, whatever the logits' type is."""
    return torch.float64 if logits_NV.dtype == torch.float64 else torch.float32


def chunks_of(logits_NV: Tensor) -> list[slice]:
    """Rows that are computed at a time."""
    rows = max(1, _CHUNK_ELEMENTS // max(1, logits_NV.shape[1]))
    return [slice(start, start + rows) for start in range(0, logits_NV.shape[0], rows)]


def _liger_loss(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    try:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
    except ImportError:
        raise ConfigError(
            "token_loss(backend='liger') needs the package liger-kernel; install regate[liger]"
        ) from None
    result = LigerCrossEntropyFunction.apply(logits_NV, targets_N, None, IGNORE, 0.0, 0.0, "none")
    loss_N: Tensor = result[0] if isinstance(result, tuple) else result
    return loss_N.float()
