"""Token elision (section 3.4): the decoder stack sees the active positions only.

The mask of a step is the same in every layer, so an elided position takes part in nothing between the embeddings and
the last layer. Gathering the active positions once below the unchanged decoder (original rotary positions kept) and
scattering once above it equals Algorithm 1 on every active position. Two hooks on the decoder stack do it; no
model's code changes, and peft wrappers, gradient checkpointing and data parallelism stay as they are.

Legend: B rows, S expanded length, K active length, D hidden size.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regate.algorithm1 import layerwise
from regate.compaction import Compaction, compact
from regate.errors import ConfigError, LayoutError, UnsupportedModelError
from regate.inputs import check_rotary_axes, check_supported, compact_inputs, embeddings
from regate.wrapping import decoder_of, final_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regate.config import Execution
    from regate.types import Decision


@dataclass(slots=True)
class _Plan:
    """What the next forward passes of the decoder do.

    Attributes:
        any_layer_BS: bool, positions that are active in some layer.
        read_BS: bool, elided positions that the head reads all the same (`align: target`), or None.
        compaction: index maths on the CPU.
        visual: whether the batch has visual positions.
        embeds_BSD: what entered the decoder, for the elided positions on the way out.
        placed: the index maths on the device of the embeddings.
        used: whether the decoder ran.
    """

    any_layer_BS: Tensor
    read_BS: Tensor | None
    compaction: Compaction
    visual: bool
    embeds_BSD: Tensor | None = None
    placed: Compaction | None = None
    used: bool = False


class Elision:
    """Made by `attach`. `with elide(decision): ...` runs the forward passes inside it on the active positions."""

    def __init__(self, model: nn.Module, execution: Execution, multiple: int) -> None:
        self._decoder = decoder_of(model)
        if execution != "loss_only":
            check_supported(self._decoder)
        self._execution = execution
        self._multiple = multiple
        self._signature = inspect.signature(self._decoder.forward)
        self._plan: _Plan | None = None
        self._handles = [
            self._decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            self._decoder.register_forward_hook(self._after),
        ]

    @contextmanager
    def __call__(self, decision: Decision, *, active_LBS: Tensor | None = None) -> Iterator[None]:
        """Elide what the decision elides. One that elides nothing leaves the model untouched.

        Args:
            decision: of the batch that the model gets inside.
            active_LBS: bool, a mask for each layer in place of the decision's (`execution="layerwise"` only).

        Raises:
            UnsupportedModelError: the model never called its decoder stack, or cannot be elided exactly.
        """
        if self._execution == "loss_only" or (active_LBS is None and not decision.elides):
            yield
            return
        if active_LBS is not None and self._execution != "layerwise":
            raise ConfigError('a mask for each layer needs attach(model, execution="layerwise")')
        dead_BS = decision.predictor_BS & ~decision.active_BS
        read_BS = dead_BS if bool(dead_BS.any()) else None
        mask = decision.active_BS if active_LBS is None else active_LBS
        with self.only(mask, read_BS, visual=decision.counts.visual > 0):
            yield

    @contextmanager
    def only(self, active_BS: Tensor, read_BS: Tensor | None = None, *, visual: bool = False) -> Iterator[None]:
        """Run the decoder on the positions of a mask (bool BS), whoever decided it."""
        if self._plan is not None:
            raise ConfigError("`with elide(...)` is already open on this model")
        if not self._handles:
            raise ConfigError("this elision was removed from its model; attach again")
        any_layer_BS = active_BS if active_BS.dim() == 2 else active_BS.any(dim=0)
        plan = _Plan(any_layer_BS, read_BS, compact(any_layer_BS, multiple=self._multiple), visual)
        with ExitStack() as stack:
            if self._execution == "layerwise":
                layers = len(self._decoder.layers)  # type: ignore[arg-type]
                active_LBS = active_BS if active_BS.dim() == 3 else active_BS.expand(layers, *active_BS.shape)
                stack.enter_context(layerwise(self._decoder, active_LBS))
            stack.callback(self._close)
            self._plan = plan
            yield
        if not plan.used:
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__} was not called inside `with elide(...)`: the model bypasses the "
                "decoder stack that get_decoder() names, or another model ran"
            )

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan = self._plan
        if plan is None:
            return None
        plan.used = True
        inputs = self._named(args, kwargs)
        embeds_BSD = embeddings(module, inputs)
        if tuple(embeds_BSD.shape[:2]) != plan.compaction.shape:
            raise LayoutError(
                f"the decoder got {tuple(embeds_BSD.shape[:2])} positions, the decision is for "
                f"{plan.compaction.shape}: the layout must be in expanded length, visual tokens included"
            )
        if plan.visual:
            check_rotary_axes(module, inputs.get("position_ids"))
        plan.embeds_BSD = embeds_BSD
        if self._execution == "layerwise":
            return (), inputs
        plan.placed = plan.compaction.to(embeds_BSD.device)
        return (), compact_inputs(module, inputs, embeds_BSD, plan.placed, full=plan.compaction.full)

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        plan = self._plan
        if plan is None:
            return None
        assert plan.embeds_BSD is not None
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        if plan.placed is not None:
            hidden_BSD = plan.placed.scatter(hidden, plan.embeds_BSD)
            if plan.read_BS is not None:
                hidden_BSD = self._read_elided(plan.read_BS, hidden_BSD, plan.embeds_BSD)
        else:
            kept_BS = plan.any_layer_BS if plan.read_BS is None else plan.any_layer_BS | plan.read_BS
            hidden_BSD = torch.where(kept_BS.to(hidden.device)[:, :, None], hidden, plan.embeds_BSD)
        plan.embeds_BSD = plan.placed = None
        if isinstance(output, tuple):
            return (hidden_BSD, *output[1:])
        output.last_hidden_state = hidden_BSD
        return output

    def _read_elided(self, read_BS: Tensor, hidden_BSD: Tensor, embeds_BSD: Tensor) -> Tensor:
        """Elided positions whose output the head reads: the residual carried the embedding to the final norm."""
        norm = final_norm(self._decoder)
        if norm is None:
            raise UnsupportedModelError(
                f"{type(self._decoder).__name__}: `align: target` reads elided positions after the final norm, "
                "which was not found; use align: predictor"
            )
        place_n = read_BS.flatten().nonzero().squeeze(1).to(hidden_BSD.device, non_blocking=True)
        rows_nD = norm(embeds_BSD.flatten(0, 1).index_select(0, place_n))
        return hidden_BSD.flatten(0, 1).index_copy(0, place_n, rows_nD).view_as(hidden_BSD)

    def _close(self) -> None:
        self._plan = None

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


def attach(model: nn.Module, *, execution: Execution = "compact", multiple: int = 1) -> Elision:
    """Hook a model's decoder stack, below whatever wraps the model.

    Args:
        model: a transformers model, or one wrapped by peft, `ScoredLM` or data parallelism. Nothing changes until
            `with elide(decision)` is open.
        execution: "compact" (the fast path), "layerwise" (Algorithm 1 as printed, slow) or "loss_only" (no elision).
        multiple: active lengths are rounded up to it, so that a compiled model sees fewer shapes.

    Raises:
        UnsupportedModelError: elision would not be exact on this model.
    """
    return Elision(model, execution, multiple)
