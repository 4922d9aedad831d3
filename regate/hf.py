"""The gate in a transformers Trainer script: `GatedTrainer` for `Trainer`, and a collator that names the samples.

Legend: B rows, S expanded length, N losses of the batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    if error.name != "transformers":
        raise
    raise ModuleNotFoundError(
        'regate.hf is for the Trainer of transformers, which is not installed: pip install "regate[hf]"',
        name="transformers",
    ) from None

from regate import process
from regate.candidates import store_keys
from regate.config import GateConfig
from regate.difficulty import DifficultyStore
from regate.distil import distil_loss
from regate.elision import attach
from regate.errors import ConfigError, LayoutError, StoreError
from regate.files import read_json, write_json
from regate.gate import DenseGate, Gate
from regate.head import scored_rows
from regate.index import stable_id
from regate.loss import count_scored, token_loss
from regate.reference import ReferenceWriter
from regate.teacher import score_reference
from regate.types import Decision, Kind, Layout, layout_from_labels

if TYPE_CHECKING:
    import transformers

    from regate.config import Candidates, Outputs, Rows
    from regate.types import Grid

KEY = "regate"
"""Entry of a batch that holds what the gate needs."""
_PIXELS = ("pixel_values", "pixel_attention_mask", "images", "image_embeds", "video_embeds", "video_pixel_values")
"""How the inputs that hold pictures or frames begin, by the names of transformers' processors."""
Collator = Callable[[list[Any]], Mapping[str, Any]]


@dataclass(slots=True)
class Named:
    """What the gate knows of a batch. Not a tensor and without `to`, so that loaders leave it on the CPU."""

    sample_ids_B: Tensor
    input_ids_BS: Tensor
    layout: Layout
    visual_token_ids: tuple[int, ...] = ()
    decision: Decision | None = None


def with_sample_ids(
    collator: Collator,
    *,
    key: str = "sample_id",
    visual_token_ids: Sequence[int] = (),
    special_token_ids: Sequence[int] = (),
    grids: Callable[[Mapping[str, Any]], tuple[tuple[Grid, ...], ...]] | None = None,
) -> Collator:
    """A collator that also tells the gate which sample each row is and what each position is.

    Args:
        collator: gives input_ids, attention_mask and labels in expanded length (a transformers processor's own).
        key: entry of each example with its stable id, an integer or a string; the inner collator does not see it.
        visual_token_ids: placeholders of pictures and frames (`config.image_token_id`, `config.video_token_id`, ...).
        special_token_ids: template markers, for the counts.
        grids: what the visual positions of a collated batch show, row by row and in their order; only
            `GateConfig(visual=...)` reads it.

    Raises:
        LayoutError: an example has no id, the collator gives no labels, or it gives pictures or frames to a batch in
            which no position is visual.
    """
    visual = tuple(sorted({*map(int, visual_token_ids)}))

    def collate(examples: list[Any]) -> dict[str, Any]:
        missing = [place for place, example in enumerate(examples) if key not in example]
        if missing:
            raise LayoutError(
                f"example {missing[0]} of the batch has no {key!r}: every example needs a stable id (and "
                "TrainingArguments need remove_unused_columns=False)"
            )
        ids = [stable_id(example[key]) for example in examples]
        batch = dict(collator([{name: example[name] for name in example if name != key} for example in examples]))
        if "labels" not in batch:
            raise LayoutError("the collator gives no labels; the gate needs to know the supervised tokens")
        input_ids_BS = batch["input_ids"]
        layout = layout_from_labels(
            batch["labels"],
            batch.get("attention_mask", torch.ones_like(input_ids_BS)),
            visual_BS=torch.isin(input_ids_BS, torch.tensor([*visual], dtype=torch.int64)),
            special_BS=torch.isin(input_ids_BS, torch.tensor([*special_token_ids], dtype=torch.int64)),
            input_ids_BS=input_ids_BS,
            grids=None if grids is None else grids(batch),
        )
        _check_visual(batch, layout, visual)
        return {**batch, KEY: Named(torch.tensor(ids), input_ids_BS, layout, visual)}

    return collate


