"""Layers that compute less than the layers below them. Not the paper's: its mask is the same in every layer.

Two ways, which may be joined:

- *levels*: from a layer on, positions leave the decoder, as elided positions do from the first layer on in the paper.
  Below that layer they are computed, so what stands behind them has read them.
- *deep*: from a layer on only the positions that predict a scored target are computed; every other one keeps the
  state in which it came there and offers keys and values from it. From the last layer on that is exact.

And two that stand alone: the cells of a level may be settled by the attention of the layer below it (FastV), and
single layers may compute a part of the positions each, which the others pass by (random layer-token dropping).

Packed rows only. What a layer has to do travels with the call into it, so that a layer that is recomputed in the
backward pass does the same again.

Legend: B rows, S expanded length, T packed positions, n some of them, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from regate.compaction import pack
from regate.content import most_attended
from regate.errors import UnsupportedModelError
from regate.inputs import kernel_inputs
from regate.last_layer import LayerLimit
from regate.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from regate.attention import PackedRows
    from regate.compaction import Packing
    from regate.types import Decision, VisualKept

PLAN: Final = "regate_layers"
"""Name of the argument in which a layer gets its plan; a hook takes it away before the layer sees it."""


@dataclass(frozen=True, slots=True)
class LayerWork:
    """What neighbouring layers compute that compute alike, over all rows.

    Attributes:
        layers: how many they are.
        keys: positions that offer keys and values.
        computed: positions with queries, output and MLP.
        pairs: of a query and a key that the attention meets.
    """

    layers: int
    keys: int
    computed: int
    pairs: int


@dataclass(eq=False, slots=True)
class LevelInputs:
    """What the layers from `first` on get in place of what the decoder passes to them.

    Attributes:
        base_n: int64, their positions among the packed ones that entered the decoder.
        below_n: int64, among the positions of the level below.
        inputs: of the attention kernel.
        filling: entries at the end that only round their number up.
    """

    first: int
    base_n: Tensor
    below_n: Tensor
    inputs: dict[str, Any]
    filling: int = 0


@dataclass(eq=False, slots=True)
class Attended:
    """A level whose cells are settled by the attention of the layer below it, once: a layer that is recomputed in the
    backward pass meets the same ones.

    Attributes:
        kept: with a choice.
        base: of what enters the decoder.
        active_BS: bool, of the level, with as many cells of each clip as will stay.
        multiple: its number of positions is rounded up to it.
        kernel: of packed rows.
        packing: of the level, once it is settled.
    """

    first: int
    kept: VisualKept
    base: Packing
    active_BS: Tensor
    multiple: int
    kernel: str
    packing: Packing | None = None

    def settle(self, decoder: nn.Module, score_T: Tensor) -> LevelInputs:
        """The level, by what the positions of `base` are attended to."""
        assert self.kept.choice is not None
        count = self.base.flat_T.shape[0] - self.base.filling
        score_S = torch.zeros(self.active_BS.numel(), dtype=score_T.dtype)
        score_S[self.base.flat_T[:count]] = score_T[:count].cpu()
        kept_BS = most_attended(self.kept, score_S).kept_BS
        self.packing = pack(self.active_BS & ~self.kept.choice.visual_BS | kept_BS, multiple=self.multiple)
        return level_inputs(decoder, self.first, self.base, self.base, self.packing, self.kernel)


@dataclass(eq=False, slots=True)
class LayerPlan:
    """What the layers of one forward pass do.

    Attributes:
        total: T, of what entered the decoder.
        levels: by their first layers, ascending.
        deep: the first layer that computes `read_n` alone; the number of layers for none.
        read_n: int64, positions of the last level.
        read_counts: how many of them stand in each row.
        rows: bounds of every level where the kernel is regate's, with the queries of the deep layers.
        own_last: the last layer is limited to `read_n` in another way.
        keeps_left: some positions are read that have left.
        left_1TD: their states, among those of all that came to the first level, once the layers ran.
        attended: the level that the attention below it settles, None for none.
        single: by layer, what single layers compute of what entered the decoder.
    """

    total: int
    levels: tuple[LevelInputs, ...]
    deep: int
    read_n: Tensor | None
    read_counts: tuple[int, ...] = ()
    rows: list[PackedRows] = field(default_factory=list)
    own_last: bool = False
    keeps_left: bool = False
    left_1TD: Tensor | None = None
    attended: Attended | None = None
    single: dict[int, LevelInputs] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sum(rows.calls for rows in self.rows)

    def level_at(self, layer: int) -> LevelInputs | None:
        below = [level for level in self.levels if level.first <= layer]
        return below[-1] if below else None


def plan_layers(
    decoder: nn.Module,
    packings: list[tuple[int, Packing]],
    kernel: str,
    *,
    base_rows: PackedRows | None,
    deep: int,
    read_n: Tensor | None,
    own_last: bool,
    keeps_left: bool,
    attended: Attended | None = None,
    single: Mapping[int, Packing] | None = None,
) -> LayerPlan:
    """The plan of a batch.

    Args:
        packings: first layer and packing of every level, nested; the first is what enters the decoder. On the CPU.
        kernel: of packed rows.
        base_rows: what the kernel knows of the first packing, where it is regate's.
        deep: as `LayerPlan.deep`.
        read_n: likewise, on the CPU.
        own_last: the last layer has its own limit.
        keeps_left, attended: as `LayerPlan`.
        single: by layer, the packing of what a single layer computes.
    """
    device = next(decoder.parameters()).device
    base = packings[0][1]
    levels = []
    below = base
    for first, packing in packings[1:]:
        levels.append(level_inputs(decoder, first, base, below, packing, kernel))
        below = packing
    parts = (single or {}).items()
    alone = {layer: level_inputs(decoder, layer, base, base, packing, kernel) for layer, packing in parts}
    rows = [level.inputs.get("packed_rows") for level in (*levels, *alone.values())]
    return LayerPlan(
        base.flat_T.shape[0],
        tuple(levels),
        deep,
        None if read_n is None else on_device(read_n, device),
        () if read_n is None else _by_row(read_n, packings[-1][1].lengths),
        [of_kernel for of_kernel in (base_rows, *rows) if of_kernel is not None],
        own_last=own_last,
        keeps_left=keeps_left,
        attended=attended,
        single=alone,
    )


def level_inputs(
    decoder: nn.Module, first: int, base: Packing, below: Packing, packing: Packing, kernel: str
) -> LevelInputs:
    """What the layers of a level get.

    Args:
        base, below, packing: what enters the decoder, the level below, and this one; on the CPU.
    """
    device = next(decoder.parameters()).device
    mask_BS = torch.zeros(packing.shape, dtype=torch.bool)
    count = packing.flat_T.shape[0] - packing.filling
    mask_BS.view(-1)[packing.flat_T[:count]] = True
    fill_n = torch.zeros(packing.filling, dtype=torch.int64)
    base_n, below_n = (torch.cat([lower.places_of(mask_BS), fill_n]) for lower in (base, below))
    inputs = kernel_inputs(decoder, packing.to(device), kernel)
    if kernel != "flex_attention":
        inputs["attention_mask"] = None  # what stands in for it was taken away before
    return LevelInputs(first, on_device(base_n, device), on_device(below_n, device), inputs, packing.filling)


def layer_masks(decision: Decision, layers: int) -> dict[int, Tensor]:
    """By layer, bool BS: what each layer but the first and the last computes, where single layers leave positions
    out. Of every row as many of its active positions in each of these layers, rounded up, drawn from the seed, the
    step, the sample and the layer.

    Args:
        layers: of the decoder.
    """
    assert decision.layer_keep is not None
    keep, seed = decision.layer_keep.keep, decision.layer_keep.seed
    masks = {}
    for layer in range(1, layers - 1):
        mask_BS = torch.zeros_like(decision.active_BS)
        for row, sample in enumerate(decision.sample_ids_B.tolist()):
            place_n = decision.active_BS[row].nonzero().squeeze(1)
            draw = np.random.default_rng([seed, decision.step, sample % 2**64, layer])
            chosen_n = draw.permutation(len(place_n))[: ceil(keep * len(place_n))]
            mask_BS[row, place_n[torch.from_numpy(chosen_n)]] = True
        masks[layer] = mask_BS
    return masks


def _by_row(read_n: Tensor, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """How many of the packed positions stand in each row."""
    row_n = torch.searchsorted(torch.tensor(lengths).cumsum(0), read_n, right=True)
    return tuple(torch.bincount(row_n, minlength=len(lengths)).tolist())


class Depth:
    """Hooks on every layer of a decoder: without a plan in the call they change nothing.

    Raises:
        UnsupportedModelError: a layer cannot be limited (`limited` only).
    """

    def __init__(self, decoder: nn.Module, *, limited: bool) -> None:
        self._decoder = decoder
        layers: Any = decoder.layers
        instead = "`deep` needs that"
        self._limits = [LayerLimit(layer, instead=instead) if limited else None for layer in layers]
        self._handles = [
            layer.register_forward_pre_hook(partial(self._enter, index), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]
        self._handles += [
            layer.register_forward_hook(partial(self._leave, index)) for index, layer in enumerate(layers)
        ]
        self._passing: dict[int, tuple[Tensor, Tensor]] = {}

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for limit in self._limits:
            if limit is not None:
                limit.remove()

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan: LayerPlan | None = kwargs.pop(PLAN, None)
        limit = self._limits[index]
        if limit is not None:
            limit.read_n = None
        self._passing.pop(index, None)  # of a call that was stopped within the layer
        if plan is None:
            return args, kwargs
        if plan.attended is not None and plan.attended.packing is None and index == plan.attended.first - 1:
            plan.rows[0].watch = partial(self._settle, plan, plan.attended)
        alone = plan.single.get(index)
        if alone is not None:
            kwargs = self._at_level(index, alone, plan.total, kwargs)
            hidden_1TD: Tensor = args[0] if args else kwargs["hidden_states"]
            kept_n = alone.base_n[: len(alone.base_n) - alone.filling]
            self._passing[index] = hidden_1TD, kept_n
            return _with_states(hidden_1TD.index_select(1, alone.base_n), args, kwargs)
        level = plan.level_at(index)
        if level is not None:
            kwargs = self._at_level(index, level, plan.total, kwargs)
            if level.first == index:
                args, kwargs = _gather_states(plan, level, args, kwargs)
        if index >= plan.deep:
            if limit is not None and not (plan.own_last and index == len(self._limits) - 1):
                limit.read_n = plan.read_n
            if kwargs.get("packed_rows") is not None:
                kwargs["packed_rows"] = _limited_rows(plan, kwargs["packed_rows"])
        return args, kwargs

    def _leave(self, index: int, module: nn.Module, args: Any, output: Any) -> Any:
        """Put back what a single layer computed among what passed it by."""
        if index not in self._passing:
            return None
        hidden_1TD, kept_n = self._passing.pop(index)
        states = output[0] if isinstance(output, tuple) else output
        whole_1TD = hidden_1TD.index_copy(1, kept_n, states[:, : len(kept_n)].to(hidden_1TD.dtype))
        return (whole_1TD, *output[1:]) if isinstance(output, tuple) else whole_1TD

    def _settle(self, plan: LayerPlan, attended: Attended, score_T: Tensor) -> None:
        """The layer below the level says which cells stay."""
        plan.rows[0].watch = None
        level = attended.settle(self._decoder, score_T)
        plan.levels = (level,)
        plan.rows = [plan.rows[0], level.inputs["packed_rows"]]

    def _at_level(self, index: int, level: LevelInputs, total: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments on the positions of its level."""
        out = dict(kwargs)
        for name, value in kwargs.items():
            if name == "position_embeddings":
                out[name] = tuple(part.index_select(-2, level.base_n) for part in value)
            elif name == "position_ids" and isinstance(value, Tensor):
                out[name] = value.index_select(-1, level.base_n)
            elif name == "cache_position":
                out[name] = None
            elif name not in (*level.inputs, "hidden_states") and _runs_along(value, total):
                raise UnsupportedModelError(
                    f"{type(self._decoder).__name__} passes {name} of shape {tuple(value.shape)} to its layers, "
                    "which regate does not know how to gather: positions cannot leave above the first layer"
                )
        masks = level.inputs.get("attention_mask")
        if isinstance(masks, dict):
            masks = masks[self._decoder.config.layer_types[index]]  # type: ignore[union-attr, index]
        return {**out, **level.inputs, "attention_mask": masks}


def _gather_states(plan: LayerPlan, level: LevelInputs, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The states of the positions that stay."""
    hidden_1TD: Tensor = args[0] if args else kwargs["hidden_states"]
    if plan.keeps_left and level is plan.levels[0]:
        plan.left_1TD = hidden_1TD
    return _with_states(hidden_1TD.index_select(1, level.below_n), args, kwargs)


def _with_states(hidden_1nD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's arguments with other states."""
    if args:
        return (hidden_1nD, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden_1nD}


def _limited_rows(plan: LayerPlan, rows: PackedRows) -> PackedRows:
    """The bounds of a level, with the queries of a deep layer: the same object for all of its layers."""
    if plan.rows[-1].read_n is None:
        assert plan.read_n is not None
        plan.rows.append(replace(rows, read_n=plan.read_n, read_counts=plan.read_counts, calls=0))
    return plan.rows[-1]


def _runs_along(value: Any, total: int) -> bool:
    return isinstance(value, Tensor) and value.dim() >= 2 and total in value.shape[:3]
