"""How a model lies on the processes that train it: whole on each (`Replicated`), or every weight in parts
(`Sharded`). Both do the same for the loop; the loss, the gate and the order of the data know nothing of it.

torch's modules for sharding are imported where they are used: they take two seconds that other runs do without.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import nn

from harness.training import trained_state
from harness.training.optimizer import make_optimizer
from regate.wrapping import decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor

    import regate
    from harness.config.recipe import Recipe
    from harness.models.adapter import ParameterGroup

Sharding = Literal["none", "full"]

_PREFIX = "model."
"""What `regate.ScoredLM` puts before the names of the model within."""


class ParallelModel(Protocol):
    """What the loop and the checkpoints ask of a model on one process or several.

    Attributes:
        model: what is called; every process calls it in every micro-batch.
    """

    sharding: Sharding
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def micro_batch(self) -> AbstractContextManager[None]:
        """Around one forward and backward pass."""
        ...

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients so that their norm over all parameters is at most `limit`; the norm before, on the
        device."""
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
) -> ParallelModel:
    """The student as the recipe wants it on these processes. One process holds it whole, whatever the recipe says of
    sharding.

    Args:
        build: makes the student at its starting weights.
        prepare: puts on and around it what the loop needs.
        groups: the student's parts that have learning rates of their own.
    """

    def optimizer(scored: regate.ScoredLM) -> torch.optim.Optimizer:
        return make_optimizer(scored, recipe.train.optimizer, groups(scored.model))

    if recipe.devices.sharding == "full" and accelerator.num_processes > 1:
        return Sharded(accelerator, build, prepare, optimizer)
    model = prepare(build())
    return Replicated(accelerator, model, optimizer(model))


# --- whole on every process ------------------------------------------------------------------------------


class Replicated:
    """Every process holds the whole model, and accelerate averages the gradients. With one process, the model."""

    sharding: Sharding = "none"

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def micro_batch(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.accumulate(self.model)
        return context

    def clip(self, limit: float) -> Tensor:
        norm: Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        return norm

    def export(self, write: Callable[[nn.Module], None]) -> None:
        if self.accelerator.is_main_process:
            write(self.accelerator.unwrap_model(self.model).model)

    def save(self, folder: Path) -> None:
        trained_state.save(folder, self.accelerator.unwrap_model(self.model), self._plain_optimizer)

    def load(self, folder: Path) -> None:
        trained_state.load(folder, self.accelerator.unwrap_model(self.model), self._plain_optimizer)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """The one within accelerate's."""
        plain: torch.optim.Optimizer = self.optimizer.optimizer
        return plain


# --- every weight in parts -------------------------------------------------------------------------------
# Only the main process ever holds all weights at once, on the CPU. The others get the model without its weights,
# and then their parts.


@dataclass(slots=True)
class Blueprint:
    """A model whose parameters are shapes alone (torch's meta device); its buffers have their values.

    Attributes:
        model: on every process.
        plain: another one like it, to be filled for a checkpoint; None but on the main process.
        weights: of the whole model by name, until they are handed out; empty but on the main process.
    """

    model: nn.Module
    plain: nn.Module | None
    weights: dict[str, Any]


class Sharded:
    """Every weight, gradient and moment is spread over the processes (torch's fully_shard), each decoder layer put
    together when it is needed.

    Gradients are summed into their parts after every micro-batch: kept whole until the last one, they would take as
    much memory as sharding saves.

    Args:
        build, prepare: as for `wrap_model`; `build` is called on the main process only.
        optimizer: makes it for the model in parts.
    """

    sharding: Sharding = "full"

    def __init__(
        self,
        accelerator: Accelerator,
        build: Callable[[], nn.Module],
        prepare: Callable[[nn.Module], regate.ScoredLM],
        optimizer: Callable[[regate.ScoredLM], torch.optim.Optimizer],
    ) -> None:
        self.accelerator = accelerator
        self._blueprint = make_blueprint(build)
        scored = prepare(self._blueprint.model)
        self.model: nn.Module = scored
        shard(self.model, self._blueprint, accelerator.device, half=accelerator.mixed_precision == "bf16")
        self.optimizer = optimizer(scored)

    def micro_batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def clip(self, limit: float) -> Tensor:
        from torch.distributed.tensor import DTensor

        parameters = list(self.model.parameters())
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        full_norm: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if limit < math.inf:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, full_norm)
        return full_norm

    def export(self, write: Callable[[nn.Module], None]) -> None:
        model = gather_model(self.model, self._blueprint)
        if model is not None:
            write(model)

    def save(self, folder: Path) -> None:
        trained_state.save(folder, self.model, self.optimizer)

    def load(self, folder: Path) -> None:
        trained_state.load(folder, self.model, self.optimizer)


def make_blueprint(build: Callable[[], nn.Module]) -> Blueprint:
    """What the main process's `build` makes, without the weights, on every process."""
    plain: nn.Module | None = None
    weights: dict[str, Any] = {}
    if dist.get_rank() == 0:
        full = build()
        weights = {_PREFIX + name: value for name, value in full.state_dict().items()}
        plain = with_parameters(full, lambda _, value: torch.empty_like(value, device="meta"))
    sent = [plain]
    dist.broadcast_object_list(sent, src=0)
    model = copy.deepcopy(plain) if plain is not None else sent[0]
    assert model is not None
    return Blueprint(model, plain, weights)


def shard(scored: nn.Module, blueprint: Blueprint, device: torch.device, *, half: bool) -> None:
    """Spread the weights of `blueprint.model`, which `scored` wraps, over all processes; `blueprint.weights` are
    given up.

    Each decoder layer is put together for its own pass and taken apart again, the rest once for a whole pass.

    Args:
        half: compute in bfloat16. The parts, their gradients' sum and the optimizer stay in float32.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy()
    if half:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    decoder: Any = decoder_of(scored)
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(scored, mesh=mesh, mp_policy=policy)
    buffers = {name: value.clone() for name, value in scored.named_buffers()}
    scored.to_empty(device=device)
    for name, value in scored.named_buffers():
        value.copy_(buffers[name])
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(scored, blueprint.weights, options=options)
    blueprint.weights = {}


def gather_model(scored: nn.Module, blueprint: Blueprint) -> nn.Module | None:
    """The whole model on the CPU of the main process, None on the others; every process comes here."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(scored, options=options)
    if blueprint.plain is None:
        return None
    model = with_parameters(blueprint.plain, lambda name, _: state[_PREFIX + name])
    for name, value in model.named_buffers():
        if _PREFIX + name in state:
            value.copy_(state[_PREFIX + name])
    return model


def with_parameters(model: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """A copy of a model with other values of its parameters. Those that are shared stay shared."""
    memo: dict[int, Any] = {
        id(old): nn.Parameter(value(name, old), requires_grad=old.requires_grad)
        for name, old in model.named_parameters()
    }
    return copy.deepcopy(model, memo)