def _check_visual(batch: Mapping[str, Any], layout: Layout, visual: tuple[int, ...]) -> None:
    """Pictures without a visual position would be kept as prompt, and read by the teacher as text."""
    pixels = [name for name, value in batch.items() if name.startswith(_PIXELS) and _holds_pixels(value)]
    if pixels and not bool((layout.kind_BS == Kind.VISUAL).any()):
        raise LayoutError(
            f"the batch has {pixels[0]}, and none of its token ids is in visual_token_ids {list(visual)}: give "
            "with_sample_ids the ids of the placeholders (model.config.image_token_id, video_token_id, ...)"
        )


def _holds_pixels(value: Any) -> bool:
    return value is not None and (value.numel() if isinstance(value, Tensor) else len(value)) > 0


def named_of(batch: Mapping[str, Any]) -> Named:
    """What the gate knows of a batch.

    Raises:
        ConfigError: the collator is not one that `with_sample_ids` made.
    """
    if not isinstance(batch, Mapping) or KEY not in batch:
        raise ConfigError(
            "the batch does not say which samples it holds: wrap the collator, "
            "data_collator=with_sample_ids(collator, visual_token_ids=[...])"
        )
    named: Named = batch[KEY]
    return named


def make_gate(
    folder: Path | str | None = None,
    config: GateConfig | None = None,
    *,
    reference: Path | str | None = None,
    run: Path | str | None = None,
    teacher: nn.Module,
    dataset: Any,
    collator: Collator,
    fingerprint: Mapping[str, Any],
    batch_size: int = 8,
    placeholder_id: int = 0,
    seed: int = 0,
) -> Gate:
    """The reference losses of a data set, scored once and kept on disk, and the gate that reads them.

    Call it on every process; under torch.distributed they share the scoring. A run that resumes calls it again, and
    `GatedTrainer` goes back to the checkpoint's difficulty; a run that starts anew starts with a fresh one.

    Args:
        folder: of this run, with its reference losses and its difficulty; on a file system that all processes see.
        config: None takes the paper's settings.
        reference, run: in the place of `folder`: where the reference losses are, which many runs may share (the
            teacher reads the data once), and the folder of this run alone.
        teacher: the student's own text backbone (`regate.teacher.TextBackbone(model)`), or another causal LM with the
            same tokenizer.
        dataset: the training set, with ids; its length is known.
        collator: made by `with_sample_ids`.
        fingerprint: names of what the losses depend on: teacher, tokenizer, data, template. The collator's
            `visual_token_ids` and the settings of the pass are added.
        placeholder_id: see `regate.score_reference`.

    Raises:
        ConfigError: neither `folder` nor both of `reference` and `run` are given, or the collator names no samples.
        StoreError: the reference losses there were made from something else.
    """
    config = GateConfig() if config is None else config
    reference, run = _places(folder, reference, run)
    keys = _keys(dataset, collator, config, batch_size)
    store = None
    if config.needs_reference:
        writer = ReferenceWriter.create(
            reference, sample_ids=keys.ids, num_targets=keys.counts, checksums=keys.checksums,
            fingerprint={**fingerprint, **_settings(config), "visual_token_ids": list(keys.visual_token_ids)},
        )  # fmt: skip
        share = {*writer.share(process.rank(), process.world())}
        places = [place for place, sample_id in enumerate(keys.ids) if sample_id in share]
        store = score_reference(
            teacher, _named(dataset, collator, places, batch_size), writer, placeholder_id=placeholder_id,
            placeholders=config.reference.placeholders, dtype=config.reference.dtype, candidates=config.candidates,
        )  # fmt: skip
    difficulty = None
    if config.needs_difficulty:
        difficulty = DifficultyStore.for_gate(
            run / "difficulty", config, reference=store, sample_ids=keys.ids, num_targets=keys.counts,
            resume=True,
        )
    return Gate(config, store, difficulty, seed=seed)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What the stores are keyed by, one entry a sample, and the collator's visual token ids."""

    ids: list[int]
    counts: list[int]
    checksums: list[int]
    visual_token_ids: tuple[int, ...]


