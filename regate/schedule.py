"""The schedule of sparse steps (Eq. 4): a gate warm-up, then cycles that start with dense steps.

Pure Python, so that a run can be planned without torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from regate.config import GateConfig
from regate.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DualCycle:
    """p(t) of Eq. 4, with t the optimizer step, counted from 0.

    p(t) = 1 while t < W or t mod C < F, else `keep_ratio`. The cycle counts from step 0, not from the end of the
    warm-up.

    Raises:
        ConfigError: a value is outside its range (see `GateConfig`).
    """

    keep_ratio: float
    cycle_steps: int
    dense_steps: int
    warmup_steps: int

    def __post_init__(self) -> None:
        GateConfig(
            keep_ratio=self.keep_ratio,
            cycle_steps=self.cycle_steps,
            dense_steps=self.dense_steps,
            warmup_steps=self.warmup_steps,
        )  # one place checks the ranges

    @classmethod
    def from_config(cls, config: GateConfig) -> DualCycle:
        return cls(config.keep_ratio, config.cycle_steps, config.dense_steps, config.warmup_steps)

    def keep_ratio_at(self, step: int) -> float:
        """The part of a sample's candidates that stays at optimizer step `step` (>= 0)."""
        return 1.0 if self.dense_at(step) else self.keep_ratio

    def dense_at(self, step: int) -> bool:
        """Whether optimizer step `step` (>= 0) is in the warm-up or in the dense part of its cycle."""
        if step < 0:
            raise ConfigError(f"a step counts from 0, got {step}")
        return step < self.warmup_steps or step % self.cycle_steps < self.dense_steps

    def expected_keep(self, total_steps: int) -> float:
        """Mean of p(t) over t = 0 .. total_steps - 1, in closed form.

        One minus this is the reduction that the paper's tables report: (1 - W/T)(1 - F/C)(1 - p) up to the
        rounding of the last cycle.
        """
        if total_steps < 1:
            raise ConfigError(f"total_steps must be at least 1, got {total_steps}")
        return 1.0 - (1.0 - self.keep_ratio) * self.sparse_steps(total_steps) / total_steps

    def sparse_steps(self, total_steps: int) -> int:
        """Number of t < total_steps after the warm-up and outside the dense part of their cycle, in closed form."""
        return self._sparse_before(total_steps) - self._sparse_before(min(self.warmup_steps, total_steps))

    def _sparse_before(self, step: int) -> int:
        """Number of t < step outside the dense part of their cycle, the warm-up left aside."""
        cycles, rest = divmod(step, self.cycle_steps)
        return cycles * (self.cycle_steps - self.dense_steps) + max(0, rest - self.dense_steps)
