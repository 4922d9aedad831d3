"""The training loop: the same for a baseline and for ReGATE, which differ in the gate alone.

One step: decide what to compute (Eq. 3, 4, section 3.3), compute it (section 3.4), learn from it, tell the gate
(Eq. 2). The ledger stands around it and never enters the maths. Legend: B rows, S length, N scored targets, V
vocabulary.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import set_seed

import regate
from harness.common.errors import DataError, Preempted
from harness.common.files import atomic_folder
from harness.common.hashing import digest
from harness.common.numbers import GB
from harness.common.signals import stop_requests
from harness.data.loading.batches import windows
from harness.data.sampler import Sampler
from harness.models import MODELS, device
from harness.models.decoder_flops import LayerSpan, pass_flops, step_flops
from harness.plan.memory import recomputed_layers
from harness.plan.work import lengths_in
from harness.records.ledger import Clocks, Ledger, finished_step, read_steps
from harness.records.tracking import MirrorBeside, MirrorChild
from harness.training import checkpoint
from harness.training.attachment import attach
from harness.training.cpu_time import CpuMeter
from harness.training.kept_models import seal_model
from harness.training.launching import processes
from harness.training.loss_norm import norms_of
from harness.training.optimizer import lr_at
from harness.training.placement.parallel import wrap_model
from harness.training.recompute import recompute_first
from harness.training.step_report import StepResult, send_report
from harness.training.stores.sample_lengths import StepSizes, needs_lengths, sample_lengths, step_sizes
from harness.training.stores.tower_cache import kept_tower_features
from regate.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.sample import Batch
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter, ParameterGroup
    from harness.training.loss_norm import MicroBatchNorm
    from harness.training.step_report import StepReport


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What a training needs, made by the stages before it.

    Attributes:
        steps: optimizer steps in all.
        evaluate_at: numbers of steps after which a model checkpoint is kept for evaluation.
        make_gate: the gate of the recipe, or `regate.DenseGate` for a baseline; called on every process.
        began: `time.perf_counter()` when the training's processes were started; None where there is only this one.
        mirrors: sends the run to MLflow while it goes on.
    """

    recipe: Recipe
    steps: int
    evaluate_at: tuple[int, ...]
    adapter: Adapter
    data: DataSet
    make_gate: Callable[[], regate.Gate | regate.DenseGate]
    run_dir: Path
    progress: Progress
    began: float | None = None
    mirrors: MirrorChild = field(default_factory=MirrorChild)

    @property
    def ledger_path(self) -> Path:
        return self.run_dir / "ledger.jsonl"

    def model_dir(self, step: int) -> Path:
        return self.run_dir / "checkpoints" / f"step-{step:06d}"

    @property
    def finished(self) -> bool:
        kept = all(self.model_dir(step).exists() for step in self.evaluate_at)
        return kept and finished_step(self.ledger_path) == self.steps


