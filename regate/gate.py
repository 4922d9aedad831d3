"""The gate (section 3.3): which positions a step computes and which targets it trains on.

Everything is decided before the forward pass, on the CPU, from what earlier steps observed.

Legend: B rows, S expanded length, N losses of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regate.candidates import Candidates, candidates_of
from regate.errors import ConfigError, NonFiniteLossError
from regate.schedule import DenseLoss, DualCycle
from regate.scoring import score
from regate.top_k import budget, top_k
from regate.transfer import on_device
from regate.types import Decision, Kind, LayerKeep, Layout, Level, TokenCounts
from regate.visual import keep_visual

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from regate.config import Align, GateConfig, KeepBelow
    from regate.difficulty import DifficultyStore
    from regate.reference import ReferenceStore
    from regate.types import VisualKept


def predictor_of(selected_BS: Tensor) -> Tensor:
    """The position before each selected token: the one whose output predicts it."""
    return torch.nn.functional.pad(selected_BS[:, 1:], (0, 1), value=False)


def own_and_predictor(selected_BS: Tensor) -> Tensor:
    return selected_BS | predictor_of(selected_BS)


def own(selected_BS: Tensor) -> Tensor:
    """Algorithm 1 read literally: the mask sits on the selected token's own position."""
    return selected_BS


ALIGN: Mapping[Align, Callable[[Tensor], Tensor]] = {
    "predictor": predictor_of,
    "target": own,
    "union": own_and_predictor,
}