def _keys(dataset: Any, collator: Collator, config: GateConfig, batch_size: int) -> _Keys:
    ids, counts, checksums = [], [], []
    visual: tuple[int, ...] = ()
    for named in _named(dataset, collator, range(len(dataset)), batch_size):
        visual = named.visual_token_ids
        count_B, checksum_B = store_keys(named.layout, config.candidates)
        ids += named.sample_ids_B.tolist()
        counts += count_B
        checksums += checksum_B
    return _Keys(ids, counts, checksums, visual)


def _places(
    folder: Path | str | None, reference: Path | str | None, run: Path | str | None
) -> tuple[Path, Path]:
    """Where the reference losses are, and the run's own folder."""
    if folder is not None and reference is None and run is None:
        return Path(folder) / "reference", Path(folder)
    if folder is None and reference is not None and run is not None:
        return Path(reference), Path(run)
    raise ConfigError("make_gate takes the run's folder, or reference= and run= in its place")


class GatedTrainer(Trainer):  # type: ignore[misc]
    """A transformers Trainer whose training steps run through a gate.

    Selection, elision, the loss on scored targets, its normalisation over the global batch (accumulation and
    processes), the difficulty and its checkpoints are taken care of; evaluation, saving and everything else are
    Trainer's. The model computes no labels loss of its own while training. A run that does not resume starts with a
    fresh difficulty. Beside the loss it logs, for this process and since the last log: `regate_keep_ratio` of the
    last step, `regate_sparse` (the part of the steps that were sparse), and the sums `regate_scored` of
    `regate_targets` and `regate_active` of `regate_positions` (padding not counted).

    Args:
        gate: made by `make_gate`, or by hand; `DenseGate()` trains the baseline on the same path.
        rows: "padded" or "packed", as `regate.attach` takes it; `self.elide.kernel` says what computes packed rows.
        args, kwargs: Trainer's. The data collator is one made by `with_sample_ids`.

    Raises:
        ConfigError: remove_unused_columns would take the ids away, or several GPUs in one process.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the scored targets of the whole accumulated batch

    def __init__(self, *args: Any, gate: Gate | DenseGate, rows: Rows = "padded", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            raise ConfigError("set remove_unused_columns=False in TrainingArguments: it drops the sample ids")
        if self.args.n_gpu > 1:
            raise ConfigError("several GPUs in one process (DataParallel) are not supported; start it with torchrun")
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ConfigError(
                "compute_loss_func and label smoothing would be ignored: GatedTrainer computes the loss"
            )
        if isinstance(gate, Gate) and gate.config.ramp is not None and gate.config.ramp.loss is not None:
            raise ConfigError("ramp.loss goes by the loss of a global batch, which Trainer does not say: ramp.steps")
        self.gate = gate
        execution = gate.config.execution if isinstance(gate, Gate) else "compact"
        outputs: Outputs = "predictors" if rows == "packed" else "active"
        self.elide = attach(self.model, execution=execution, rows=rows, outputs=outputs)
        self.model_accepts_loss_kwargs = True  # older Trainers read this in place of loss_is_scaled_for_ga
        self.add_callback(_EpochStart(self.gate))
        self._steps: list[list[Decision]] = []

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of a step, decided, and the number of scored targets that divides their loss."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        decisions = []
        for batch in batches:
            named = named_of(batch)
            named.decision = self.gate.decide(named.layout, named.sample_ids_B, step=self.state.global_step)
            decisions.append(named.decision)
        self._steps += [decisions] if decisions else []
        if self.args.average_tokens_across_devices:
            return batches, count_scored(decisions, device=device)
        return batches, max(1, sum(decision.counts.scored for decision in decisions))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Training: the sum of the scored losses over `num_items_in_batch`. Evaluation: Trainer's own."""
        rest = {name: value for name, value in inputs.items() if name != KEY}
        if not model.training:
            return super().compute_loss(model, rest, return_outputs=return_outputs)
        decision = named_of(inputs).decision
        assert decision is not None
        assert num_items_in_batch is not None
        del rest["labels"]
        elided = self.gate.elided(decision)
        if elided is not None:
            with torch.no_grad(), self.elide(elided), scored_rows(model, elided.predictor_BS):
                elided_MV = model(**rest).logits
        with self.elide(decision), scored_rows(model, decision.predictor_BS):
            outputs = model(**rest)
        targets_N = decision.targets_N.to(outputs.logits.device, non_blocking=True)
        loss_N = token_loss(outputs.logits, targets_N)
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        trained_N = loss_N * self.gate.weights(decision, loss_N)
        if elided is not None:
            trained_N = trained_N + self.gate.distil * distil_loss(decision, outputs.logits, elided, elided_MV)
        loss = trained_N.sum() * scale / num_items_in_batch
        self.gate.observe(decision, loss_N)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's, with what the gate did since the last log beside a training loss."""
        if "loss" in logs and self._steps:
            logs = {**logs, **_gate_logs(self._steps)}
            self._steps = []
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        state = {"kind": "gate state", **self.gate.state_dict()}
        write_json(folder / f"regate.rank{process.rank()}.json", state)
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.gate.load_state_dict(_gate_state(Path(checkpoint)))


