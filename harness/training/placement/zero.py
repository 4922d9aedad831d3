"""DeepSpeed's ZeRO, stages 1 and 2: every process holds all weights, and a part of the optimizer's state, of which
stage 2 adds the gradients (Rajbhandari et al. 2020, arXiv 1910.02054, sections 5.1 and 5.2).

Stage 3, the weights in parts as well, is what `Sharded` does, without the demand that all processes call the same
modules in every micro-batch: a frozen tower is not called where a micro-batch is text alone.

The engine takes the step. Its own checkpoints are pickles that belong to a number of processes; here the moments of
every parameter are put together and written as those of the other placements are, for any number of processes and
any sharding. The main process holds all of them in the machine's memory while they are written: 8 bytes a trained
parameter.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.models.device import autocast_forward
from harness.training.optimizer import set_lr
from harness.training.placement import trained_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor, nn

    import regate
    from harness.config.recipe import Sharding

_STAGES: Final = {"zero1": 1, "zero2": 2}
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")
"""AdamW's, by torch's names."""


class Zero:
    """A model of which DeepSpeed's engine takes the steps; it implements `ParallelModel`.

    Weights, gradients and their sum over the processes are float32, and the forward pass is under autocast, as where
    the model is whole: the same numbers to rounding.

    Args:
        sharding: the stage, `zero1` or `zero2`.
        model: on the CPU, as it is trained.
        optimizer: AdamW over its trained parameters.
    """

    def __init__(
        self, accelerator: Accelerator, sharding: Sharding, model: regate.ScoredLM, optimizer: torch.optim.Optimizer
    ) -> None:
        self.accelerator = accelerator
        self.sharding: Sharding = sharding
        self._plain = model.to(accelerator.device)
        autocast_forward(self._plain, accelerator)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # for its throughput, which nobody reads
            "managed_gradient_accumulation": False,  # the loop says when a step is over
            "zero_optimization": {"stage": _STAGES[sharding]},
            "zero_allow_untested_optimizer": True,
        }
        with _quiet():
            from deepspeed import initialize

            self._engine, *_ = initialize(
                model=self._plain, optimizer=optimizer, config=config, dist_init_required=False
            )
        self.model: nn.Module = self._engine

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """torch's, over this process's parts."""
        optimizer: torch.optim.Optimizer = self._engine.optimizer.optimizer
        return optimizer

    def micro_batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss / self.accelerator.gradient_accumulation_steps, scale_wrt_gas=False)

    def update(self, lr: float, limit: float) -> Tensor:
        zero = self._engine.optimizer
        zero.clip_grad = limit if limit < math.inf else 0.0
        set_lr(self.optimizer, lr)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), device=self.accelerator.device)

    def export(self, write: Callable[[nn.Module], None]) -> None:
        if self.accelerator.is_main_process:
            student: Any = self._plain
            write(student.model)

    def save(self, folder: Path) -> None:
        trained_state.save(folder, self._plain, self._whole_moments())

    def load(self, folder: Path) -> None:
        trained_state.load_model(folder, self._plain)
        zero = self._engine.optimizer
        zero.refresh_fp32_params()  # the parts that the optimizer works on are copies
        stored = trained_state.stored_moments(folder)
        if not stored:
            return
        self._make_moments()
        for name, parameter in trained_state.trained_parameters(self._plain):
            self._set_moments(parameter, trained_state.load_moments(folder, name, stored[name], parameter))

    def _whole_moments(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Of every trained parameter on the main process, on the CPU; none on the others, and none before the first
        step. Every process comes here."""
        from deepspeed.utils import safe_get_full_optimizer_state

        parts = list(self.optimizer.state.values())
        if not parts:
            return {}
        self._link_moments()
        step, moments = parts[0]["step"].cpu(), {}  # one number: every part takes every step
        for _, parameter in trained_state.trained_parameters(self._plain):
            whole = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            if self.accelerator.is_main_process:
                moments[parameter] = {"step": step, **{key: value.cpu() for key, value in whole.items()}}
        return moments

    def _make_moments(self) -> None:
        """Zeros, where the first step would put them."""
        for part in self._engine.optimizer.single_partition_of_fp32_groups:
            device = part.device if self.optimizer.defaults["fused"] else "cpu"
            self.optimizer.state[part] = {"step": torch.zeros((), device=device)}
            self.optimizer.state[part] |= {key: torch.zeros_like(part) for key in _MOMENTS}
        self._link_moments()

    def _link_moments(self) -> None:
        """Let every parameter know its place in the parts. The engine does so after the first of several groups has
        taken its first step, when the others have no moments yet, and never again."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        for group, part in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(group, part, self.optimizer.state)

    def _set_moments(self, parameter: nn.Parameter, moments: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        for key in _MOMENTS:
            safe_set_full_optimizer_state(parameter, moments[key], key)
        for part in self.optimizer.state.values():
            part["step"].copy_(moments["step"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what DeepSpeed says at every start."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