class Loop:
    """The objects of a training, prepared for the devices."""

    def __init__(self, job: TrainJob) -> None:
        self.job = job
        self.recipe = job.recipe.train
        self.accelerator = device.accelerator(self.recipe)
        set_seed(job.recipe.seed + self.accelerator.process_index)
        self.groups: dict[str, dict[str, Any]] = {}
        self.recomputed = 0
        self.parallel = wrap_model(
            self.accelerator,
            job.recipe,
            job.adapter.student,
            self._prepare_student,
            self._note_groups,
            job.adapter.shard_units,
        )
        self.model = self.parallel.model
        self.gate = job.make_gate()
        sizes = self._sizes()
        self.sampler = Sampler(
            len(job.data.samples),
            global_batch=self.recipe.global_batch,
            micro_batch=self.recipe.micro_batch,
            seed=job.recipe.seed,
            world=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            groups=job.data.modality,
            sizes=sizes,
            level=sizes is not None and self.recipe.cut == "level",
        )
        self.shape = job.adapter.shape()
        self.identity = digest(job.recipe.identity())

    def _sizes(self) -> StepSizes | None:
        """What micro-batches are cut and dealt by; None where they are as they were drawn, in turn."""
        job = self.job
        if not needs_lengths(job.recipe, self.accelerator.num_processes):
            return None
        stores = Path(job.recipe.paths.stores)
        return step_sizes(job.recipe, sample_lengths(job.data, job.adapter.processor(), stores, job.progress))

    def _note_groups(self, student: nn.Module) -> Sequence[ParameterGroup]:
        """The student's parts; their sizes and learning rates are kept for the record."""
        groups = self.job.adapter.parameter_groups(student)
        for group in groups:
            self.groups[group.name] = {**group.counts(), "lr": group.lr or self.recipe.optimizer.lr}
        return groups

    def _prepare_student(self, student: nn.Module) -> regate.ScoredLM:
        """The student as it is trained: elided below its head, recomputed where the recipe says so."""
        if self.recipe.gradient_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            self.recomputed = recompute_first(student, self._layers_to_recompute())
        student.train()
        self.elide = attach(student, self.job.recipe, self.job.progress.say)
        return regate.ScoredLM(student)

    def _layers_to_recompute(self) -> int | None:
        """None for all. `auto` goes by the smallest GPU, so that every process computes the same."""
        if self.recipe.recompute != "auto":
            return None if self.recipe.recompute == "all" else self.recipe.recompute
        memory = device.memory_bytes(self.accelerator.device)
        if memory is None:
            return None
        least = self.accelerator.gather(torch.tensor([memory], device=self.accelerator.device)).min()
        recipe = self.job.recipe
        footprint = MODELS[recipe.model.adapter].footprint(recipe)
        lengths = lengths_in(footprint, self.job.data)
        return recomputed_layers(recipe, footprint, lengths, self.accelerator.num_processes, float(least) / GB)

    def asked_attention(self) -> dict[str, str]:
        """The attention kernel, where the recipe names it: that of packed rows also stands in every step."""
        name = self.job.recipe.model.attention
        return {} if name == "auto" else {"attention": name}

    def step(self, window: list[Batch], step: int) -> StepResult:
        """One optimizer step over this process's part of the global batch."""
        decisions = [self.gate.decide(batch.layout, batch.sample_ids_B, step=step) for batch in window]
        elided = [self.gate.elided(decision) for decision in decisions]
        norms = self.norms(decisions)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        distil_sum = torch.zeros_like(loss_sum)
        for place, (batch, decision, less) in enumerate(zip(window, decisions, elided, strict=True)):
            elided_MV = None if less is None else self._elided_logits(batch, less, step, place)
            self._seed_dropout(step, place)
            with self.parallel.micro_batch(), self.elide(decision):
                logits_NV, targets_N = self.job.adapter.forward(self.model, batch, decision)
                token_loss_N = regate.token_loss(logits_NV, targets_N)
                kept_loss_N = trained_N = token_loss_N * self.gate.weights(decision, token_loss_N)
                if less is not None and elided_MV is not None:
                    distil_N = regate.distil_loss(decision, logits_NV, less, elided_MV)
                    trained_N = kept_loss_N + self.gate.distil * distil_N
                    distil_sum += distil_N.detach().sum()
                self.parallel.backward(norms[place].total(decision, trained_N))
            self.gate.observe(decision, token_loss_N.detach())
            loss_sum += kept_loss_N.detach().sum()
        limit = self.recipe.optimizer.max_grad_norm
        lr = lr_at(self.recipe.optimizer, step, self.job.steps)
        grad_norm = self.parallel.update(lr, math.inf if limit is None else limit)
        tower_kept = sum(len(batch.sample_ids_B) for batch in window if "tower_features" in batch.inputs)
        learned_from = [decision for decision in elided if decision is not None]
        flops, flops_dense = self._flops(decisions, learned_from, tower_kept)
        return StepResult(
            counts=sum((decision.counts for decision in decisions), regate.TokenCounts()),
            executed=sum(self.elide.executed(decision) for decision in (*decisions, *learned_from)),
            padding=sum(self._padding(decision) for decision in (*decisions, *learned_from)),
            rows=self.elide.rows,
            kernel=self.elide.kernel,
            keep_ratio=decisions[0].keep_ratio,
            sparse=decisions[0].sparse,
            loss_sum=loss_sum,
            distil_sum=distil_sum if learned_from else None,
            flops=flops,
            flops_dense=flops_dense,
            tower_kept=tower_kept,
            grad_norm=grad_norm,
            skipped=bool(self.accelerator.optimizer_step_was_skipped),
        )

    def _elided_logits(self, batch: Batch, elided: regate.Decision, step: int, place: int) -> Tensor:
        """What the elided forward pass of a dense step predicts, without gradient. It draws the same dropout as the
        pass that learns from it."""
        self._seed_dropout(step, place)
        with torch.no_grad(), self.elide(elided):
            return self.job.adapter.forward(self.model, batch, elided)[0]

    def _seed_dropout(self, step: int, place: int) -> None:
        """All that draws within a step is dropout. Its masks depend on the seed, the step and the micro-batch of the
        global batch: neither on the number of processes nor on where a run was resumed."""
        number = self.sampler.number(step, place)
        entropy = np.random.SeedSequence([self.job.recipe.seed, step, number])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    def _flops(
        self, decisions: list[regate.Decision], elided: list[regate.Decision], tower_kept: int
    ) -> tuple[float, float]:
        """FLOPs of this process's step as decided, and of the same batch with nothing elided.

        Args:
            elided: passes of a dense step that it distils from.
            tower_kept: samples for which the vision tower computed nothing.
        """
        dense = -self.shape.tower_flops * tower_kept
        decided = dense * (2 if elided else 1)
        limited = self.elide.outputs == "predictors"
        for_step = partial(step_flops, self.shape, recomputed=self.recomputed)
        for decision in decisions:
            valid_B = decision.layout.valid_BS.sum(dim=1).tolist()
            target = decision.counts.target
            decided += self._pass_flops(decision, for_step)
            dense += for_step(valid_B, target, last_layer=target if limited else None)
        decided += sum(self._pass_flops(decision, partial(pass_flops, self.shape)) for decision in elided)
        return decided, dense

    def _pass_flops(self, decision: regate.Decision, flops: Callable[..., float]) -> float:
        active_B = decision.active_BS.sum(dim=1).tolist()
        read = int((decision.predictor_BS & decision.active_BS).sum())
        limited = self.elide.outputs == "predictors"
        spans = None
        if decision.levels or decision.deep is not None or decision.layer_keep is not None:
            spans = [LayerSpan(*astuple(work)) for work in self.elide.work(decision)]
        return flops(active_B, decision.counts.scored, last_layer=read if limited else None, spans=spans)

    def _padding(self, decision: regate.Decision) -> int:
        """Positions that are computed for the arrangement of rows alone; where layers differ rows are packed, and the
        few that fill one up are not told apart."""
        if decision.levels or decision.deep is not None or decision.layer_keep is not None:
            return 0
        return self.elide.executed(decision) - int(decision.active_BS.sum())

    def norms(self, decisions: list[regate.Decision]) -> list[MicroBatchNorm]:
        """How each micro-batch's losses become the mean that the recipe asks for; a small collective, whose result
        stays on the device."""

        def sum_processes(local: Tensor) -> Tensor:
            total: Tensor = self.accelerator.reduce(on_device(local, self.accelerator.device), "sum")
            return total

        return norms_of(
            decisions,
            self.recipe.loss_norm,
            sum_processes=sum_processes,
            processes=self.accelerator.num_processes,
            accumulation=self.accelerator.gradient_accumulation_steps,
        )

    def send(self, result: StepResult, window: list[Batch], *, stop: bool, save: bool = False) -> StepReport:
        """See `send_report`."""
        return send_report(self.accelerator, result, window, stop=stop, save=save)

    @property
    def reads_late(self) -> bool:
        """Whether a step's report is read once the next step is queued. On the CPU a step is over when it returns,
        and its seconds are its own."""
        return bool(self.accelerator.device.type == "cuda")


