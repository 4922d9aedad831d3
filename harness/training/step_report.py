"""What an optimizer step did, over all processes: one small collective and one copy to the host.

On an accelerator the copy is not waited for. The loop reads it after it has queued the next step, so that the device
always has work: a step then costs no wait of its own.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from accelerate.utils import gather_object

import regate
from harness.common.errors import HarnessError
from harness.data.dealing import imbalance
from harness.models import device
from regate.transfer import on_device

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from harness.data.sample import Batch

_COUNTED: Final = tuple(regate.TokenCounts.__slots__)
_KNOWN: Final = (
    *_COUNTED,
    "flops",
    "flops_dense",
    "executed",
    "padding",
    "tower_kept",
    "peak_bytes",
    "failed",
    "cut_samples",
    "cut_targets",
    "unshuffled",
    "stop",
    "save",
)
"""Numbers that the host knows of its step, in the order in which they are sent; `_COMPUTED` follow."""
_COMPUTED: Final = ("loss_sum", "grad_norm", "distil_sum")
"""Numbers that the device computed."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did, on this process.

    Attributes:
        executed: positions that the decoder computed, padding among them.
        padding: those that belong to no sample or are left out, and stand in the rows all the same.
        rows, kernel: how it computed them, as of `regate.Elision`.
        tower_kept: samples whose tower features were read in place of frames.
        loss_sum: float64, of this process's scored targets; on the device.
        distil_sum: float64, the divergence that a dense step learned from, likewise; None where it learned from none.
        grad_norm: over all parameters and processes, before it was clipped; on the device.
        skipped: float16 only: a gradient overflowed, and the weights are as they were.
    """

    counts: regate.TokenCounts
    executed: int
    padding: int
    rows: str
    kernel: str | None
    keep_ratio: float
    sparse: bool
    loss_sum: Tensor
    distil_sum: Tensor | None
    flops: float
    flops_dense: float
    tower_kept: int
    grad_norm: Tensor
    skipped: bool


@dataclass(frozen=True, slots=True)
class StepReport:
    """On its way to the host.

    Attributes:
        host_PN: float64, a row for each process; not to be read before `event`.
        event: of the copy; None where it is there already.
        failed: ids of this process's samples whose media could not be read.
    """

    result: StepResult
    host_PN: Tensor
    event: Any
    failed: list[int]
    processes: int

    def read(self) -> tuple[dict[str, Any], bool]:
        """The step's line of the ledger, and whether a process was asked to stop. Waits for the device to come to the
        step's end. Every process reads every report, in order.

        Raises:
            HarnessError: the loss or the gradient is not finite.
        """
        if self.event is not None:
            self.event.synchronize()
        of_all = dict(zip((*_KNOWN, *_COMPUTED), self.host_PN.T.tolist(), strict=True))
        total = {name: sum(values) for name, values in of_all.items()}
        counts = regate.TokenCounts(*(int(total[name]) for name in _COUNTED))
        counts.check()
        loss, grad_norm = total["loss_sum"] / max(1, counts.scored), of_all["grad_norm"][0]
        _check_finite(loss, grad_norm, skipped=self.result.skipped)
        report = {
            "counts": {name: getattr(counts, name) for name in _COUNTED},
            "executed": int(total["executed"]),
            "padding": int(total["padding"]),
            **({} if self.processes == 1 else {"imbalance": imbalance(np.array(of_all["executed"]))}),
            "tower_kept": int(total["tower_kept"]),
            "rows": self.result.rows,
            "kernel": self.result.kernel,
            "keep_ratio": self.result.keep_ratio,
            # A sparse step scores every target where it elides visual positions alone.
            **({"sparse": True} if self.result.sparse and self.result.keep_ratio >= 1.0 else {}),
            "loss": loss,
            **({} if self.result.distil_sum is None else {"distil": total["distil_sum"] / max(1, counts.scored)}),
            "grad_norm": grad_norm if math.isfinite(grad_norm) else None,
            "skipped": self.result.skipped,
            "devices": self.processes,
            "flops": total["flops"],
            "flops_dense": total["flops_dense"],
            "peak_bytes": int(max(of_all["peak_bytes"])) or None,
            "failed": gather_object(self.failed) if total["failed"] > 0 else self.failed,
            "truncated": {"samples": int(total["cut_samples"]), "targets": int(total["cut_targets"])},
            "unshuffled": int(total["unshuffled"]),
        }
        return report, total["stop"] > 0

    @property
    def save(self) -> bool:
        """Whether for one of the processes it is time for a checkpoint; to be asked after `read`."""
        return bool(self.host_PN[:, _KNOWN.index("save")].any())


def send_report(
    accelerator: Accelerator, result: StepResult, window: list[Batch], *, stop: bool, save: bool = False
) -> StepReport:
    """Gather what every process did. Every process comes here after every step.

    Args:
        window: this process's micro-batches.
        stop: whether this process was asked to stop.
        save: whether by this process's clock it is time for a checkpoint.
    """
    failed = [sample for batch in window for sample in batch.failed]
    cut = [targets for batch in window for targets in batch.cut]
    known = [*astuple(result.counts), result.flops, result.flops_dense, result.executed]
    known += [result.padding, result.tower_kept]
    known += [device.peak_bytes(accelerator.device) or 0, len(failed), len(cut), sum(cut)]
    known += [sum(len(batch.unshuffled) for batch in window), stop, save]
    assert len(known) == len(_KNOWN)
    known_N = on_device(torch.tensor(known, dtype=torch.float64), accelerator.device)
    distil_sum = torch.zeros_like(result.loss_sum) if result.distil_sum is None else result.distil_sum
    computed_3 = torch.stack([result.loss_sum.double(), result.grad_norm.double(), distil_sum.double()])
    gathered_PN = accelerator.gather(torch.cat([known_N, computed_3])[None])
    host_PN, event = _to_host(gathered_PN)
    return StepReport(result, host_PN, event, failed, accelerator.num_processes)


def _check_finite(loss: float, grad_norm: float, *, skipped: bool) -> None:
    if math.isfinite(loss) and (math.isfinite(grad_norm) or skipped):
        return
    raise HarnessError(
        f"training diverged: loss {loss}, gradient norm {grad_norm}",
        hint="lower train.optimizer.lr or lengthen the warm-up; the last checkpoint is kept",
    )


def _to_host(values: Tensor) -> tuple[Tensor, Any]:
    """A copy on the host, and the event to wait for; None if it is there."""
    if values.device.type != "cuda":
        return values.cpu(), None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    copy.copy_(values, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copy, event
