"""What training changes, on the disk: trained parameters, buffers and the optimizer's moments, by torch's distributed
checkpoint. Each process writes its part, and any number of processes reads the whole, sharded or not.

Frozen parameters stay out: they are those of the start weights, whose fingerprint belongs to the run. So does the
learning rate, a function of the step. Entries are named `model/NAME` and `optimizer/KEY/NAME`, with the parameter's
name in the whole model, which is the same however the model is wrapped.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor, nn


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state into `folder`; every process comes here.

    Args:
        model: without the wrapper of data parallelism; its parameters may be sharded.
    """
    from torch.distributed.checkpoint.state_dict_saver import save as save_shards

    state = _model_tensors(model)
    for name, parameter in _trained(model):
        # A parameter that no step has reached yet has no moments.
        state |= {f"optimizer/{key}/{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    with _alone_without_warning(), _failure_of_a_process():
        save_shards(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Read what any number of processes wrote into a model and its optimizer; every process comes here."""
    from torch.distributed.checkpoint.state_dict_loader import load as load_shards

    from harness.training.placement.shard_reader import ShardReader

    entries = ShardReader(folder).read_metadata().state_dict_metadata
    state = _model_tensors(model)
    moments: dict[str, dict[str, Tensor]] = {}
    parameters = dict(_trained(model))
    for entry, stored in entries.items():
        if entry.startswith("optimizer/"):
            _, key, name = entry.split("/", 2)
            state[entry] = _empty(stored, parameters[name])
            moments.setdefault(name, {})[key] = state[entry]
    with _alone_without_warning(), _failure_of_a_process():
        load_shards(state, storage_reader=ShardReader(folder), no_dist=not dist.is_initialized())
    groups = optimizer.state_dict()["param_groups"]
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    by_number = {number: moments[name] for number, name in enumerate(order) if name in moments}
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})


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


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Shared ones once, by their first name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trained parameters and the persistent buffers, in place."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: value for name, value in model.state_dict().items() if name not in parameters}
    tensors = {name: parameter.detach() for name, parameter in _trained(model)} | buffers
    return {f"model/{name}": value for name, value in tensors.items()}


def _empty(stored: Any, parameter: nn.Parameter) -> Tensor:
    """A tensor to read an entry of the optimizer into: laid out as the parameter where it has its shape."""
    if len(stored.size) > 0 and stored.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=stored.properties.dtype)
    return torch.zeros(stored.size, dtype=stored.properties.dtype)
