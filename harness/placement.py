"""How a model lies on the processes that train it: whole on each, or every weight in parts.

Both do the same for the loop; the loss, the gate and the order of the data know nothing of it.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from harness.optim import make_optimizer
from harness.shard import gather, shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor, nn

    from harness.recipe import OptimizerRecipe
    from harness.shard import Blueprint

Sharding = Literal["none", "full"]


class Placement(Protocol):
    """What the loop and the checkpoints ask of a model's place.

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

    def clip(self, limit: float) -> float:
        """Scale the gradients so that their norm over all parameters is at most `limit`; the norm before."""
        ...

    def export(self, write: Callable[[nn.Module], None]) -> None:
        """Let the main process write the whole model; every process comes here."""
        ...

    def save(self, folder: Path) -> None:
        """Weights, optimizer and random states, by every process into one folder."""
        ...

    def load(self, folder: Path) -> None: ...


class Replicated:
    """Every process holds the whole model, and accelerate averages the gradients. With one process, the model."""

    sharding: Sharding = "none"

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.accelerator = accelerator
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    def micro_batch(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.accelerator.accumulate(self.model)
        return context

    def clip(self, limit: float) -> float:
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), limit))

    def export(self, write: Callable[[nn.Module], None]) -> None:
        if self.accelerator.is_main_process:
            write(self.accelerator.unwrap_model(self.model).model)

    def save(self, folder: Path) -> None:
        with _without_tied_weights_warning():
            self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))


class Sharded:
    """Every weight, gradient and moment is spread over the processes (torch's fully_shard), each decoder layer put
    together when it is needed.

    Gradients are summed into their parts after every micro-batch: kept whole until the last one, they would take as
    much memory as sharding saves.

    Args:
        model: a `regate.ScoredLM` around `blueprint.model`.
    """

    sharding: Sharding = "full"

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, blueprint: Blueprint, recipe: OptimizerRecipe
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self._blueprint = blueprint
        shard(model, blueprint, accelerator.device, half=accelerator.mixed_precision == "bf16")
        self.optimizer: torch.optim.Optimizer = make_optimizer(model, recipe)

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


def _random_states() -> dict[str, Tensor]:
    """torch's: nothing else draws within a step."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


@contextmanager
def _without_tied_weights_warning() -> Iterator[None]:
    """accelerate warns at every save that tied weights are written once; that they come back is tested."""
    logger = logging.getLogger("accelerate.utils.other")

    def keep(record: logging.LogRecord) -> bool:
        return "Removed shared tensor" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