def train(job: TrainJob, *, now: Callable[[], float] = time.perf_counter) -> None:
    """Train to the end, from the newest checkpoint if there is one. A finished training is left alone.

    Args:
        now: seconds of the monotonic clock that `job.began` was read from.

    Raises:
        Preempted: the process was asked to stop; a checkpoint was written first.
        HarnessError: the loss or the gradient is not finite.
    """
    if job.finished:
        return
    with processes.group_of_one(job.recipe.devices):
        _train(job, now)


def _train(job: TrainJob, now: Callable[[], float]) -> None:
    clocks = Clocks(job.began, now=now)
    loop = Loop(job)
    devices = loop.accelerator.num_processes
    start = _resume(loop)
    device.reset_peak(loop.accelerator.device)
    batches = windows(
        job.data,
        job.adapter.processor(),
        loop.sampler,
        start=start,
        stop=job.steps,
        workers=loop.recipe.workers,
        features=kept_tower_features(job.recipe, job.data, job.adapter),
    )
    path = job.ledger_path if loop.accelerator.is_main_process else None
    with Ledger(path) as ledger, stop_requests() as stopping:
        clocks.lap("io")
        facts = {"groups": loop.groups, "recomputed_layers": loop.recomputed, **loop.asked_attention()}
        facts = {name: value for name, value in facts.items() if value}
        ledger.append("start", step=start, steps=job.steps, world=devices, clock=clocks.reading, **facts)
        ledger.append("stage", stage="load", seconds=clocks.take(), devices=devices)
        try:
            with closing(batches), job.progress.task(f"train {job.recipe.name}", job.steps, start=start) as advance:
                notes = _StepNotes(loop, ledger, clocks, advance)
                mirror = MirrorBeside(job.recipe, job.run_dir, job.progress.say, job.mirrors)
                timer = _SaveTimer(job.recipe.devices.checkpoint_minutes, now)
                for step, window in zip(range(start, job.steps), batches, strict=True):
                    clocks.lap("data")
                    notes.meter.start()
                    report = loop.send(loop.step(window, step), window, stop=stopping(), save=timer.due)
                    notes.add(step, report)
                    if loop.sampler.epoch_of(step + 1) != loop.sampler.epoch_of(step):
                        loop.gate.end_epoch()
                    if notes.stop or notes.save or _due(loop, step + 1):
                        notes.finish()
                    if _keep(loop, ledger, clocks, step + 1, stop=notes.stop, save=notes.save):
                        notes.save = False
                        timer.restart()
                    if loop.accelerator.is_main_process:
                        mirror()
                ended = _at_the_end(loop)
                clocks.lap("io")
        finally:
            # What is left to do after the last step: the loading processes end.
            clocks.lap("data")
            ledger.append("stage", stage="unload", seconds=clocks.take(), devices=devices)
        ledger.append("end", step=job.steps, clock=clocks.reading, **ended)


