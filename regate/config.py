"""Settings of the gate: one literal for each choice that the paper leaves open.

Plain dataclasses without torch, so that a recipe can be checked and planned without importing it.
Defaults are the paper's (section 4.1) where it states a value, and this project's reading where it is silent;
`docs/interpretations.md` gives the sentence behind each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regate.errors import ConfigError
from regate.selection import SELECTIONS, Combine, SelectionMethod, method_of, own_method
from regate.selection_file import SelectionFile

Candidates = Literal["targets", "text"]
Align = Literal["predictor", "target", "union"]
EmaInit = Literal["zero", "first_loss", "reference"]
EmaObserve = Literal["scored", "all_dense"]
Execution = Literal["compact", "layerwise", "loss_only"]
Rows = Literal["padded", "packed"]
Outputs = Literal["active", "predictors"]
Placeholders = Literal["masked", "compact", "attended"]
VisualHow = Literal["pool", "pattern", "random", "frames", "diverse", "merge", "temporal", "attention"]
if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Selection = str
    OwnSelection = SelectionFile | SelectionMethod | Callable[..., Tensor]
else:
    Selection = Literal[tuple(SELECTIONS)]  # the names of the table, which a type checker cannot read
    OwnSelection = SelectionFile  # a function is no value of a recipe


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """How the frozen teacher sees a sample (Eq. 1).

    Attributes:
        model: path of another causal LM with the student's tokenizer; None takes the student's own text-only
            backbone, as the paper does.
        placeholders: how it sees the visual placeholders: attention mask 0 with the original positions
            ("masked"), dropped altogether ("compact"), or attended ("attended", an ablation).
        dtype: of the forward pass; the cross entropy is float32 in any case.
        tokens_per_batch: rows are batched by length up to this many positions.
        pictures: not the paper's. The reference signal becomes l_text - l_multimodal, what the pictures tell of a
            target: the loss of the text-only teacher less that of a multimodal one, which sees the pictures: with
            True the student's own starting weights, with a name another model, whose tokens must be the student's.
            It may be negative. `regate.score_reference` takes the second losses as `subtract`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    model: str | None = None
    placeholders: Placeholders = "masked"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tokens_per_batch: int = 16384
    pictures: bool | str = False

    def __post_init__(self) -> None:
        if self.tokens_per_batch < 1:
            raise ConfigError(f"reference.tokens_per_batch must be at least 1, got {self.tokens_per_batch}")
        if self.pictures == "":
            raise ConfigError("reference.pictures is an empty name; give true, false or the name of a model")


@dataclass(frozen=True, slots=True)
class VisualConfig:
    """Which visual positions a sparse step keeps. Not the paper's; see `regate.visual`.

    Attributes:
        keep: the part of a clip's cells that stays, in [0, 1]; 0, 1/8, 1/4, 1/2 or 1 for pool and pattern, at least
            1/4 for temporal. With 0 sparse steps are blind: nothing stays but a cell that predicts a target.
        how: means of blocks of 2 frames, 2 x 2 cells or both ("pool"); one cell of each such block, another one in
            each step ("pattern"); cells drawn anew for each step ("random"); whole frames, evenly spaced ("frames").
            By what the projector says of the cells (`regate.content`): those that are least alike ("diverse",
            DivPrune); the most similar ones merged ("merge", ToMe); those that change from frame to frame
            ("temporal", DyCoke). Or those that the row's last position attends to most in the layer below
            `from_layer` ("attention", FastV).
        from_layer: the layer above which cells leave, for attention alone; below it all of them are computed. A
            number of layers, at least 1, or a part of them as a float.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    keep: float = 0.25
    how: VisualHow = "pool"
    from_layer: int | float | None = None

    def __post_init__(self) -> None:
        if self.how == "attention" and self.from_layer is None:
            raise ConfigError("visual.from_layer is missing: how: attention needs the layer above which cells leave")
        if self.how != "attention" and self.from_layer is not None:
            raise ConfigError(
                f"visual.from_layer is for how: attention alone; by {self.how} cells leave the whole decoder"
            )
        if self.from_layer is not None and (
            self.from_layer <= 0 or (isinstance(self.from_layer, float) and self.from_layer > 1.0)
        ):
            raise ConfigError(
                f"visual.from_layer must be a number of layers from 1 on or a part of them, got {self.from_layer}"
            )
        if not 0.0 <= self.keep <= 1.0:
            raise ConfigError(f"visual.keep must be in [0, 1], got {self.keep}")
        if self.how in ("pool", "pattern") and self.keep not in (1.0, 0.5, 0.25, 0.125, 0.0):
            raise ConfigError(f"visual.how {self.how} keeps 1, 0.5, 0.25, 0.125 or 0 of the cells, not {self.keep}")
        if self.how == "temporal" and 0.0 < self.keep < 0.25:
            raise ConfigError(
                f"visual.how temporal keeps one whole frame of four, so at least 0.25 of the cells, not {self.keep}"
            )


@dataclass(frozen=True, slots=True)
class RampConfig:
    """A keep ratio that moves during the run, from `keep_ratio` to another one. Not the paper's.

    Attributes:
        to: the keep ratio at the end, in (0, 1]: below `keep_ratio` the gate tightens, above it relaxes.
        steps: it moves evenly over so many optimizer steps after the warm-up, and stays there.
        loss: in place of `steps`, it moves evenly while the loss goes from the first of these to the second, in nats:
            the mean loss of the dense steps of the cycle before, which sees what is never elided.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    to: float
    steps: int | None = None
    loss: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.to <= 1.0:
            raise ConfigError(f"ramp.to must be in (0, 1], got {self.to}")
        if (self.steps is None) == (self.loss is None):
            raise ConfigError("ramp goes by steps or by loss: give one of the two")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"ramp.steps must be at least 1, got {self.steps}")
        if self.loss is not None and not self.loss[0] > self.loss[1] >= 0.0:
            raise ConfigError(f"ramp.loss must be two losses, the second below the first, got {list(self.loss)}")


