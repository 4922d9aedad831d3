"""What training changes, on the disk: trained parameters, buffers and the optimizer's moments, by torch's distributed
checkpoint. Each process writes its part, and any number of processes reads the whole, sharded or not.

Frozen parameters stay out: they are those of the start weights, whose fingerprint belongs to the run. So does the
learning rate, a function of the step. Entries are named `model/NAME` and `optimizer/KEY/NAME`, with the parameter's
name in the whole model, which is the same however the model is wrapped.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

_OPTIMIZER: Final = "optimizer/"


def save(folder: Path, model: nn.Module, moments: Mapping[Any, Mapping[str, Tensor]]) -> None:
    """Write the state into `folder`; every process comes here.

    Args:
        model: without the wrapper of data parallelism; its parameters may be sharded.
        moments: of each parameter, as torch's optimizers keep them in their `state`. A parameter that no step has
            reached yet has none, and what is whole may be given by the main process alone.
    """
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    state = _model_tensors(model)
    for name, parameter in trained_parameters(model):
        state |= {f"{_OPTIMIZER}{key}/{name}": value for key, value in moments.get(parameter, {}).items()}
    with _alone_without_warning(), _failure_of_a_process():
        save_shards(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what any number of processes wrote into a model and its optimizer; every process comes here."""
    state = _model_tensors(model)
    moments: dict[str, dict[str, Tensor]] = {}
    parameters = dict(trained_parameters(model))
    for name, stored in stored_moments(folder).items():
        moments[name] = {key: _empty(entry, parameters[name]) for key, entry in stored.items()}
        state |= {f"{_OPTIMIZER}{key}/{name}": value for key, value in moments[name].items()}
    _read(folder, state, alone=not dist.is_initialized())
    groups = optimizer.state_dict()["param_groups"]
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    by_number = {number: moments[name] for number, name in enumerate(order) if name in moments}
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})


def load_model(folder: Path, model: nn.Module) -> None:
    """The part of `load` that is the model's; every process comes here."""
    _read(folder, _model_tensors(model), alone=not dist.is_initialized())


def load_moments(folder: Path, name: str, stored: Mapping[str, Any], parameter: nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's moments of one parameter that is whole on this process.

    Args:
        stored: of this parameter, from `stored_moments`.
    """
    moments = {key: _empty(entry, parameter) for key, entry in stored.items()}
    _read(folder, {f"{_OPTIMIZER}{key}/{name}": value for key, value in moments.items()}, alone=True)
    return moments


def stored_moments(folder: Path) -> dict[str, dict[str, Any]]:
    """What a checkpoint has of the optimizer: by the parameter's name, and the moment's, its entry in torch's
    metadata."""
    from harness.training.placement.shard_reader import ShardReader

    moments: dict[str, dict[str, Any]] = {}
    for entry, stored in ShardReader(folder).read_metadata().state_dict_metadata.items():
        if entry.startswith(_OPTIMIZER):
            key, name = entry.removeprefix(_OPTIMIZER).split("/", 1)
            moments.setdefault(name, {})[key] = stored
    return moments


def _read(folder: Path, state: dict[str, Tensor], *, alone: bool) -> None:
    """Fill tensors in place."""
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    from harness.training.placement.shard_reader import ShardReader

    with _alone_without_warning(), _failure_of_a_process():
        load_shards(state, storage_reader=ShardReader(folder), no_dist=alone)


@contextmanager
def _alone_without_warning() -> Iterator[None]:
    """torch warns where one process does without a process group, also where it was told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


@contextmanager
def _failure_of_a_process() -> Iterator[None]:
    """torch puts what went wrong on each process into one exception that is no `Exception`: the first is raised as it
    was, so that a full disk is told as one."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        failure, _ = next(iter(error.failures.values()))
        raise failure from error


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Shared ones once, by their first name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters and the persistent buffers, in place."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
    tensors = {name: parameter.detach() for name, parameter in trained_parameters(model)} | buffers
    return {f"model/{name}": value for name, value in tensors.items()}


def _empty(stored: Any, parameter: nn.Parameter) -> Tensor:
    """A tensor to read an entry of the optimizer into: laid out as the parameter where it has its shape."""
    if len(stored.size) > 0 and stored.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=stored.properties.dtype)
    return torch.zeros(stored.size, dtype=stored.properties.dtype)
