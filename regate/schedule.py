"""The schedule of sparse steps (Eq. 4): a gate warm-up, then cycles that start with dense steps.

Beyond the paper, the keep ratio of the sparse steps may move during the run, by the step or by the loss.

Pure Python, so that a run can be planned without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regate.config import GateConfig
from regate.errors import ConfigError

if TYPE_CHECKING:
    from regate.config import RampConfig


@dataclass(frozen=True, slots=True)
class DualCycle:
    """p(t) of Eq. 4, with t the optimizer step, counted from 0.

    p(t) = 1 while t < W or t mod C < F, else `keep_ratio`. The cycle counts from step 0, not from the end of the
    warm-up. With a ramp `keep_ratio` is where the sparse steps begin.

    Raises:
        ConfigError: a value is outside its range (see `GateConfig`).
    """

    keep_ratio: float
    cycle_steps: int
    dense_steps: int
    warmup_steps: int
    ramp: RampConfig | None = None

    def __post_init__(self) -> None:
        GateConfig(
            keep_ratio=self.keep_ratio,
            cycle_steps=self.cycle_steps,
            dense_steps=self.dense_steps,
            warmup_steps=self.warmup_steps,
            ramp=self.ramp,
        )  # one place checks the ranges

    @classmethod
    def from_config(cls, config: GateConfig) -> DualCycle:
        return cls(config.keep_ratio, config.cycle_steps, config.dense_steps, config.warmup_steps, config.ramp)

    def keep_ratio_at(self, step: int, *, loss: float | None = None) -> float:
        """The part of a sample's candidates that stays at optimizer step `step` (>= 0).

        Args:
            loss: what a ramp by loss goes by, in nats (`DenseLoss`); None before there is one: `keep_ratio`.
        """
        return 1.0 if self.dense_at(step) else self.sparse_keep_ratio_at(step, loss=loss)

    def sparse_keep_ratio_at(self, step: int, *, loss: float | None = None) -> float:
        """`keep_ratio_at` as if the step were a sparse one."""
        if self.ramp is None:
            return self.keep_ratio
        if self.ramp.steps is not None:
            part = (step - self.warmup_steps) / self.ramp.steps
        else:
            assert self.ramp.loss is not None
            first, last = self.ramp.loss
            part = 0.0 if loss is None else (first - loss) / (first - last)
        part = min(max(part, 0.0), 1.0)
        return (1.0 - part) * self.keep_ratio + part * self.ramp.to

    def dense_at(self, step: int) -> bool:
        """Whether optimizer step `step` (>= 0) is in the warm-up or in the dense part of its cycle."""
        if step < 0:
            raise ConfigError(f"a step counts from 0, got {step}")
        return step < self.warmup_steps or step % self.cycle_steps < self.dense_steps

    def expected_keep(self, total_steps: int) -> float:
        """Mean of p(t) over t = 0 .. total_steps - 1, in closed form.

        One minus this is the reduction that the paper's tables report: (1 - W/T)(1 - F/C)(1 - p) up to the
        rounding of the last cycle. A ramp by loss is not known beforehand: its run counts with `keep_ratio`.
        """
        if total_steps < 1:
            raise ConfigError(f"total_steps must be at least 1, got {total_steps}")
        saved = (1.0 - self.keep_ratio) * self.sparse_steps(total_steps)
        if self.ramp is not None and self.ramp.steps is not None:
            saved += (self.keep_ratio - self.ramp.to) * self._ramped(total_steps, self.ramp.steps)
        return 1.0 - saved / total_steps

    def _ramped(self, total_steps: int, ramp_steps: int) -> float:
        """Sum over the sparse steps t < total_steps of the part of the ramp that lies behind t."""
        begin = min(self.warmup_steps, total_steps)
        end = min(self.warmup_steps + ramp_steps, total_steps)
        on_ramp = self._sum_before(end) - self._sum_before(begin)
        on_ramp -= self.warmup_steps * (self._sparse_before(end) - self._sparse_before(begin))
        return on_ramp / ramp_steps + self._sparse_before(total_steps) - self._sparse_before(end)

    def _sum_before(self, step: int) -> int:
        """Sum of the t < step outside the dense part of their cycle, the warm-up left aside."""
        cycles, rest = divmod(step, self.cycle_steps)
        sparse, more = self.cycle_steps - self.dense_steps, max(0, rest - self.dense_steps)
        whole = self.cycle_steps * sparse * (cycles * (cycles - 1) // 2)
        whole += cycles * (sparse * (self.dense_steps + self.cycle_steps - 1) // 2)
        return whole + more * cycles * self.cycle_steps + more * (2 * self.dense_steps + more - 1) // 2

    def sparse_steps(self, total_steps: int) -> int:
        """Number of t < total_steps after the warm-up and outside the dense part of their cycle, in closed form."""
        return self._sparse_before(total_steps) - self._sparse_before(min(self.warmup_steps, total_steps))

    def _sparse_before(self, step: int) -> int:
        """Number of t < step outside the dense part of their cycle, the warm-up left aside."""
        cycles, rest = divmod(step, self.cycle_steps)
        return cycles * (self.cycle_steps - self.dense_steps) + max(0, rest - self.dense_steps)


class DenseLoss:
    """The mean loss of the dense steps of each cycle, which a ramp by loss goes by.

    A cycle reads the loss of the one before, whose reports have all been read by then; every process notes the loss
    of the whole global batch, so that all of them decide alike.
    """

    def __init__(self, schedule: DualCycle) -> None:
        self._schedule = schedule
        self._cycle = -1
        self._sum = 0.0
        self._steps = 0
        self._before: float | None = None

    def note(self, step: int, loss: float) -> None:
        """The mean loss of a step's scored targets, over all processes, in nats. In the order of the steps."""
        if not self._schedule.dense_at(step):
            return
        self._turn(step)
        self._sum += loss
        self._steps += 1

    def before(self, step: int) -> float | None:
        """Mean of the cycle before that of `step`; None in the first cycle.

        Raises:
            ConfigError: no loss of that cycle was noted.
        """
        cycle = step // self._schedule.cycle_steps
        if cycle == 0:
            return None
        if self._cycle == cycle:
            loss = self._before
        else:
            loss = self._sum / self._steps if self._cycle == cycle - 1 and self._steps else None
        if loss is None:
            raise ConfigError(
                f"ramp.loss goes by the losses of the cycle before step {step}, and none was noted: call "
                "gate.note_loss(step, loss) after every step"
            )
        return loss

    def state(self) -> list[Any]:
        """JSON-able."""
        return [self._cycle, self._sum, self._steps, self._before]

    def load(self, state: list[Any]) -> None:
        self._cycle, self._sum, self._steps, self._before = state

    def _turn(self, step: int) -> None:
        cycle = step // self._schedule.cycle_steps
        if cycle == self._cycle:
            return
        self._before = self._sum / self._steps if self._cycle == cycle - 1 and self._steps else None
        self._cycle, self._sum, self._steps = cycle, 0.0, 0