@dataclass(frozen=True, slots=True)
class KeepBelow:
    """A keep ratio of the lower layers. Not the paper's.

    Attributes:
        layer: the layers below it: a number of layers, or a part of them as a float.
        keep: the part of a sample's candidates that they compute, in (0, 1].
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    layer: int | float
    keep: float

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise ConfigError(f"keep_below.keep must be in (0, 1], got {self.keep}")
        if self.layer <= 0 or (isinstance(self.layer, float) and self.layer > 1.0):
            raise ConfigError(f"keep_below.layer must be a number of layers or a part of them, got {self.layer}")


@dataclass(frozen=True, slots=True)
class GateConfig:
    """The gate of sections 3.1 to 3.4.

    Attributes:
        keep_ratio: p_sparse of Eq. 4, in (0, 1].
        cycle_steps: C of Eq. 4, optimizer steps.
        dense_steps: F of Eq. 4, dense steps at the start of each cycle; 0 <= F < C.
        warmup_steps: W, dense steps before the first cycle counts.
        ema_decay: beta of Eq. 2, in [0, 1).
        reference_weight: lambda of Eq. 3, not negative.
        candidates: which positions compete for the budget.
        align: which position a selected target keeps active: the one that predicts it ("predictor"), its own
            ("target", Algorithm 1 read literally), or both.
        combine: Eq. 3 as printed ("sum") or (1 - lambda) m + lambda l_ref ("convex", Table 5 read literally).
        ema_init: difficulty of a target that has not been observed.
        ema_observe: which student losses feed Eq. 2.
        selection: the score that ranks the targets, one of `regate.selection.SELECTIONS`; "regate" is Eq. 3, the
            others are ablations and controls. Or a score function of your own, which declares its signals by its
            parameters; a recipe names its file (`regate.selection_file.SelectionFile`).
        execution: "compact" gathers the active positions once, "layerwise" is Algorithm 1 written out,
            "loss_only" computes everything and masks the loss (as RHO-1 does).
        reference: how the reference losses are computed.
        from_layer: not the paper's. The layer above which elided positions leave; below it they are computed. A
            number of layers, or a part of them as a float. None is 0, the paper's, and with `deep` no layer at all.
        deep: not the paper's. The layer above which the predictors of selected targets alone are computed, while
            every other position offers keys and values from the state in which it came there; likewise.
        visual: not the paper's. The visual positions that sparse steps keep; None keeps all of them. With keep_ratio
            1 sparse steps score every target.
        ramp: not the paper's. How the keep ratio moves during the run; None leaves it as it is.
        keep_below: not the paper's. Keep ratios of the lower layers, from the bottom up, each smaller than the one
            before; above the last one `keep_ratio` holds, whose targets alone are scored.
        distil: not the paper's. Weight of a second term in the loss of dense steps: the KL divergence from what the
            same batch's elided forward pass predicts, without gradient, to what the dense one does
            (`regate.distil`). None for none.
        layer_keep: not the paper's. The part of the active positions that each layer but the first and the last
            computes, drawn anew for each layer, row and step, in sparse steps; the others pass it by (random
            layer-token dropping, arXiv 2211.11586). None for all.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    keep_ratio: float = 0.5
    cycle_steps: int = 128
    dense_steps: int = 16
    warmup_steps: int = 100
    ema_decay: float = 0.9
    reference_weight: float = 0.5
    candidates: Candidates = "targets"
    align: Align = "predictor"
    combine: Combine = "sum"
    ema_init: EmaInit = "zero"
    ema_observe: EmaObserve = "scored"
    selection: Selection | OwnSelection = "regate"
    execution: Execution = "compact"
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    from_layer: int | float | None = None
    deep: int | float | None = None
    visual: VisualConfig | None = None
    ramp: RampConfig | None = None
    keep_below: tuple[KeepBelow, ...] = ()
    distil: float | None = None
    layer_keep: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.keep_ratio <= 1.0:
            raise ConfigError(f"keep_ratio must be in (0, 1], got {self.keep_ratio}")
        if self.cycle_steps < 1:
            raise ConfigError(f"cycle_steps must be at least 1, got {self.cycle_steps}")
        if not 0 <= self.dense_steps < self.cycle_steps:
            raise ConfigError(
                f"dense_steps must be at least 0 and below cycle_steps ({self.cycle_steps}), "
                f"got {self.dense_steps}; for a run without sparse steps set keep_ratio to 1"
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.reference_weight < 0.0:
            raise ConfigError(f"reference_weight must not be negative, got {self.reference_weight}")
        if self.combine == "convex" and self.reference_weight > 1.0:
            raise ConfigError(f"combine: convex needs reference_weight in [0, 1], got {self.reference_weight}")
        if self.reference.pictures and self.candidates == "text":
            raise ConfigError("reference.pictures needs candidates: targets; a prompt before a picture cannot see it")
        self._check_layers()
        if callable(self.selection):
            object.__setattr__(self, "selection", own_method(self.selection))
        _ = self.method

    def _check_layers(self) -> None:
        for name, layer in (("from_layer", self.from_layer), ("deep", self.deep)):
            if layer is None:
                continue
            if layer < 0 or (isinstance(layer, float) and layer > 1.0):
                raise ConfigError(f"{name} must be a number of layers or a part of them, 0.0 to 1.0, got {layer}")
            if self.execution == "loss_only":
                raise ConfigError(f"{name} elides by layer, and execution: loss_only elides nothing")
        if self.deep is not None and self.execution != "compact":
            raise ConfigError("deep needs execution: compact")
        if self.visual is not None and self.execution == "loss_only":
            raise ConfigError("visual elides, and execution: loss_only elides nothing")
        if self.visual is not None and self.visual.how == "attention" and self.execution != "compact":
            raise ConfigError("visual.how attention needs execution: compact")
        if self.layer_keep is not None:
            if not 0.0 < self.layer_keep <= 1.0:
                raise ConfigError(f"layer_keep must be in (0, 1], got {self.layer_keep}")
            if self.execution == "loss_only":
                raise ConfigError("layer_keep elides by layer, and execution: loss_only elides nothing")
        self._check_one_rule_of_layers()
        self._check_ratios()
        self._check_distil()

    def _check_one_rule_of_layers(self) -> None:
        """Positions that leave by what a layer attends to, or that pass layers by, go with nothing else by layer."""
        by_layer = [name for name in ("from_layer", "deep") if getattr(self, name) is not None]
        by_layer += ["keep_below"] if self.keep_below else []
        by_layer += ["layer_keep"] if self.layer_keep is not None else []
        attention = self.visual is not None and self.visual.how == "attention"
        if (attention or self.layer_keep is not None) and len(by_layer) + attention > 1:
            names = " and ".join([*by_layer, *(["visual.how attention"] if attention else [])])
            raise ConfigError(f"{names} both say what single layers compute: give one of them")

    def _check_distil(self) -> None:
        if self.distil is None:
            return
        if self.distil <= 0.0:
            raise ConfigError(f"distil must be a weight above 0, or null, got {self.distil}")
        if not self.has_sparse_steps or self.execution == "loss_only":
            raise ConfigError("distil learns from the elided forward pass, and these settings elide nothing")
        if self.dense_steps == 0 and self.warmup_steps == 0:
            raise ConfigError("distil adds to the loss of dense steps, and the schedule has none")

    def _check_ratios(self) -> None:
        if self.ramp is not None and self.ramp.loss is not None and self.dense_steps == 0:
            raise ConfigError("ramp: a loss is read in the dense steps of a cycle, and dense_steps is 0")
        if not self.keep_below:
            return
        if self.execution == "loss_only":
            raise ConfigError("keep_below elides by layer, and execution: loss_only elides nothing")
        if self.align == "target":
            raise ConfigError(
                "keep_below needs align: predictor or union; with target a loss would be read from a layer that its "
                "position has left"
            )
        if self.from_layer is not None:
            raise ConfigError("from_layer and keep_below both say which layers elide what: give one of them")
        for lower, upper in pairwise(self.keep_below):
            if isinstance(lower.layer, float) != isinstance(upper.layer, float):
                raise ConfigError("keep_below names its layers all by number or all as a part of them")
            if not (lower.layer < upper.layer and lower.keep > upper.keep):
                raise ConfigError(
                    f"keep_below goes from the bottom up, and upper layers keep less: {upper.keep} below layer "
                    f"{upper.layer} follows {lower.keep} below layer {lower.layer}"
                )
        most = self.keep_ratio if self.ramp is None else max(self.keep_ratio, self.ramp.to)
        if self.keep_below[-1].keep <= most:
            raise ConfigError(
                f"keep_below: lower layers keep more than keep_ratio and ramp.to ({most}), not "
                f"{self.keep_below[-1].keep}"
            )

    @property
    def least_keep_ratio(self) -> float:
        """The smallest keep ratio of a sparse step."""
        return self.keep_ratio if self.ramp is None else min(self.keep_ratio, self.ramp.to)

    @property
    def has_sparse_steps(self) -> bool:
        """Whether the steps outside the dense part of a cycle compute less."""
        pictures = self.visual is not None and self.visual.keep < 1.0
        return self.least_keep_ratio < 1.0 or pictures or (self.layer_keep is not None and self.layer_keep < 1.0)

    @property
    def elides(self) -> bool:
        """Whether a sparse step leaves words out of some layer."""
        by_layer = self.from_layer is not None or bool(self.keep_below)
        return self.execution != "loss_only" and (self.deep is None or by_layer)

    @property
    def method(self) -> SelectionMethod:
        """What `selection` names: its score, the signals it reads, its label."""
        if isinstance(self.selection, SelectionFile):
            return self.selection.method
        assert isinstance(self.selection, str | SelectionMethod)
        return method_of(self.selection)

    @property
    def selection_name(self) -> str:
        """`selection` in words: the name in the table, or function and file."""
        return self.selection if isinstance(self.selection, str) else self.method.origin or self.method.label

    @property
    def selects_after_forward(self) -> bool:
        """Whether the targets are chosen from this step's own losses, as RHO-1 is published: only possible
        where nothing is elided."""
        return self.execution == "loss_only" and "loss_BS" in self.method.signals

    @property
    def needs_difficulty(self) -> bool:
        """Whether the score reads the student's losses of earlier visits."""
        return self.method.reads_student_loss and not self.selects_after_forward

    @property
    def needs_reference(self) -> bool:
        """Whether the score, or the start of the difficulty, reads the reference losses. With `selection: regate` and
        `reference_weight: 0` the score does not."""
        by_score = self.method.reads_reference(self.reference_weight)
        return by_score or (self.needs_difficulty and self.ema_init == "reference")

    @property
    def difficulty_decay(self) -> float:
        """beta of the difficulty store: 0 where the score reads the last loss and not a running mean."""
        return 0.0 if "loss_BS" in self.method.signals else self.ema_decay


def layer_index(layer: float, layers: int, name: str) -> int:
    """The layer that a setting means.

    Args:
        layer: a number of layers (int), or a part of them (float, 0 to 1).
        layers: L.
        name: of the setting, for the message.

    Raises:
        ConfigError: there are fewer layers.
    """
    index = round(layer * layers) if isinstance(layer, float) else layer
    if not 0 <= index <= layers:
        raise ConfigError(f"{name} {layer}: the decoder has {layers} layers")
    return index