def _at_the_end(loop: Loop) -> dict[str, Any]:
    """What the last line of a training says of its files that change no more: crc32 of the running losses by epoch,
    where the gate keeps any. The checkpoints, which said it until now, are removed."""
    checksums = loop.gate.checksums() if loop.accelerator.is_main_process else {}
    return {"running_losses": checksums} if checksums else {}


class _SaveTimer:
    """Says when the time since the last checkpoint is over; never where no time was set."""

    def __init__(self, minutes: float | None, now: Callable[[], float]) -> None:
        self._seconds, self._now = math.inf if minutes is None else 60.0 * minutes, now
        self.restart()

    def restart(self) -> None:
        self._last = self._now()

    @property
    def due(self) -> bool:
        return self._now() - self._last >= self._seconds


class _StepNotes:
    """The ledger's line of each step, written when its report is read: at once, or after the next step was queued.

    The seconds of a line run from the reading before. Where that is late they are the device's: it went from the end
    of one step to the end of the next.

    Attributes:
        stop: whether a process was asked to stop, as far as reports were read.
        save: whether it is time for a checkpoint, likewise; the loop takes it back.
        meter: CPU seconds of a step on a CPU, whose report is never read late.
    """

    def __init__(self, loop: Loop, ledger: Ledger, clocks: Clocks, advance: Callable[[int, str], None]) -> None:
        self._loop, self._ledger, self._clocks, self._advance = loop, ledger, clocks, advance
        self._unread: tuple[int, StepReport] | None = None
        self.meter = CpuMeter(loop.accelerator.device, loop.accelerator.num_processes)
        self.stop = self.save = False

    def add(self, step: int, report: StepReport) -> None:
        if self._unread is not None:
            self._write(*self._unread)
        self._unread = step, report
        self._clocks.lap("train")
        if not self._loop.reads_late:
            self.finish()

    def finish(self) -> None:
        """Read what was not read yet: what is written after this knows that the losses are finite."""
        if self._unread is not None:
            self._write(*self._unread)
            self._unread = None

    def _write(self, step: int, report: StepReport) -> None:
        line, stop = report.read()
        self._loop.gate.note_loss(step, line["loss"])
        line |= self.meter.fields()
        self.stop, self.save = self.stop or stop, self.save or report.save
        self._clocks.lap("train")
        lr = lr_at(self._loop.recipe.optimizer, step, self._loop.job.steps)
        epoch = self._loop.sampler.epoch_of(step)
        self._ledger.append("step", step=step, epoch=epoch, lr=lr, seconds=self._clocks.take(), **line)
        self._advance(step + 1, f"loss {line['loss']:.3f} keep {line['keep_ratio']:.2f}")


