"""How a model lies on the processes that train it: whole on each (here), or every weight in parts
(`harness.training.shard`).

Both do the same for the loop; the loss, the gate and the order of the data know nothing of it.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from harness.training.optimizer import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch
    from accelerate import Accelerator
    from torch import nn

    from harness.config.recipe import Recipe

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


def place(
    accelerator: Accelerator,
    recipe: Recipe,
    make: Callable[[], nn.Module],
    dress: Callable[[nn.Module], nn.Module],
) -> Placement:
    """The student where the recipe wants it. One process holds it whole, whatever the recipe says of sharding.

    Args:
        make: builds the student at its starting weights.
        dress: puts on and around it what the loop needs, and gives the `regate.ScoredLM`.
    """
    if recipe.devices.sharding == "full" and accelerator.num_processes > 1:
        from harness.training.shard import Sharded  # two seconds of imports that other runs do without

        return Sharded(accelerator, make, dress, recipe.train.optimizer)
    model = dress(make())
    return Replicated(accelerator, model, make_optimizer(model, recipe.train.optimizer))


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
