"""How a model lies on the processes that train it: whole on each (`Replicated`), also with the optimizer in parts
(`Zero`), or every weight in parts (`Sharded`). All do the same for the loop; the loss, the gate and the order of the
data know nothing of it.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.models.device import autocast_forward
from harness.training.launching import processes
from harness.training.optimizer import make_optimizer, set_lr
from harness.training.placement import trained_state
from harness.training.placement.sharding import gather_model, make_blueprint, make_mesh, shard, units_of
from harness.training.placement.zero import Zero

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor

    import regate
    from harness.config.recipe import Devices, Recipe, Sharding
    from harness.models.adapter import ParameterGroup


class ParallelModel(Protocol):
    """What the loop and the checkpoints ask of a model on one process or several.

    Attributes:
        model: what is called; every process calls it in every micro-batch.
    """

    sharding: Sharding
    accelerator: Accelerator
    model: nn.Module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What of it this process has."""
        ...

    def micro_batch(self) -> AbstractContextManager[None]:
        """Around one forward and backward pass."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients, divided by the number of micro-batches that each process has in a step."""
        ...

    def update(self, lr: float, limit: float) -> Tensor:
        """Learn from the gradients and clear them.

        Args:
            lr: learning rate of the recipe, which the optimizer's groups follow (`set_lr`).
            limit: gradients are scaled so that their norm over all parameters is at most this.

        Returns:
            The norm before that, on the device.
        """
        ...

    def export(self, write: Callable[[nn.Module], None]) -> None:
        """Let the main process write the whole model; every process comes here."""
        ...

    def save(self, folder: Path) -> None:
        """What training changes, into a folder that any number of processes reads; every process comes here."""
        ...

    def load(self, folder: Path) -> None: ...


def wrap_model(
    accelerator: Accelerator,
    recipe: Recipe,
    build: Callable[[], nn.Module],
    prepare: Callable[[nn.Module], regate.ScoredLM],
    groups: Callable[[nn.Module], Sequence[ParameterGroup]],
    units: Callable[[nn.Module], Sequence[nn.Module]],
) -> ParallelModel:
    """The student as the recipe wants it on these processes.

    Args:
        build: makes the student at its starting weights.
        prepare: puts on and around it what the loop needs.
        groups: the student's parts that have learning rates of their own.
        units: `Adapter.shard_units`.
    """

    def optimizer(scored: regate.ScoredLM) -> torch.optim.Optimizer:
        return make_optimizer(scored, recipe.train.optimizer, groups(scored.model))

    if recipe.devices.in_parts:
        return Sharded(accelerator, recipe.devices, build, prepare, optimizer, units)
    model = prepare(build())
    if recipe.devices.sharding == "none" or accelerator.num_processes == 1:
        return Replicated(accelerator, model, optimizer(model))
    return Zero(accelerator, recipe.devices.sharding, model, optimizer(model))


def _step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    set_lr(optimizer, lr)
    optimizer.step()
    optimizer.zero_grad()


# --- whole on every process ------------------------------------------------------------------------------


class Replicated:
    """Every process holds the whole model, and torch's DistributedDataParallel averages the gradients. With one
    process, the model.

    The forward pass is under autocast, and the logits stay in the type that it gave them: accelerate's own wrapper
    would copy them to float32.
    """

    sharding: Sharding = "none"

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        device = accelerator.device
        self._plain = model.to(device)
        autocast_forward(self._plain, accelerator)
        self.model = self._plain
        if accelerator.num_processes > 1:
            # Gradients lie in the buckets that are sent, and no buffer changes in training.
            self.model = DistributedDataParallel(
                self._plain,
                device_ids=[device.index] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
            )
        self.optimizer = accelerator.prepare(optimizer)

    def micro_batch(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.accumulate(self.model)
        return context

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def update(self, lr: float, limit: float) -> Tensor:
        norm: Tensor = self.accelerator.clip_grad_norm_(self._plain.parameters(), limit)
        _step(self.optimizer, lr)
        return norm

    def export(self, write: Callable[[nn.Module], None]) -> None:
        if self.accelerator.is_main_process:
            student: Any = self._plain
            write(student.model)

    def save(self, folder: Path) -> None:
        trained_state.save(folder, self._plain, self._plain_optimizer.state)

    def load(self, folder: Path) -> None:
        trained_state.load(folder, self._plain, self._plain_optimizer)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The one within accelerate's."""
        plain: torch.optim.Optimizer = self.optimizer.optimizer
        return plain


# --- every weight in parts -------------------------------------------------------------------------------


class Sharded:
    """Every weight, gradient and moment is spread over the processes (torch's fully_shard), of all machines or of
    each; a unit (`harness.training.placement.sharding.units_of`) is put together when it is needed. One process holds
    all.

    Gradients are summed into their parts after every micro-batch: kept whole until the last one, they would take as
    much memory as sharding saves.

    Args:
        devices: says over which processes, whether in the machine's memory, and when machines add their gradients.
        build, prepare, units: as for `wrap_model`; `build` is called on the main process only.
        optimizer: makes it for the model in parts.

    Raises:
        RecipeError: the processes cannot be dealt out to machines as the recipe says.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        devices: Devices,
        build: Callable[[], nn.Module],
        prepare: Callable[[nn.Module], regate.ScoredLM],
        optimizer: Callable[[regate.ScoredLM], torch.optim.Optimizer],
        units: Callable[[nn.Module], Sequence[nn.Module]],
    ) -> None:
        self.accelerator, self.sharding = accelerator, devices.sharding
        nodes, device = processes.nodes(), accelerator.device
        processes.check_nodes(devices, nodes)
        self._blueprint = make_blueprint(build)
        scored = prepare(self._blueprint.model)
        self.model: nn.Module = scored
        shard(
            scored,
            self._blueprint,
            units_of(scored, units(scored.model)),
            make_mesh(device, nodes if devices.sharding == "node" else 1),
            device,
            half=accelerator.mixed_precision == "bf16",
            offload=devices.offload,
            # Between machines a layer takes longer to arrive than one before it takes to compute.
            ahead=2 if devices.sharding == "full" and nodes > 1 else 1,
        )
        # Where the weights lie in the machine's memory, they do not tell.
        self.model.computes_on = device
        self.optimizer = optimizer(scored)
        self._late, self._micro_batches = devices.reduce == "step", 0

    def micro_batch(self) -> AbstractContextManager[None]:
        if self._late:
            self._micro_batches += 1
            last = self._micro_batches % self.accelerator.gradient_accumulation_steps == 0
            model: Any = self.model
            model.set_requires_all_reduce(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def update(self, lr: float, limit: float) -> Tensor:
        norm = self._clip(limit)
        _step(self.optimizer, lr)
        return norm

    def _clip(self, limit: float) -> Tensor:
        from torch.distributed.tensor import DTensor

        parameters = list(self.model.parameters())
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        full_norm: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if limit < math.inf:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, full_norm)
        return full_norm.to(self.accelerator.device)

    def export(self, write: Callable[[nn.Module], None]) -> None:
        model = gather_model(self.model, self._blueprint)
        if model is not None:
            write(model)

    def save(self, folder: Path) -> None:
        trained_state.save(folder, self.model, self.optimizer.state)

    def load(self, folder: Path) -> None:
        trained_state.load(folder, self.model, self.optimizer)
