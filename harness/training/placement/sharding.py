"""A model in parts: which modules are put together at once, on which processes their parts lie, and how the weights
get there and back.

torch's modules for sharding are imported where they are used: they take two seconds that other runs do without.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from regate import ScoredLM
from regate.wrapping import decoder_of, final_norm, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

PREFIX = "model."
"""What `regate.ScoredLM` puts before the names of the model within."""


# --- what is put together at once ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """Modules whose weights are put together before the first of them computes and taken apart after the last.

    Attributes:
        kept: whole from the forward to the backward pass, since that begins where the forward pass ends.
    """

    modules: tuple[nn.Module, ...]
    kept: bool = False


def units_of(scored: nn.Module, before: Iterable[nn.Module] = ()) -> list[Unit]:
    """Each decoder layer, the embeddings, and the last norm with the head; embeddings that are the head's weights are
    one unit with it. Every process calls each of them once in a micro-batch, so their collectives match.

    Args:
        before: modules in front of the decoder of which that is true as well; those without a trained parameter are
            no unit.

    Returns:
        The units, the layers first; what is in none of them belongs to the whole model.
    """
    inner: Any = unwrap(scored)
    decoder: Any = decoder_of(scored)
    embeddings, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    norm = final_norm(decoder)
    last = (head,) if norm is None else (norm, head)
    units = [Unit((layer,)) for layer in decoder.layers]
    units += [Unit((module,)) for module in before if any(p.requires_grad for p in module.parameters())]
    if {id(p) for p in embeddings.parameters()} & {id(p) for p in head.parameters()}:
        return [*units, Unit((embeddings, *last), kept=True)]
    return [*units, Unit((embeddings,)), Unit(last, kept=True)]


def whole_parameters(model: nn.Module, units: Sequence[Unit]) -> dict[str, nn.Parameter]:
    """Frozen parameters outside of all units, such as those of a frozen tower, by every name that they have. They
    stay whole on every process and need no collective."""
    modules = chain.from_iterable(unit.modules for unit in units)
    taken = {id(p) for module in modules for p in module.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if not p.requires_grad and id(p) not in taken}


# --- which processes hold the parts ----------------------------------------------------------------------


def make_mesh(device: torch.device, nodes: int) -> DeviceMesh:
    """All processes in one row, or a row for each machine: parts over the processes of a row, equal ones down the
    columns.

    Args:
        nodes: rows, each of the same number of processes, whose ranks follow each other.
    """
    from torch.distributed.device_mesh import init_device_mesh

    world = dist.get_world_size()
    if nodes == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (nodes, world // nodes), mesh_dim_names=("replicate", "shard"))


# --- a model without its weights, and the weights --------------------------------------------------------
# Only the main process ever holds all weights at once, on the CPU. The others get the model without its weights,
# and then their parts.


@dataclass(slots=True)
class Blueprint:
    """A model whose parameters are shapes alone (torch's meta device); its buffers have their values.

    Attributes:
        model: on every process.
        plain: another one like it, to be filled for a checkpoint; None but on the main process.
        weights: of the whole model by name, until they are handed out; empty but on the main process. Those that
            training computes with in another type stay.
    """

    model: nn.Module
    plain: nn.Module | None
    weights: dict[str, Any]


def make_blueprint(build: Callable[[], nn.Module]) -> Blueprint:
    """What the main process's `build` makes, without the weights, on every process."""
    plain: nn.Module | None = None
    weights: dict[str, Any] = {}
    if dist.get_rank() == 0:
        full = build()
        named = full.named_parameters(remove_duplicate=False)
        weights = {PREFIX + name: value.detach() for name, value in named}
        plain = with_parameters(full, lambda _, value: torch.empty_like(value, device="meta"))
    sent = [plain]
    dist.broadcast_object_list(sent, src=0)
    model = copy.deepcopy(plain) if plain is not None else sent[0]
    assert model is not None
    return Blueprint(model, plain, weights)


def shard(
    scored: nn.Module,
    blueprint: Blueprint,
    units: Sequence[Unit],
    mesh: DeviceMesh,
    device: torch.device,
    *,
    half: bool,
    offload: bool = False,
    ahead: int = 1,
) -> None:
    """Spread the weights of `blueprint.model`, which `scored` wraps, over the processes of `mesh`;
    `blueprint.weights` are given up.

    Args:
        half: compute in bfloat16. The parts, their gradients' sum and the optimizer stay in float32; what is whole
            and frozen is held in bfloat16.
        offload: the parts, their gradients and the optimizer's state lie in the machine's memory.
        ahead: decoder layers whose weights are asked for before they are needed.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
    from torch.distributed.tensor import DTensor

    policy = MixedPrecisionPolicy()
    if half:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    place = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    common: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "offload_policy": place}
    whole = set(whole_parameters(scored, units).values())
    for unit in units:
        fully_shard(list(unit.modules), reshard_after_forward=not unit.kept, **common)
    fully_shard(scored, ignored_params=whole, **common)
    _prefetch(scored, ahead)

    def placed(value: Tensor) -> Tensor:
        if not value.is_meta:
            return value.to(device)
        if isinstance(value, DTensor):
            return torch.empty_like(value, device="cpu" if offload else device)
        dtype = torch.bfloat16 if half and value.dtype == torch.float32 else value.dtype
        return torch.empty_like(value, device=device, dtype=dtype)

    scored._apply(placed)  # type: ignore[no-untyped-call]
    blueprint.weights = _hand_out(scored, blueprint.weights, device)


def spread_for_scoring(
    build: Callable[[], nn.Module], device: torch.device, nodes: int
) -> tuple[ScoredLM, ProcessGroup]:
    """A frozen model in parts over the processes of each machine, in the type that its weights have; every process
    comes here. It is for forward passes alone: a unit is taken apart as soon as it has computed.

    Args:
        build: makes the whole model, on the CPU of the main process only.
        nodes: machines, each of the same number of processes, whose ranks follow each other.

    Returns:
        The model, and the processes that must do their passes together.
    """
    blueprint = make_blueprint(build)
    scored, mesh = ScoredLM(blueprint.model), make_mesh(device, nodes)
    units = [replace(unit, kept=False) for unit in units_of(scored)]
    shard(scored, blueprint, units, mesh, device, half=False)
    return scored, mesh.get_group("shard")


def _prefetch(scored: nn.Module, ahead: int) -> None:
    decoder: Any = decoder_of(scored)
    layers = list(decoder.layers)
    for place, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[place + 1 : place + 1 + ahead])
        layer.set_modules_to_backward_prefetch(layers[max(0, place - ahead) : place][::-1])


@torch.no_grad()
def _hand_out(scored: nn.Module, weights: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Fill a model in parts from the main process, a parameter at a time; the weights that lost digits on the way."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    main, done, rounded = dist.get_rank() == 0, set(), {}
    for name, parameter in scored.named_parameters(remove_duplicate=False):
        value = weights.pop(name, None)
        if id(parameter) in done:
            continue
        done.add(id(parameter))
        if main:
            assert value is not None
            if value.dtype != parameter.dtype:
                rounded[name] = value
            full = value.to(device, parameter.dtype).contiguous()
        else:
            full = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        dist.broadcast(full, src=0)
        if isinstance(parameter, DTensor):
            part = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.to_local().copy_(part.to_local())
        else:
            parameter.copy_(full)
    return rounded


@torch.no_grad()
def gather_model(scored: nn.Module, blueprint: Blueprint) -> nn.Module | None:
    """The whole model on the CPU of the main process, None on the others; every process comes here."""
    from torch.distributed.tensor import DTensor

    state: dict[str, Tensor] = {}
    for name, parameter in scored.named_parameters():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if blueprint.plain is not None:
            exact = blueprint.weights.get(name)
            state[name] = value.detach().to("cpu", copy=True) if exact is None else exact
    if blueprint.plain is None:
        return None
    model = with_parameters(blueprint.plain, lambda name, _: state[PREFIX + name])
    buffers = {name: value for name, value in scored.named_buffers() if name in scored.state_dict()}
    for name, value in model.named_buffers():
        if PREFIX + name in buffers:
            value.copy_(buffers[PREFIX + name])
    return model


def with_parameters(model: nn.Module, value: Callable[[str, nn.Parameter], Tensor]) -> nn.Module:
    """A copy of a model with other values of its parameters. Those that are shared stay shared."""
    memo: dict[int, Any] = {
        id(old): nn.Parameter(value(name, old), requires_grad=old.requires_grad)
        for name, old in model.named_parameters()
    }
    return copy.deepcopy(model, memo)
