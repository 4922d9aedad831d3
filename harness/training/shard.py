"""A model whose weights are spread over processes, from the one process that read them and back to it.

Only the main process ever holds all weights at once, on the CPU. The others get the model without its weights, and
then their parts.
"""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from harness.training.optimizer import make_optimizer
from regate.wrapping import decoder_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor

    from harness.config.recipe import OptimizerRecipe
    from harness.training.parallel import Sharding

_PREFIX = "model."
"""What `regate.ScoredLM` puts before the names of the model within."""


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
        make, dress: as for `harness.training.parallel.place`; `make` is called on the main process only.
    """

    sharding: Sharding = "full"

    def __init__(
        self,
        accelerator: Accelerator,
        make: Callable[[], nn.Module],
        dress: Callable[[nn.Module], nn.Module],
        recipe: OptimizerRecipe,
    ) -> None:
        self.accelerator = accelerator
        self._blueprint = blueprint(make)
        self.model = dress(self._blueprint.model)
        shard(self.model, self._blueprint, accelerator.device, half=accelerator.mixed_precision == "bf16")
        self.optimizer: torch.optim.Optimizer = make_optimizer(self.model, recipe)

    def micro_batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def clip(self, limit: float) -> float:
        parameters = list(self.model.parameters())
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        whole: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if limit < math.inf:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, whole)
        return float(whole)

    def export(self, write: Callable[[nn.Module], None]) -> None:
        whole = gather(self.model, self._blueprint)
        if whole is not None:
            write(whole)

    def save(self, folder: Path) -> None:
        save_shards(self._state(), checkpoint_id=folder / "shards")
        torch.save(_random_states(), folder / f"random_states_{self.accelerator.process_index}.pkl")

    def load(self, folder: Path) -> None:
        state = self._state()
        load_shards(state, checkpoint_id=folder / "shards")
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        states = torch.load(folder / f"random_states_{self.accelerator.process_index}.pkl", weights_only=True)
        torch.set_rng_state(states["cpu"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer, options=StateDictOptions())
        return {"model": model, "optimizer": optimizer}


def blueprint(make: Callable[[], nn.Module]) -> Blueprint:
    """What the main process's `make` builds, without the weights, on every process."""
    plain: nn.Module | None = None
    weights: dict[str, Any] = {}
    if dist.get_rank() == 0:
        whole = make()
        weights = {_PREFIX + name: value for name, value in whole.state_dict().items()}
        plain = with_parameters(whole, lambda _, value: torch.empty_like(value, device="meta"))
    sent = [plain]
    dist.broadcast_object_list(sent, src=0)
    model = copy.deepcopy(plain) if plain is not None else sent[0]
    assert model is not None
    return Blueprint(model, plain, weights)


def shard(scored: nn.Module, made: Blueprint, device: torch.device, *, half: bool) -> None:
    """Spread the weights of `made.model`, which `scored` wraps, over all processes; `made.weights` are given up.

    Each decoder layer is put together for its own pass and taken apart again, the rest once for a whole pass.

    Args:
        half: compute in bfloat16. The parts, their gradients' sum and the optimizer stay in float32.
    """
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
    set_model_state_dict(scored, made.weights, options=options)
    made.weights = {}


def gather(scored: nn.Module, made: Blueprint) -> nn.Module | None:
    """The whole model on the CPU of the main process, None on the others; every process comes here."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(scored, options=options)
    if made.plain is None:
        return None
    whole = with_parameters(made.plain, lambda name, _: state[_PREFIX + name])
    for name, value in whole.named_buffers():
        if _PREFIX + name in state:
            value.copy_(state[_PREFIX + name])
    return whole


def with_parameters(model: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """A copy of a model with other values of its parameters. Those that are shared stay shared."""
    memo: dict[int, Any] = {
        id(old): nn.Parameter(value(name, old), requires_grad=old.requires_grad)
        for name, old in model.named_parameters()
    }
    return copy.deepcopy(model, memo)


def _random_states() -> dict[str, Tensor]:
    """torch's: nothing else draws within a step."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
