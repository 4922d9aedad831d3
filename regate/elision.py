"""Token elision (section 3.4): the decoder stack sees the active positions only.

The mask of a step is the same in every layer, so an elided position takes part in nothing between the embeddings and
the last layer. Gathering the active positions once below the unchanged decoder (original rotary positions kept) and
scattering once above it equals Algorithm 1 on every active position. Two hooks on the decoder stack do it; no
model's code changes, and peft wrappers, gradient checkpointing and data parallelism stay as they are.

The gathered positions stand in padded rows, one for each sample, or packed in one row without padding, whose bounds
the attention kernel is given (`regate.attention`). A step that elides nothing is packed too: a baseline and a gated
run then differ in what they compute and not in how.

Legend: B rows, S expanded length, K active length, T active positions of all rows, D hidden size.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.algorithm1 import layerwise
from regate.attention import NAME, PackedRows, check_kernel, choose_kernel, register
from regate.compaction import Compaction, Packing, compact, pack
from regate.config import layer_index
from regate.content import chosen
from regate.depth import PLAN, Attended, Depth, LayerPlan, LayerWork, layer_masks, plan_layers
from regate.errors import ConfigError, LayoutError, UnsupportedModelError
from regate.inputs import (
    check_packable,
    check_rotary_axes,
    check_supported,
    compact_inputs,
    embeddings,
    kernel_of,
    packed_inputs,
    window_of,
    without_mask,
)
from regate.last_layer import LastLayer
from regate.transfer import on_device
from regate.visual import averaged
from regate.wrapping import decoder_of, final_norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from regate.config import Execution, GateConfig, Outputs, Rows
    from regate.types import Decision, VisualKept


@dataclass(slots=True)
class _Plan:
    """What the next forward passes of the decoder do.

    Attributes:
        active_BS: bool, or [L, B, S].
        read_BS: bool, elided positions that the head reads all the same (`align: target`), or None.
        outputs_BS: bool, the active positions that are read, or None.
        masks: where the positions differ by layer: first layer and mask of every level.
        visual: whether the batch has visual positions.
        deep: the first layer that computes what is read alone; None for none.
        kept: the visual positions that are active, where not all of them are.
        any_layer_BS: bool, positions that are active in some layer.
        arrangement: index maths on the CPU; None until it is known which cells stay.
        embeds_BSD: what entered the decoder, for the elided positions on the way out.
        placed: the index maths on the device of the embeddings.
        rows: what a packed batch's kernel knows, where it is regate's.
        outputs_n: packed positions whose output is read, on the CPU until the decoder runs; None for all.
        levels: first layer and packing of the levels above the first one.
        layers: what every layer does, where layers differ.
        single: by layer, bool, what single layers compute.
        used: whether the decoder ran.
    """

    active_BS: Tensor
    read_BS: Tensor | None
    outputs_BS: Tensor | None
    masks: tuple[tuple[int, Tensor], ...]
    visual: bool
    deep: int | None
    kept: VisualKept | None
    any_layer_BS: Tensor
    arrangement: Compaction | Packing | None = None
    embeds_BSD: Tensor | None = None
    placed: Compaction | Packing | None = None
    rows: PackedRows | None = None
    outputs_n: Tensor | None = None
    levels: tuple[tuple[int, Packing], ...] = ()
    layers: LayerPlan | None = None
    single: Mapping[int, Tensor] = field(default_factory=dict)
    used: bool = False

    @property
    def waits(self) -> bool:
        """Whether the embeddings say which cells enter the decoder."""
        return self.kept is not None and self.kept.choice is not None and self.kept.from_layer is None


class Elision:
    """Made by `attach`. `with elide(decision): ...` runs the forward passes inside it on the active positions.

    Attributes:
        rows, outputs: as `attach` was asked.
        kernel: what computes the attention of packed rows, chosen at the first of them and the same from then on;
            None before, and with padded rows.
    """

    def __init__(
        self,
        model: nn.Module,
        execution: Execution = "compact",
        *,
        rows: Rows = "padded",
        kernel: str | None = None,
        outputs: Outputs = "active",
        multiple: int = 1,
    ) -> None:
        self._decoder = decoder_of(model)
        self.rows = rows
        self.kernel = kernel
        self.outputs = outputs
        self._execution = execution
        self._multiple = multiple
        self._loaded = kernel_of(self._decoder)
        if rows == "packed":
            self._check_packing(kernel)
        elif outputs == "predictors":
            raise ConfigError('outputs="predictors" limits the last layer of packed rows: attach(rows="packed")')
        if rows == "packed" or execution != "loss_only":
            check_supported(self._decoder)
        self._signature = inspect.signature(self._decoder.forward)
        self._last_layer = LastLayer(self._decoder) if outputs == "predictors" else None
        self._depth: Depth | None = None
        self._limits_depth = False
        self._limited = ExitStack()
        self._written_out = ExitStack()
        self._plan: _Plan | None = None
        self._mask_checked = False
        self._handles = [
            self._decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            self._decoder.register_forward_hook(self._after),
        ]
        if rows == "packed":
            self._start_packing()

    @contextmanager
    def __call__(self, decision: Decision, *, active_LBS: Tensor | None = None) -> Iterator[None]:
        """Elide what the decision elides. With padded rows, one that elides nothing leaves the model untouched.

        Args:
            decision: of the batch that the model gets inside.
            active_LBS: bool, a mask for each layer in place of the decision's (`execution="layerwise"` only).

        Raises:
            UnsupportedModelError: the model never called its decoder stack, or cannot be elided exactly.
        """
        if active_LBS is not None and self._execution != "layerwise":
            raise ConfigError('a mask for each layer needs attach(model, execution="layerwise")')
        by_layer = decision.levels or decision.layer_keep is not None
        if self._execution == "layerwise" and by_layer and active_LBS is None:
            active_LBS = self._masks_by_layer(decision)
        elides = active_LBS is not None or (decision.elides and self._execution != "loss_only")
        single = {} if self._execution == "layerwise" else self._single_layers(decision)
        if not elides and decision.deep is None and self.rows == "padded":
            yield
            return
        levels, deep = self._depth_of(decision)
        active_BS = levels[-1][1] if levels else decision.active_BS
        dead_BS = decision.predictor_BS & ~active_BS
        read_BS = dead_BS if bool(dead_BS.any()) else None
        mask = decision.active_BS if active_LBS is None else active_LBS
        outputs_BS = decision.predictor_BS & active_BS
        visual = decision.counts.visual > 0
        with self.only(
            mask,
            read_BS,
            visual=visual,
            outputs_BS=outputs_BS,
            levels=levels,
            deep=deep,
            kept=decision.visual,
            single=single,
        ):
            yield

    def check(self, config: GateConfig) -> None:
        """Refuse a gate that this elision cannot carry out, before the first step.

        Raises:
            ConfigError, UnsupportedModelError: say why.
        """
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        asked = [("from_layer", config.from_layer), ("deep", config.deep)]
        asked += [("keep_below", level.layer) for level in config.keep_below]
        asked += [("visual.from_layer", config.visual.from_layer)] if config.visual is not None else []
        for name, layer in asked:
            if layer is None:
                continue
            index = layer_index(layer, layers, name)
            if self.rows == "padded" and self._execution != "layerwise" and index:
                raise ConfigError(f"{name} needs packed rows")
            if name == "deep" and index < layers:
                self._start_depth(limited=True)
            if name == "visual.from_layer" and index == 0:
                raise ConfigError(f"visual.from_layer {layer} of {layers} layers: below it no layer attends")
        if config.layer_keep is not None:
            self._check_single(layers)
        leaves = config.keep_below[-1].layer if config.keep_below else config.from_layer
        if leaves is not None and config.deep is not None:
            _check_order(*(layer_index(x, layers, "") for x in (leaves, config.deep)))

    def _depth_of(self, decision: Decision) -> tuple[tuple[tuple[int, Tensor], ...], int | None]:
        """First layer and mask of every level, and the first deep layer, of a decision for this decoder."""
        if self._execution == "layerwise":
            if decision.deep is not None:
                raise ConfigError("deep needs execution: compact")
            return (), None
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        numbered = [(layer_index(level.first, layers, "from_layer"), level.active_BS) for level in decision.levels]
        by_layer = dict(numbered)  # of two parts that mean the same layer the upper one
        levels = tuple(level for level in by_layer.items() if level[0] < layers)
        deep = layer_index(decision.deep, layers, "deep") if decision.deep is not None else layers
        if (len(levels) > 1 or deep < layers) and self.rows == "padded":
            raise ConfigError(
                'positions that leave above the first layer need packed rows: attach(model, rows="packed")'
            )
        if levels:
            _check_order(levels[-1][0], deep)
        return levels, deep if deep < layers else None

    def _single_layers(self, decision: Decision) -> dict[int, Tensor]:
        """By layer, what it alone computes."""
        if decision.layer_keep is None:
            return {}
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        self._check_single(layers)
        return layer_masks(decision, layers)

    def _check_single(self, layers: int) -> None:
        if self.rows == "padded" and self._execution != "layerwise":
            raise ConfigError('layer_keep needs packed rows: attach(model, rows="packed")')
        if layers < 3:
            raise ConfigError(f"layer_keep leaves the first and the last layer whole, and the decoder has {layers}")

    def _masks_by_layer(self, decision: Decision) -> Tensor:
        """bool [L, B, S] of a decision whose layers differ."""
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        masks = [decision.levels[0].active_BS if decision.levels else decision.active_BS] * layers
        for layer, mask_BS in self._single_layers(decision).items():
            masks[layer] = mask_BS
        for level in decision.levels:
            first = layer_index(level.first, layers, "from_layer")
            masks[first:] = [level.active_BS] * (layers - first)
        return torch.stack(masks)

    def _start_depth(self, *, limited: bool) -> Depth:
        """The hooks on the layers: from the first batch on that needs them."""
        if self._depth is None or (limited and not self._limits_depth):
            if self._depth is not None:
                self._depth.remove()
            self._depth, self._limits_depth = Depth(self._decoder, limited=limited), limited
        return self._depth

    @contextmanager
    def only(
        self,
        active_BS: Tensor,
        read_BS: Tensor | None = None,
        *,
        visual: bool = False,
        outputs_BS: Tensor | None = None,
        levels: tuple[tuple[int, Tensor], ...] = (),
        deep: int | None = None,
        kept: VisualKept | None = None,
        single: Mapping[int, Tensor] | None = None,
    ) -> Iterator[None]:
        """Run the decoder on the positions of a mask (bool BS), whoever decided it.

        Args:
            active_BS: bool, or [L, B, S] for one mask a layer.
            read_BS: bool, elided positions that are read all the same.
            visual: whether the batch has visual positions.
            outputs_BS: bool, the active positions that are read; for `outputs="predictors"` and `deep`.
            levels: where they differ by layer: first layer and mask, ascending, each mask within the one before; in
                place of `active_BS` (packed rows).
            deep: the first layer that computes `outputs_BS` alone (packed rows).
            kept: the visual positions of the mask, where not all of them are in it.
            single: by layer, bool, the positions of the mask that it alone computes (packed rows).
        """
        any_layer_BS = active_BS if active_BS.dim() == 2 else active_BS.any(dim=0)
        if levels:
            any_layer_BS = levels[0][1]
        plan = _Plan(active_BS, read_BS, outputs_BS, levels, visual, deep, kept, any_layer_BS, single=single or {})
        with self._open(plan):
            if not plan.waits:
                self._arrange(plan)
            yield
        if not plan.used:
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__} was not called inside `with elide(...)`: the model bypasses the "
                "decoder stack that get_decoder() names, or another model ran"
            )

    def _arrange(self, plan: _Plan) -> None:
        """Where each position stands, once it is known which ones are active."""
        arrange = pack if self.rows == "packed" else compact
        plan.arrangement = arrange(plan.any_layer_BS, multiple=self._multiple)
        plan.levels = tuple((first, pack(mask_BS, multiple=self._multiple)) for first, mask_BS in plan.masks[1:])
        if (self._last_layer is not None or plan.deep is not None) and plan.outputs_BS is not None:
            last = plan.levels[-1][1] if plan.levels else plan.arrangement
            assert isinstance(last, Packing)
            plan.outputs_n = last.places_of(plan.outputs_BS)
        if self._execution == "layerwise":
            layers = len(self._decoder.layers)  # type: ignore[arg-type]
            by_layer = plan.active_BS.dim() == 3
            active_LBS = plan.active_BS if by_layer else plan.active_BS.expand(layers, *plan.active_BS.shape)
            self._written_out.close()
            self._written_out.enter_context(layerwise(self._decoder, active_LBS))

    def _choose(self, plan: _Plan, embeds_BSD: Tensor) -> VisualKept:
        """Settle which cells stay, by what they show."""
        assert plan.kept is not None
        assert plan.kept.choice is not None
        text_BS = ~plan.kept.choice.visual_BS
        kept = chosen(plan.kept, embeds_BSD)
        plan.active_BS = plan.active_BS & text_BS | kept.kept_BS
        plan.any_layer_BS = plan.any_layer_BS & text_BS | kept.kept_BS
        plan.masks = tuple((first, mask_BS & text_BS | kept.kept_BS) for first, mask_BS in plan.masks)
        self._arrange(plan)
        return kept

    def executed(self, decision: Decision) -> int:
        """Positions that the decoder computes for a decision's batch, padding among them; known beforehand. Where
        they differ by layer, the mean over the layers, rounded up; keys of deep layers count."""
        levels, _ = self._depth_of(decision)
        if len(levels) > 1:
            return self._executed_by_level(levels)
        if decision.layer_keep is not None:
            masks = list(self._masks_by_layer(decision))
            return self._executed_by_level(tuple(enumerate(masks)))
        rows, length = decision.active_BS.shape
        count_B = (levels[0][1] if levels else decision.active_BS).sum(dim=1)
        if self.rows == "packed":
            return max(-(-int(count_B.sum()) // self._multiple), 1) * self._multiple
        if self._execution == "layerwise" and decision.elides:
            return int(count_B.sum())
        if self._execution != "compact" or not decision.elides:
            return rows * length
        return rows * min(max(-(-int(count_B.max()) // self._multiple), 1) * self._multiple, length)

    def _executed_by_level(self, levels: tuple[tuple[int, Tensor], ...]) -> int:
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        ends = [*(first for first, _ in levels[1:]), layers]
        total = 0
        for (first, active_BS), end in zip(levels, ends, strict=True):
            total += (end - first) * max(-(-int(active_BS.sum()) // self._multiple), 1) * self._multiple
        return -(-total // layers)

    def work(self, decision: Decision) -> tuple[LayerWork, ...]:
        """What the layers compute for a decision whose layers differ, rounding left out; the last layer stands alone.
        Asked after the first step: the kernel decides whether queries that nobody reads are computed."""
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        levels, deep = self._depth_of(decision)
        if self._execution == "layerwise":
            masks = list(self._masks_by_layer(decision))
        else:
            masks = [decision.active_BS] * layers
            for first, active_BS in levels:
                masks[first:] = [active_BS] * (layers - first)
            for layer, active_BS in self._single_layers(decision).items():
                masks[layer] = active_BS
        read_BS = decision.predictor_BS & masks[-1]
        deep = layers if deep is None else deep
        work: list[LayerWork] = []
        for layer, active_BS in enumerate(masks):
            place_BS = active_BS.cumsum(dim=1)
            limited = layer >= deep
            alone = limited or (layer == layers - 1 and self._last_layer is not None)
            keys, queries_BS = int(active_BS.sum()), read_BS if limited and self.kernel == "sdpa" else active_BS
            computed = int(read_BS.sum()) if alone else keys
            this = LayerWork(1, keys, computed, int(place_BS[queries_BS].sum()))
            if work and layer < layers - 1 and replace(work[-1], layers=1) == this:
                work[-1] = replace(this, layers=work[-1].layers + 1)
            else:
                work.append(this)
        return tuple(work)

    def remove(self) -> None:
        """Take the hooks off the model. The backward pass of packed rows has to be over, if layers are recomputed."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for hooks in (self._last_layer, self._depth):
            if hooks is not None:
                hooks.remove()
        config: Any = self._decoder.config
        if self.rows == "packed" and kernel_of(self._decoder) == NAME:
            config._attn_implementation = self._loaded

    def _check_packing(self, kernel: str | None) -> None:
        if self._execution == "layerwise":
            raise ConfigError("layerwise execution goes sample by sample: its rows cannot be packed")
        if self._loaded == NAME:
            raise ConfigError("the rows of this model are packed by another attach; remove() that one first")
        check_packable(self._decoder)
        choose_kernel(self._loaded, torch.device("cpu"), torch.float32)
        if kernel is None:
            return
        if self._loaded != "sdpa":
            raise ConfigError(
                f'kernel "{kernel}" is for a model loaded with sdpa: this one computes packed rows by {self._loaded}'
            )
        check_kernel(kernel)

    def _start_packing(self) -> None:
        """Once, and not for each step: layers that are recomputed in the backward pass have to find it unchanged."""
        config: Any = self._decoder.config
        layers: Any = self._decoder.layers
        if self._loaded == "sdpa":
            config._attn_implementation = register()
        self._handles += [layer.register_forward_pre_hook(without_mask, with_kwargs=True) for layer in layers]

    @contextmanager
    def _open(self, plan: _Plan) -> Iterator[None]:
        if self._plan is not None:
            raise ConfigError("`with elide(...)` is already open on this model")
        if not self._handles:
            raise ConfigError("this elision was removed from its model; attach again")
        self._plan = plan
        try:
            yield
        finally:
            self._plan = None
            self._limited.close()
            self._written_out.close()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self._plan
        if plan is None:
            return None
        plan.used = True
        inputs = self._named(args, kwargs)
        embeds_BSD = embeddings(module, inputs)
        if embeds_BSD.shape[:2] != plan.any_layer_BS.shape:
            raise LayoutError(
                f"the decoder got {tuple(embeds_BSD.shape[:2])} positions, the decision is for "
                f"{tuple(plan.any_layer_BS.shape)}: the layout must be in expanded length, visual tokens included"
            )
        if plan.visual:
            check_rotary_axes(module, inputs.get("position_ids"))
        if plan.kept is not None and plan.kept.from_layer is None:
            kept = self._choose(plan, embeds_BSD) if plan.waits else plan.kept
            inputs, embeds_BSD = self._keep_visual(module, inputs, embeds_BSD, kept)
        plan.embeds_BSD = embeds_BSD
        if self._execution == "layerwise":
            return (), inputs
        assert plan.arrangement is not None
        plan.placed = plan.arrangement.to(embeds_BSD.device)
        if isinstance(plan.placed, Compaction):
            assert isinstance(plan.arrangement, Compaction)
            return (), compact_inputs(module, inputs, embeds_BSD, plan.placed, full=plan.arrangement.full)
        self._check_mask(inputs.get("attention_mask"), plan.any_layer_BS)
        packed = packed_inputs(module, inputs, embeds_BSD, plan.placed, self._kernel_for(embeds_BSD))
        plan.rows = packed.get("packed_rows")
        if plan.levels or plan.single or plan.deep is not None:
            self._plan_layers(plan, packed, inputs)
        if plan.outputs_n is not None:
            plan.outputs_n = on_device(plan.outputs_n, embeds_BSD.device)
            if self._last_layer is not None:
                self._limited.enter_context(self._last_layer.only(plan.outputs_n))
        return (), packed

    def _keep_visual(
        self, module: nn.Module, inputs: dict[str, Any], embeds_BSD: Tensor, kept: VisualKept
    ) -> tuple[dict[str, Any], Tensor]:
        """The stack's arguments and embeddings with the blocks averaged, and without the features of elided cells."""
        added = inputs.get("deepstack_visual_embeds")
        if added is not None and kept.blocks is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} adds features of the pictures after its first layers, for each cell: cells "
                "cannot be averaged; set visual.how to one that leaves cells out (pattern, random, frames, diverse, "
                "temporal)"
            )
        if kept.blocks is not None:
            embeds_BSD = averaged(embeds_BSD, kept.blocks)
        if self._execution == "layerwise":
            inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
            return {**inputs, "inputs_embeds": embeds_BSD}, embeds_BSD
        if added is not None:
            kept_v = on_device(kept.kept_v, embeds_BSD.device)
            inputs = {**inputs, "deepstack_visual_embeds": [level_vD.index_select(0, kept_v) for level_vD in added]}
        return inputs, embeds_BSD

    def _plan_layers(self, plan: _Plan, packed: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Let the layers differ. What leaves the last one is that of the last level."""
        assert isinstance(plan.arrangement, Packing)
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        first = min(*(first for first, _ in plan.levels), layers if plan.deep is None else plan.deep, layers)
        added = inputs.get("deepstack_visual_embeds")
        if added is not None and first < len(added):
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__} adds features of the pictures after each of its first {len(added)} "
                f"layers, and from layer {first} on it would not compute all positions: set from_layer and deep to "
                f"{len(added)} or more"
            )
        self._start_depth(limited=plan.deep is not None)
        assert self.kernel is not None
        # The last layer has a limit of its own where that is on.
        plan.layers = packed[PLAN] = plan_layers(
            self._decoder,
            [(0, plan.arrangement), *plan.levels],
            self.kernel,
            base_rows=plan.rows,
            deep=layers if plan.deep is None else plan.deep,
            read_n=plan.outputs_n,
            own_last=self._last_layer is not None,
            keeps_left=plan.read_BS is not None,
            attended=self._attended(plan),
            single={layer: pack(mask_BS, multiple=self._multiple) for layer, mask_BS in plan.single.items()},
        )
        if plan.levels:  # settled anew where the attention decides
            plan.placed = plan.levels[-1][1].to(packed["inputs_embeds"].device)

    def _attended(self, plan: _Plan) -> Attended | None:
        """The level whose cells the layer below it settles."""
        if plan.kept is None or plan.kept.from_layer is None or plan.kept.choice is None or not plan.levels:
            return None
        if plan.rows is None:
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__} computes its attention by {self.kernel}, which regate does not see: "
                'visual.how attention needs a model loaded with attn_implementation="sdpa"'
            )
        assert isinstance(plan.arrangement, Packing)
        assert self.kernel is not None
        first, active_BS = plan.masks[-1]
        return Attended(first, plan.kept, plan.arrangement, active_BS, self._multiple, self.kernel)

    def _kernel_for(self, embeds_BSD: Tensor) -> str:
        """Chosen by the first batch. A later one that it would not be exact for is refused."""
        device, dtype = embeds_BSD.device, embeds_BSD.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        window = window_of(self._decoder)
        windowed = window is not None and window < embeds_BSD.shape[1]
        if self.kernel is None:
            dropout = float(getattr(self._decoder.config, "attention_dropout", 0.0) or 0.0)
            self.kernel = choose_kernel(self._loaded, device, dtype, windowed=windowed, dropout=dropout)
        elif windowed and self.kernel not in ("sdpa", "flex_attention"):
            raise UnsupportedModelError(
                f"{self.kernel} measures the sliding window of {window} on packed rows, not on positions, and this "
                f'batch has rows of {embeds_BSD.shape[1]}: attach(model, rows="packed", kernel="sdpa")'
            )
        return self.kernel

    def _check_mask(self, mask: Any, active_BS: Tensor) -> None:
        """Once: packed rows do not read the mask, so it must not close what the layout calls valid."""
        if self._mask_checked or not isinstance(mask, Tensor) or mask.dim() != 2:
            return
        self._mask_checked = True
        closed_B = (active_BS & (mask.cpu() == 0)).any(dim=1)
        if bool(closed_B.any()):
            raise LayoutError(
                f"row {int(closed_B.nonzero()[0])}: the attention mask closes a position that the layout does not "
                "call padding"
            )

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        plan = self._plan
        if plan is None:
            return None
        assert plan.embeds_BSD is not None
        self._check_calls(plan)
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        self._limited.close()
        if plan.layers is not None and plan.layers.attended is not None:
            assert plan.layers.attended.packing is not None
            plan.placed = plan.layers.attended.packing.to(hidden.device)
        if plan.placed is not None:
            if isinstance(plan.placed, Packing):
                hidden_BSD = plan.placed.scatter(hidden, plan.embeds_BSD, plan.outputs_n)
            else:
                hidden_BSD = plan.placed.scatter(hidden, plan.embeds_BSD)
            if plan.read_BS is not None:
                hidden_BSD = self._read_elided(plan.read_BS, hidden_BSD, self._left_states(plan))
        else:
            kept_BS = plan.any_layer_BS if plan.read_BS is None else plan.any_layer_BS | plan.read_BS
            hidden_BSD = torch.where(kept_BS.to(hidden.device)[:, :, None], hidden, plan.embeds_BSD)
        plan.embeds_BSD = plan.placed = plan.rows = plan.layers = None
        if isinstance(output, tuple):
            return (hidden_BSD, *output[1:])
        output.last_hidden_state = hidden_BSD
        return output

    def _left_states(self, plan: _Plan) -> Tensor:
        """BSD: what the residual carried of the positions that left: their embeddings, or their states where lower
        layers computed them."""
        assert plan.embeds_BSD is not None
        if plan.layers is None or not plan.levels:
            return plan.embeds_BSD
        left_1TD, plan.layers.left_1TD = plan.layers.left_1TD, None
        assert left_1TD is not None
        assert isinstance(plan.arrangement, Packing)
        return plan.arrangement.to(left_1TD.device).scatter(left_1TD, plan.embeds_BSD)

    def _check_calls(self, plan: _Plan) -> None:
        layers = len(self._decoder.layers)  # type: ignore[arg-type]
        if plan.rows is None:
            return
        calls = plan.rows.calls if plan.layers is None else plan.layers.calls
        if calls < layers:
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__}: {calls} of {layers} layers passed the bounds of the packed "
                "rows on to their attention, so samples would see each other; keep padded rows "
                '(attach(model, rows="padded"))'
            )

    def _read_elided(self, read_BS: Tensor, hidden_BSD: Tensor, embeds_BSD: Tensor) -> Tensor:
        """Elided positions whose output the head reads: the residual carried the embedding to the final norm."""
        norm = final_norm(self._decoder)
        if norm is None:
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__}: `align: target` reads elided positions after the final norm, "
                "which was not found; use align: predictor"
            )
        place_n = on_device(read_BS.flatten().nonzero().squeeze(1), hidden_BSD.device)
        rows_nD = norm(embeds_BSD.flatten(0, 1).index_select(0, place_n))
        return hidden_BSD.flatten(0, 1).index_copy(0, place_n, rows_nD).view_as(hidden_BSD)

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments of the decoder by name."""
        bound = self._signature.bind(*args, **kwargs)
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            else:
                named[name] = value
        return named


def _check_order(from_layer: int, deep: int) -> None:
    if from_layer > deep:
        raise ConfigError(
            f"from_layer {from_layer} is above deep {deep}: above that layer the predictors alone are computed, and "
            "an elided word cannot leave any more"
        )


def attach(
    model: nn.Module,
    *,
    execution: Execution = "compact",
    rows: Rows = "padded",
    kernel: str | None = None,
    outputs: Outputs = "active",
    multiple: int = 1,
) -> Elision:
    """Hook a model's decoder stack, below whatever wraps the model.

    Args:
        model: a transformers model, or one wrapped by peft, `ScoredLM` or data parallelism. Nothing changes until
            `with elide(decision)` is open.
        execution: "compact" (the fast path), "layerwise" (Algorithm 1 as printed, slow) or "loss_only" (no elision).
        rows: "padded", or "packed" into one row without padding, in steps that elide nothing too.
        kernel: of packed rows, for a model loaded with sdpa: "flash_attention_3", "flash_attention_2", "varlen"
            (torch's own) or "sdpa" (row after row); None takes the first of them that can run. A model loaded with
            flash attention or flex attention computes packed rows by that.
        outputs: which positions the decoder's output holds. With "predictors" (packed rows only) those alone that
            predict a scored target, which is all that `ScoredLM`, `scored_rows` and `causal_token_loss` read: the
            last layer computes queries, output and MLP for them alone, and every other position holds its embedding.
        multiple: active lengths (of packed rows: all of them together) are rounded up to it, so that a compiled
            model sees fewer shapes.

    Raises:
        UnsupportedModelError: elision would not be exact on this model, or its rows cannot be packed.
        ConfigError: the kernel is not there, or the settings contradict each other.
    """
    return Elision(model, execution, rows=rows, kernel=kernel, outputs=outputs, multiple=multiple)