def _gate_logs(steps: Sequence[Sequence[Decision]]) -> dict[str, float]:
    """Sums over the micro-batches of some steps of this process."""
    counts = [decision.counts for decisions in steps for decision in decisions]
    return {
        "regate_keep_ratio": steps[-1][-1].keep_ratio,
        "regate_sparse": sum(decisions[-1].sparse for decisions in steps) / len(steps),
        "regate_scored": sum(count.scored for count in counts),
        "regate_targets": sum(count.target for count in counts),
        "regate_active": sum(count.active for count in counts),
        "regate_positions": sum(count.valid for count in counts),
    }


class _EpochStart(TrainerCallback):  # type: ignore[misc]
    """Starts a run over with a fresh difficulty, unless it resumes, and folds the difficulty of earlier epochs. At
    the start, not the end: a run that resumes at the border of two epochs never sees the first one's end."""

    def __init__(self, gate: Gate | DenseGate) -> None:
        self.gate = gate

    def on_train_begin(
        self, args: transformers.TrainingArguments, state: transformers.TrainerState, control: Any, **kwargs: Any
    ) -> None:
        if isinstance(self.gate, DenseGate):
            return
        if state.global_step == 0:
            self.gate.start_over()
        config = self.gate.config
        if config.has_sparse_steps and config.warmup_steps >= state.max_steps:
            warnings.warn(
                f"the gate's warm-up ({config.warmup_steps} steps) covers the whole run ({state.max_steps} steps): "
                "nothing is elided; lower GateConfig.warmup_steps",
                stacklevel=2,
            )

    def on_epoch_begin(
        self, args: transformers.TrainingArguments, state: transformers.TrainerState, control: Any, **kwargs: Any
    ) -> None:
        self.gate.start_epoch(int((state.epoch or 0.0) + 1e-6))


def _gate_state(checkpoint: Path) -> dict[str, Any]:
    """This process's state, or that of process 0 for one that the earlier run did not have."""
    own, first = (checkpoint / f"regate.rank{rank}.json" for rank in (process.rank(), 0))
    if not first.exists():
        raise StoreError(f"{checkpoint} has no gate state ({first.name}): it was not written by GatedTrainer")
    return read_json(own if own.exists() else first, "gate state")


def _settings(config: GateConfig) -> dict[str, str]:
    candidates: Candidates = config.candidates
    return {
        "candidates": candidates,
        "placeholders": config.reference.placeholders,
        "dtype": config.reference.dtype,
    }


def _named(dataset: Any, collator: Collator, places: Sequence[int], batch_size: int) -> Iterator[Named]:
    for start in range(0, len(places), batch_size):
        yield named_of(collator([dataset[place] for place in places[start : start + batch_size]]))