def _due(loop: Loop, done: int) -> bool:
    """Whether something is written after `done` steps."""
    job = loop.job
    return done in job.evaluate_at or done == job.steps or done % loop.recipe.checkpoint_every == 0


def _keep(loop: Loop, ledger: Ledger, clocks: Clocks, done: int, *, stop: bool, save: bool) -> bool:
    """Write the checkpoints that are due after `done` steps; whether one to resume from is among them."""
    job = loop.job
    if done in job.evaluate_at:
        loop.parallel.export(lambda model: _write_model(job, model, done))
    stop = stop and done < job.steps
    due = stop or done % loop.recipe.checkpoint_every == 0 or (save and done < job.steps)
    if due:
        ledger.sync()
        state = loop.gate.state_dict()
        folder = job.run_dir / "checkpoints"
        checkpoint.save(loop.parallel, folder, step=done, gate_state=state, identity=loop.identity)
    clocks.lap("io")
    if due or done == job.steps:
        ledger.append(
            "stage", stage="checkpoint", step=done, seconds=clocks.take(), devices=loop.accelerator.num_processes
        )
    if stop:
        raise Preempted(f"stopped after step {done} of {job.steps}", hint="the same command resumes it")
    return due


def _write_model(job: TrainJob, model: nn.Module, done: int) -> None:
    with atomic_folder(job.model_dir(done)) as folder:
        job.adapter.save(model, folder)
        seal_model(folder)


def _resume(loop: Loop) -> int:
    folder, say = loop.job.run_dir / "checkpoints", loop.job.progress.say
    newest = checkpoint.load_newest(loop.parallel, folder, identity=loop.identity, say=say)
    if newest is None:
        return 0
    step, gate_states = newest
    if loop.accelerator.is_main_process:
        _check_ledger(loop.job.ledger_path, step)
    loop.gate.load_state_dict(_merged(gate_states))
    loop.job.progress.say(f"resuming {loop.job.recipe.name} at step {step}")
    return step


def _merged(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The gate's state of all processes that wrote it: they differ in the lengths of their journals alone."""
    merged = dict(states[0])
    if merged["difficulty"] is not None:
        offsets = {rank: end for state in states for rank, end in state["difficulty"]["offsets"].items()}
        merged["difficulty"] = {**merged["difficulty"], "offsets": offsets}
    return merged


def _check_ledger(path: Path, step: int) -> None:
    """Raises DataError where the ledger lacks steps before `step`: the record could not be made after days."""
    held = {event["step"] for event in read_steps(path)}
    missing = [number for number in range(step) if number not in held]
    if missing:
        raise DataError(
            f"{path}: lacks {len(missing)} of the {step} steps that the checkpoint is made of, first {missing[0]}",
            hint=f"bring the ledger back, or move {path.parent} away to start anew: without it there is no record",
        )