class Gate:
    """Decides on each micro-batch, and learns from its losses.

    A candidate's position is active if the alignment keeps it for a selected token; every other valid position
    (visual, special, and prompt unless `candidates: text`) is active always. With `align: predictor` this elides
    the answer tokens that predict no selected target, so also the last one, which predicts nothing.

    Args:
        config: settings.
        reference: reference losses; needed where the selection reads them.
        difficulty: running losses (`DifficultyStore.for_gate`); needed where the selection reads them.
        seed: of the random control.
        selection: a score function of your own in the place of `config.selection`: it names the signals that it reads
            (`regate.selection.SIGNALS`) as its parameters and returns float32 BS, the highest scores stay.

    Raises:
        ConfigError: a store is missing, or was made with other settings; or the score reads what is no signal.
    """

    def __init__(
        self,
        config: GateConfig,
        reference: ReferenceStore | None,
        difficulty: DifficultyStore | None = None,
        *,
        seed: int = 0,
        selection: Callable[..., Tensor] | None = None,
    ) -> None:
        if selection is not None:
            config = replace(config, selection=selection)
        if config.needs_reference and reference is None:
            raise ConfigError(
                f"selection: {config.selection_name} reads the reference losses; score the data set first "
                "(regate.score_reference) and pass the store"
            )
        if config.needs_difficulty:
            if difficulty is None:
                raise ConfigError(
                    f"selection: {config.selection_name} reads the student's running losses; pass "
                    "difficulty=DifficultyStore.for_gate(folder, config, reference=reference)"
                )
            if (difficulty.decay, difficulty.init) != (config.difficulty_decay, config.ema_init):
                raise ConfigError(
                    f"{difficulty.path} has decay {difficulty.decay} and init {difficulty.init}, "
                    f"the gate has {config.difficulty_decay} and {config.ema_init}; use DifficultyStore.for_gate"
                )
        self.config = config
        self.schedule = DualCycle.from_config(config)
        self.seed = seed
        self._dense_loss = DenseLoss(self.schedule) if config.ramp is not None and config.ramp.loss else None
        self._reference = reference if config.needs_reference else None
        self._difficulty = difficulty if config.needs_difficulty else None
        self._pending: tuple[Decision, Tensor, Any] | None = None
        self._weighed: Decision | None = None

    def decide(self, layout: Layout, sample_ids_B: Tensor, *, step: int) -> Decision:
        """What the step computes for this micro-batch.

        Args:
            layout: on the CPU.
            sample_ids_B: int64, stable ids.
            step: optimizer step, the same for all micro-batches of an accumulation.

        Raises:
            LayoutError: the layout contradicts itself.
            StoreError, MismatchError: a sample is unknown to a store, or its targets differ.
            ConfigError: the settings go by the loss, and `note_loss` was not called.
        """
        return self._decide(layout, sample_ids_B.cpu(), step, dense=self.schedule.dense_at(step))

    @property
    def distil(self) -> float:
        """The weight of `regate.distil_loss` in dense steps; 0 where the settings do not distil."""
        return self.config.distil or 0.0

    def elided(self, decision: Decision) -> Decision | None:
        """The decision for the elided forward pass that a dense step learns from beside its targets
        (`regate.distil`): what a sparse step in its place would compute. None in sparse steps, and where the settings
        do not distil."""
        if self.config.distil is None or not self.schedule.dense_at(decision.step):
            return None
        return self._decide(decision.layout, decision.sample_ids_B, decision.step, dense=False)

    def _decide(self, layout: Layout, sample_ids_B: Tensor, step: int, *, dense: bool) -> Decision:
        candidates = candidates_of(layout, self.config.candidates)
        keep_ratio = 1.0
        if not dense:
            loss = self._dense_loss.before(step) if self._dense_loss is not None else None
            keep_ratio = self.schedule.sparse_keep_ratio_at(step, loss=loss)
        chosen_BS, score_BS = candidates.mask_BS, None
        if keep_ratio < 1.0 and not self.config.selects_after_forward:
            score_BS = self._score(candidates, sample_ids_B, step)
            chosen_BS = top_k(score_BS, candidates.mask_BS, keep_ratio)
        visual, part = None, self.config.layer_keep
        pictures = self.config.visual
        if pictures is not None and pictures.keep < 1.0 and not dense:
            visual = keep_visual(layout, pictures, step=step, seed=self.seed)
        active_BS, levels = self._active(layout, candidates.mask_BS, chosen_BS, score_BS, keep_ratio, visual)
        targets_BS = chosen_BS & layout.target_BS
        decision = Decision(
            active_BS,
            targets_BS,
            sample_ids_B,
            layout,
            keep_ratio,
            count_tokens(layout, active_BS, targets_BS),
            step,
            levels=levels,
            deep=self.config.deep if keep_ratio < 1.0 else None,
            visual=visual,
            layer_keep=None if dense or part in (None, 1.0) else LayerKeep(part, self.seed),
        )
        if self.config.selects_after_forward and keep_ratio < 1.0:
            scored = int(budget(targets_BS.sum(dim=1), keep_ratio).sum())
            decision = replace(decision, counts=replace(decision.counts, scored=scored), weighted=True)
        elif self.config.candidates == "text" and self._difficulty is not None and self.config.least_keep_ratio < 1.0:
            decision = replace(decision, observed_BS=chosen_BS & ~layout.target_BS, weighted=True)
        return decision

    def _active(
        self,
        layout: Layout,
        candidate_BS: Tensor,
        chosen_BS: Tensor,
        score_BS: Tensor | None,
        keep_ratio: float,
        visual: VisualKept | None,
    ) -> tuple[Tensor, tuple[Level, ...]]:
        """The positions that the last layers compute, and, where layers differ, those of each level."""
        valid_BS = layout.valid_BS
        if visual is not None:
            valid_BS = valid_BS & ((layout.kind_BS != Kind.VISUAL) | visual.kept_BS)
        elides = keep_ratio < 1.0 and self.config.elides

        def computed(kept_BS: Tensor) -> Tensor:
            return valid_BS & (~candidate_BS | ALIGN[self.config.align](kept_BS)) if elides else valid_BS

        active_BS = computed(chosen_BS)
        if visual is not None and visual.from_layer is not None:
            lower_BS = active_BS | (layout.kind_BS == Kind.VISUAL)
            return active_BS, (Level(0, lower_BS), Level(visual.from_layer, active_BS))
        if not elides:
            return active_BS, ()
        if self.config.from_layer:
            return active_BS, (Level(0, valid_BS), Level(self.config.from_layer, active_BS))
        if self.config.keep_below:
            assert score_BS is not None
            return active_BS, _nested(self.config.keep_below, keep_ratio, score_BS, candidate_BS, computed)
        return active_BS, ()

    def weights(self, decision: Decision, token_loss_N: Tensor) -> Tensor:
        """Which of the N losses train: float32 N of ones and zeros, on the losses' device, no gradient.

        All ones unless `decision.weighted`; the step's loss is `(token_loss_N * weights_N).sum()` over the global
        number of scored targets (`decision.counts.scored`).
        """
        self._weighed = decision
        loss_N = token_loss_N.detach()
        if not decision.weighted:
            return torch.ones_like(loss_N)
        place_N = decision.losses_BS.flatten().nonzero().squeeze(1)
        if not self.config.selects_after_forward:
            kept_N = decision.targets_BS.flatten()[place_N]
            return on_device(kept_N, loss_N.device).to(loss_N.dtype)
        score_BS = self._after_forward(decision, loss_N, on_device(place_N, loss_N.device))
        candidate_BS = on_device(decision.losses_BS, loss_N.device)
        kept_BS = top_k(score_BS, candidate_BS, decision.keep_ratio)
        return kept_BS.flatten()[on_device(place_N, loss_N.device)].to(loss_N)

    def observe(self, decision: Decision, token_loss_N: Tensor) -> None:
        """Eq. 2: note the losses of the step, in nats, in the order of `decision.predictor_BS`.

        On an accelerator the copy to the CPU is not waited for: the losses are read at the next call.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite; names the sample. Nothing of it is noted.
        """
        if decision.weighted and self._weighed is not decision:
            raise ConfigError(
                "these settings train on a part of the losses only: multiply them by "
                "gate.weights(decision, token_loss_N) before the backward pass"
            )
        self._drain()
        if token_loss_N.numel() != int(decision.losses_BS.sum()):
            raise ConfigError(f"{token_loss_N.numel()} losses for {int(decision.losses_BS.sum())} scored targets")
        losses_N, event = _to_cpu(token_loss_N)
        self._pending = (decision, losses_N, event)
        if event is None:
            self._drain()

    def note_loss(self, step: int, loss: float) -> None:
        """The mean loss of a step's scored targets over all processes, in nats, for a ramp by loss: after every step
        and on every process, in order. Without such a ramp nothing is noted."""
        if self._dense_loss is not None:
            self._dense_loss.note(step, loss)

    def end_epoch(self, group: Any = None) -> None:
        """Fold what the epoch observed into the difficulty. Call it on every process, at every epoch's end."""
        self._drain()
        if self._difficulty is not None:
            self._difficulty.fold(group)

    def start_epoch(self, epoch: int, group: Any = None) -> None:
        """`end_epoch` for every epoch before `epoch` that was not folded yet: safe to repeat after a resume."""
        while self._difficulty is not None and self._difficulty.epoch < epoch:
            self.end_epoch(group)

    def start_over(self, group: Any = None) -> None:
        """Forget what an earlier run observed. Call it on every process, before the first step of a new run."""
        self._pending = None
        if self._dense_loss is not None:
            self._dense_loss = DenseLoss(self.schedule)
        if self._difficulty is not None:
            self._difficulty.start_over(group)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; the same on every process but for the journal's length. Take it between two steps."""
        self._drain()
        state = {"schema": 1, "difficulty": None if self._difficulty is None else self._difficulty.state()}
        return state if self._dense_loss is None else {**state, "dense_loss": self._dense_loss.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint, on every process; their number may differ from that of the checkpoint."""
        self._pending = None
        if (state["difficulty"] is None) != (self._difficulty is None):
            raise ConfigError("the checkpoint's gate and this gate have different settings: one keeps a difficulty")
        if self._difficulty is not None:
            self._difficulty.rewind(state["difficulty"])
        if self._dense_loss is not None:
            if "dense_loss" not in state:
                raise ConfigError("the checkpoint's gate and this gate have different settings: one goes by the loss")
            self._dense_loss.load(state["dense_loss"])

    def checksums(self) -> dict[str, int]:
        """See `DifficultyStore.checksums`; empty without running losses. Take it when the training is over."""
        return {} if self._difficulty is None else self._difficulty.checksums()

    def _score(self, candidates: Candidates, sample_ids_B: Tensor, step: int) -> Tensor:
        reference_BS = difficulty_BS = None
        if self._reference is not None:
            reference_BS = self._reference.losses_at(candidates, sample_ids_B)
        if self._difficulty is not None:
            difficulty_BS = self._difficulty.values(candidates, sample_ids_B)
        return score(
            self.config,
            candidates.slot_BS,
            sample_ids_B,
            student_BS=difficulty_BS,
            reference_BS=reference_BS,
            seed=self.seed,
            step=step,
        )

    def _after_forward(self, decision: Decision, loss_N: Tensor, place_N: Tensor) -> Tensor:
        """The score by this step's own losses: with `excess`, RHO-1 as published."""
        loss_BS = torch.zeros(decision.layout.labels_BS.numel(), dtype=torch.float32, device=loss_N.device)
        loss_BS = loss_BS.index_copy(0, place_N, loss_N.float()).view(decision.layout.labels_BS.shape)
        reference_BS = None
        if self._reference is not None:
            reference_BS = self._reference.losses(decision.sample_ids_B, decision.layout, self.config.candidates)
            reference_BS = on_device(reference_BS, loss_N.device)
        return score(
            self.config,
            candidates_of(decision.layout, self.config.candidates).slot_BS,
            decision.sample_ids_B,
            student_BS=loss_BS,
            reference_BS=reference_BS,
            seed=self.seed,
            step=decision.step,
        )

    def _drain(self) -> None:
        if self._pending is None:
            return
        decision, losses_N, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        finite_N = torch.isfinite(losses_N)
        if not bool(finite_N.all()):
            row = int(decision.losses_BS.nonzero()[~finite_N][0, 0])
            raise NonFiniteLossError(
                f"step {decision.step}: a loss of sample {int(decision.sample_ids_B[row])} is "
                f"{float(losses_N[~finite_N][0])}; lower the learning rate or check the sample"
            )
        if self._difficulty is None or (self.config.ema_observe == "all_dense" and decision.sparse):
            return
        candidates = candidates_of(decision.layout, self.config.candidates)
        slots = self._difficulty.index.slots(candidates, decision.sample_ids_B, self._difficulty.path)
        seen_n = decision.losses_BS[candidates.mask_BS].numpy()
        self._difficulty.append(decision.step, slots, seen_n, losses_N.numpy())


class DenseGate:
    """The baseline: every position active, every target scored. The same loop runs with it."""

    distil = 0.0

    def decide(self, layout: Layout, sample_ids_B: Tensor, *, step: int) -> Decision:
        candidates_of(layout)
        valid_BS, target_BS = layout.valid_BS, layout.target_BS
        counts = count_tokens(layout, valid_BS, target_BS)
        return Decision(valid_BS, target_BS, sample_ids_B.cpu(), layout, 1.0, counts, step)

    def elided(self, decision: Decision) -> None:
        """There is nothing to learn from."""

    def weights(self, decision: Decision, token_loss_N: Tensor) -> Tensor:
        return torch.ones_like(token_loss_N.detach())

    def observe(self, decision: Decision, token_loss_N: Tensor) -> None:
        """Nothing to learn from."""

    def note_loss(self, step: int, loss: float) -> None:
        """Nothing goes by it."""

    def end_epoch(self, group: Any = None) -> None:
        """Nothing to fold."""

    def start_epoch(self, epoch: int, group: Any = None) -> None:
        """Nothing to fold."""

    def state_dict(self) -> dict[str, Any]:
        return {"schema": 1, "difficulty": None}

    def checksums(self) -> dict[str, int]:
        """It keeps no running losses."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["difficulty"] is not None:
            raise ConfigError("the checkpoint belongs to a gated run, this run has no gate")


def _nested(
    below: Sequence[KeepBelow],
    keep_ratio: float,
    score_BS: Tensor,
    candidate_BS: Tensor,
    computed: Callable[[Tensor], Tensor],
) -> tuple[Level, ...]:
    """The positions of each level of layers. One score ranks them all, so those of an upper level are among those of
    the level below it.

    Args:
        computed: the positions that kept candidates leave active.
    """
    ratios = [*(level.keep for level in below), keep_ratio]
    firsts = [0, *(level.layer for level in below)]
    kept = (top_k(score_BS, candidate_BS, ratio) if ratio < 1.0 else None for ratio in ratios)
    # All of them are kept at 1, also the last one, which predicts nothing: as below `from_layer`.
    masks = (computed(candidate_BS) | candidate_BS if kept_BS is None else computed(kept_BS) for kept_BS in kept)
    return tuple(Level(first, mask_BS) for first, mask_BS in zip(firsts, masks, strict=True))


def count_tokens(layout: Layout, active_BS: Tensor, targets_BS: Tensor) -> TokenCounts:
    """Positions of a batch by kind, and what the step does with them."""
    by_kind = torch.bincount(layout.kind_BS.flatten(), minlength=len(Kind)).tolist()
    counts = TokenCounts(
        positions=layout.kind_BS.numel(),
        valid=layout.kind_BS.numel() - by_kind[Kind.PAD],
        visual=by_kind[Kind.VISUAL],
        special=by_kind[Kind.SPECIAL],
        prompt=by_kind[Kind.PROMPT],
        target=by_kind[Kind.TARGET],
        active=int(active_BS.sum()),
        scored=int(targets_BS.sum()),
    )
    counts.check()
    return counts


def _to_cpu(values_N: Tensor) -> tuple[Tensor, Any]:
    """Detached float32 copy, and an event to wait for (None if it is there already)."""
    values_N = values_N.detach().float()
    if values_N.device.type != "cuda":
        return values_N.cpu(), None
    copy_N = torch.empty(values_N.shape, dtype=torch.float32, pin_memory=True)
    copy_N.copy_(values_N, non_blocking=True)
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copy_N, event
