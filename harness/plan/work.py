"""The arithmetic of a run: operations by part, the ratio of a sparse step, hours. No torch.

Legend: B rows of a micro-batch, N samples that were looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.common.numbers import percent
from harness.models.decoder_flops import forward_flops, recomputed_flops
from harness.models.other_vlm import name_of_vlm
from harness.plan.figures import Basis, Figure, counted, estimated
from harness.plan.memory import gpus_of, recomputed_layers
from harness.plan.sparse import differs_by_layer, sparse_forward, visual_part
from harness.plan.teacher import seeing_footprint, teacher_decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.config.recipe import GateConfig, Recipe
    from harness.data.sources import DataSet
    from harness.models.adapter import DecoderShape
    from harness.models.decoder_flops import ForwardFlops
    from harness.models.footprint import Footprint
    from harness.plan import Plan

_WORD: Final = re.compile(r"\w+|[^\w\s]")
LOOKED_AT: Final = 4096
"""Samples of the data whose lengths are estimated from their words."""
SIGMA: Final = 0.6
"""Of the logarithm of the answers' lengths, where the data are not there: an assumption."""
PEAK: Final = 989e12
"""FLOP/s of an H100 SXM in bfloat16 without sparsity, by its data sheet."""
GOOD_USE: Final = 0.40
"""Part of the peak that a well-kept training reaches: an assumption."""
PAPER_USE: Final = 0.074
"""Part of the peak at which VideoLLaMA2's baseline, all of its last layer computed, takes the paper's 129.6
GPU-hours."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of samples.

    Attributes:
        visual_N, prompt_N, target_N: of some samples, or of draws where there are no data.
        visual, prompt, targets: means, which the sums of the run are made of.
        clips: mean number of clips or images.
        basis: of the targets.
        source: of all of them, in words.
        padding: in words, what the padded lengths are from.
    """

    visual_N: NDArray[np.int64]
    prompt_N: NDArray[np.int64]
    target_N: NDArray[np.int64]
    visual: float
    prompt: float
    targets: float
    clips: float
    basis: Basis
    source: str
    padding: str

    @property
    def positions(self) -> float:
        return self.visual + self.prompt + self.targets


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of one sample, forward and backward, by part.

    Attributes:
        again: computed a second time in the backward pass.
    """

    parts: dict[str, float]
    again: float

    @property
    def total(self) -> float:
        return sum(self.parts.values()) + self.again


def lengths_of(recipe: Recipe, plan: Plan, footprint: Footprint, data: DataSet | None) -> Lengths:
    """What is known of the lengths: from the samples' words, or as stated, or as an ordinary sample of the model."""
    if data is not None:
        return lengths_in(footprint, data)
    return assumed_lengths(recipe, footprint, plan.targets.per_sample if plan.targets else None)


def assumed_lengths(recipe: Recipe, footprint: Footprint, stated: float | None) -> Lengths:
    """Where the data are not there.

    Args:
        stated: targets of a sample, as the recipe states them; None takes an ordinary sample of the model.
    """
    targets = float(footprint.targets) if stated is None else stated
    words = "an ordinary sample of the model" if stated is None else "stated in the recipe"
    rng = np.random.default_rng(0)
    drawn_N = np.exp(rng.normal(np.log(targets) - SIGMA**2 / 2, SIGMA, LOOKED_AT))
    most = getattr(recipe.model, "max_length", None)
    room = max(1, most - footprint.prompt) if most else None
    target_N = np.maximum(1, np.rint(np.minimum(drawn_N, room) if room else drawn_N)).astype(np.int64)
    return Lengths(
        visual_N=np.full(LOOKED_AT, footprint.visual_tokens),
        prompt_N=np.full(LOOKED_AT, footprint.prompt),
        target_N=target_N,
        visual=footprint.visual_tokens,
        prompt=footprint.prompt,
        targets=targets,
        clips=1.0,
        basis="estimated" if stated is None else "stated",
        source=f"targets {words}, {footprint.prompt} prompt tokens an ordinary sample of the model",
        padding=f"lengths as if log-normal with sigma {SIGMA}, since the data are not there",
    )


def words_in(text: str) -> int:
    """Words and punctuation marks."""
    return len(_WORD.findall(text))


def lengths_in(footprint: Footprint, data: DataSet) -> Lengths:
    """From at most LOOKED_AT samples, evenly taken."""
    total = len(data.samples)
    places = range(0, total, max(1, total // LOOKED_AT))
    samples = [data.samples[place] for place in places]
    answers = [sum(words_in(turn.text) + 1 for turn in s.turns if turn.role == "assistant") for s in samples]
    others = [sum(words_in(turn.text) for turn in s.turns if turn.role != "assistant") for s in samples]
    visual_N = np.array([footprint.visual_tokens * len(sample.media) for sample in samples], np.int64)
    prompt_N, target_N = np.array(others, np.int64), np.array(answers, np.int64)
    looked = f"words of {len(samples):,} samples"
    return Lengths(
        visual_N=visual_N,
        prompt_N=prompt_N,
        target_N=target_N,
        visual=float(visual_N.mean()),
        prompt=float(prompt_N.mean()),
        targets=float(target_N.mean()),
        clips=float(np.mean([len(sample.media) for sample in samples])),
        basis="estimated",
        source=looked,
        padding=looked,
    )


def sample_work(
    footprint: Footprint,
    positions: float,
    scored: float,
    *,
    recomputed: int,
    clips: float,
    last_layer: float | None = None,
    forward: tuple[ForwardFlops, ForwardFlops] | None = None,
) -> Work:
    """One sample.

    Args:
        positions: that the decoder computes.
        scored: rows of the head.
        recomputed: layers of the decoder that are computed a second time.
        clips: that pass through the parts in front of the decoder.
        last_layer: positions for which the last layer computes queries, output and MLP, and is then not recomputed;
            None for all.
        forward: of the decoder where its layers differ, and the part of it that is computed a second time.
    """
    if forward is None:
        whole = forward_flops(footprint.decoder, [positions], scored, last_layer=last_layer)
    else:
        whole = forward[0]
    products = 2.0 + footprint.decoder.trainable_linear
    parts = {part.name: clips * (part.forward + part.backward) for part in footprint.parts}
    parts["decoder"] = products * whole.linear + 3.5 * whole.attention + 3 * whole.adapters
    parts["head"] = products * whole.head + 6.0 * scored * footprint.head_adapters
    again = clips * sum(part.again for part in footprint.parts)
    if forward is None:
        layers = recomputed if last_layer is None else min(recomputed, footprint.decoder.layers - 1)
        again += recomputed_flops(footprint.decoder, [positions], layers)
    else:
        again += forward[1].linear + forward[1].attention + forward[1].adapters
    return Work(parts, again)


def limits_last_layer(recipe: Recipe) -> bool:
    """Whether the last layer computes queries, output and MLP of the positions that are read alone: as
    `harness.training.attachment` has it, of a model whose rows can be packed."""
    whole = recipe.gate is not None and recipe.gate.execution == "layerwise"
    return recipe.train.last_layer == "scored" and recipe.train.rows != "padded" and not whole


def dense_and_sparse(recipe: Recipe, footprint: Footprint, lengths: Lengths) -> tuple[Work, Work]:
    """A mean sample in a dense step and in a sparse one; the same twice for a baseline."""
    gate, clips = recipe.gate, lengths.clips
    recomputed = recomputed_layers(recipe, footprint, lengths, *gpus_of(recipe))
    work = partial(sample_work, footprint, recomputed=recomputed, clips=clips)
    limited = limits_last_layer(recipe)
    targets = max(1.0, lengths.targets)
    dense = work(lengths.positions, targets, last_layer=targets if limited else None)
    if gate is None:
        return dense, dense
    scored = max(1.0, gate.keep_ratio * lengths.targets)
    gone = (1 - visual_part(gate)) * lengths.visual
    if differs_by_layer(gate):
        other_N, target_N, scored_N = (
            np.array([number]) for number in (lengths.positions - lengths.targets - gone, lengths.targets, scored)
        )
        of_layers = partial(
            sparse_forward, gate, footprint.decoder, other_N, target_N, scored_N, gone_N=np.array([gone])
        )
        forward = of_layers(last_limited=limited)
        layers = footprint.decoder.layers - 1 if limited else footprint.decoder.layers
        sparse = work(0.0, scored, forward=(forward, of_layers(first_layers=min(recomputed, layers))))
    else:
        elided = lengths.targets - scored if gate.execution != "loss_only" else 0.0
        positions = lengths.positions - gone - elided
        read = scored if limited else None
        forward = forward_flops(footprint.decoder, [positions], scored, last_layer=read)
        sparse = work(positions, scored, last_layer=read)
    if gate.distil is not None:
        again = forward.linear + forward.attention + forward.head + forward.adapters
        again += clips * sum(part.forward for part in footprint.parts)
        dense = replace(dense, parts={**dense.parts, "elided pass to learn from": again})
    return dense, sparse


def at_mean_ratio(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe without a ramp, at the mean keep ratio of the run's sparse steps; any other one as it is."""
    gate = recipe.gate
    if gate is None or gate.ramp is None or plan.sparse_steps == 0:
        return recipe
    mean = 1 - (1 - plan.keep_ratio) * plan.steps / plan.sparse_steps
    return recipe.model_copy(update={"gate": replace(gate, keep_ratio=mean, ramp=None)})


def same_work_figures(
    recipe: Recipe, plan: Plan, footprint: Footprint, lengths: Lengths, *, every_step: Footprint | None = None
) -> list[Figure]:
    """At how many steps a baseline has scored, or computed, as much: `train.steps` of one that is stopped there, with
    a schedule of its own.

    Args:
        footprint: as the run's ledger counts its steps.
        every_step: with the tower in every step, where `footprint` leaves it out since its features are kept: equal
            FLOPs are then told by both accounts.
    """
    if recipe.gate is None or plan.sparse_steps == 0:
        return []
    mean = at_mean_ratio(recipe, plan)
    assert mean.gate is not None

    def equal_flops(counted_as: Footprint) -> float:
        dense, _ = dense_and_sparse(mean, counted_as, lengths)
        whole, _ = dense_and_sparse(recipe.model_copy(update={"gate": None}), counted_as, lengths)
        ratio, _ = sparse_ratios(mean, counted_as, lengths)
        return plan.dense_steps * dense.total / whole.total + plan.sparse_steps * ratio

    gone = (1 - visual_part(mean.gate)) * lengths.visual
    if mean.gate.elides:
        gone += lengths.targets - max(1.0, mean.gate.keep_ratio * lengths.targets)
    steps = {
        "equal targets": plan.steps * plan.keep_ratio,
        "equal positions": plan.steps - plan.sparse_steps * gone / lengths.positions,
        "equal FLOPs": equal_flops(footprint),
    }
    if every_step is not None:
        steps["equal FLOPs with the tower in every step"] = equal_flops(every_step)
    source = f"{plan.dense_steps:,} dense and {plan.sparse_steps:,} sparse steps, positions of the last layers"
    return [estimated(name, float(round(count)), "steps of the baseline", source) for name, count in steps.items()]


def run_flops(plan: Plan, dense: Work, sparse: Work) -> float:
    """All steps of the run."""
    return plan.global_batch * (plan.dense_steps * dense.total + plan.sparse_steps * sparse.total)


def teacher_flops(recipe: Recipe, plan: Plan, footprint: Footprint, lengths: Lengths) -> tuple[float, str]:
    """The teacher's pass over every sample, and what it is counted from; 0 where the gate reads no reference losses,
    or the teacher's size is not known."""
    known = teacher_decoder(recipe, footprint)
    if not plan.teacher_pass or recipe.gate is None or known is None:
        return 0.0, ""
    decoder, source = known
    seeing = seeing_footprint(recipe, footprint)
    if seeing is None:
        return 0.0, ""
    of_one = teacher_work(recipe.gate, decoder, seeing, lengths.positions, lengths.visual, lengths.targets)
    return plan.samples * of_one, source


def teacher_work(
    gate: GateConfig, decoder: DecoderShape, footprint: Footprint, positions: float, visual: float, targets: float
) -> float:
    """FLOPs of the forward pass of a teacher over one sample of so many positions, visual ones and targets; with
    pictures, also of the pass of the model that sees them (`footprint`), taken to be over as many."""
    attended = gate.reference.placeholders == "attended"
    forward = forward_flops(decoder, [positions - (0.0 if attended else visual)], targets)
    total = forward.linear + forward.attention + forward.head
    if gate.reference.pictures:
        seeing = forward_flops(footprint.decoder, [positions], targets)
        total += seeing.linear + seeing.attention + seeing.head + sum(part.forward for part in footprint.parts)
    return total


def sparse_ratios(recipe: Recipe, footprint: Footprint, lengths: Lengths) -> tuple[float, float]:
    """FLOPs of a sparse step as a part of a dense one: by valid positions, and by those that padded rows execute."""
    batch = recipe.train.micro_batch
    rows = len(lengths.target_N) // batch * batch
    if rows == 0:
        batch = rows = len(lengths.target_N)
    order = np.random.default_rng(1).permutation(len(lengths.target_N))[:rows]
    keep = recipe.gate.keep_ratio if recipe.gate else 1.0
    target_N = lengths.target_N[order]
    scored_N = np.maximum(1, np.floor(keep * target_N)).astype(np.int64)
    other_N = (lengths.visual_N + lengths.prompt_N)[order]
    elides = recipe.gate is not None and recipe.gate.execution != "loss_only"
    cells_N = np.ceil(visual_part(recipe.gate) * lengths.visual_N[order]).astype(np.int64)
    seen_N, gone_N = cells_N + lengths.prompt_N[order], lengths.visual_N[order] - cells_N
    dense_N, sparse_N = other_N + target_N, seen_N + (scored_N if elides else target_N)

    recomputed = recomputed_layers(recipe, footprint, lengths, *gpus_of(recipe))
    sparse_by_layer = None
    if recipe.gate is not None and differs_by_layer(recipe.gate):
        limited = recipe.train.last_layer == "scored"
        forward = partial(
            sparse_forward, recipe.gate, footprint.decoder, seen_N, target_N, scored_N, gone_N=gone_N
        )
        again = min(recomputed, footprint.decoder.layers - 1)
        sparse_by_layer = forward(last_limited=limited), forward(first_layers=again)

    def ratio(*, padded: bool) -> float:
        dense, sparse = (
            _batches(
                footprint,
                rows_N,
                heads_N,
                batch,
                clips=lengths.clips,
                padded=padded,
                recomputed=recomputed,
                by_layer=by_layer,
            )
            for rows_N, heads_N, by_layer in ((dense_N, target_N, None), (sparse_N, scored_N, sparse_by_layer))
        )
        return sparse / dense

    return ratio(padded=False), ratio(padded=True)


def _batches(
    footprint: Footprint,
    rows_N: NDArray[np.int64],
    heads_N: NDArray[np.int64],
    batch: int,
    *,
    clips: float,
    padded: bool,
    recomputed: int,
    by_layer: tuple[ForwardFlops, ForwardFlops] | None = None,
) -> float:
    """FLOPs of samples in micro-batches. Packed rows compute the last layer where its output is read, padded ones
    everywhere, as training does. `by_layer`: where layers differ, the forward pass and its recomputed part."""
    lengths_NB = rows_N.reshape(-1, batch)
    if padded:
        lengths_NB = np.broadcast_to(lengths_NB.max(axis=1, keepdims=True), lengths_NB.shape)
    active, read = lengths_NB.reshape(-1).tolist(), int(heads_N.sum())
    forward = forward_flops(footprint.decoder, active, read, last_layer=None if padded else read)
    if by_layer is not None:
        forward = by_layer[0]
    if not padded:
        recomputed = min(recomputed, footprint.decoder.layers - 1)
    products = 2.0 + footprint.decoder.trainable_linear
    total = products * (forward.linear + forward.head) + 3.5 * forward.attention + 3 * forward.adapters
    if by_layer is None:
        total += recomputed_flops(footprint.decoder, active, recomputed)
    else:
        total += by_layer[1].linear + by_layer[1].attention + by_layer[1].adapters
    vision = sum(part.forward + part.backward + part.again for part in footprint.parts)
    return total + vision * clips * len(rows_N) + 6.0 * float(heads_N.sum()) * footprint.head_adapters


def work_figures(recipe: Recipe, footprint: Footprint, lengths: Lengths) -> list[Figure]:
    """Positions and FLOPs of a sample."""
    dense, sparse = dense_and_sparse(recipe, footprint, lengths)
    unit, scale = ("TFLOP", 1e12) if dense.total >= 1e11 else ("GFLOP", 1e9)
    sizes = "; ".join(footprint.sources)
    figures = [
        counted("visual positions", lengths.visual, "a sample", sizes)
        if lengths.basis != "estimated"
        else estimated("visual positions", lengths.visual, "a sample", lengths.source),
        estimated("prompt positions", lengths.prompt, "a sample", lengths.source),
        Figure("targets", lengths.targets, lengths.targets, "a sample", lengths.basis, lengths.source),
    ]
    sources = f"formulas of benchmarks/model_flops.py, {sizes}"
    for name, value in dense.parts.items():
        figures.append(estimated(name, value / scale, f"{unit} a sample", sources))
    if dense.again:
        figures.append(estimated("computed a second time", dense.again / scale, f"{unit} a sample", sources))
    figures.append(estimated("dense step", dense.total / scale, f"{unit} a sample", sources))
    if recipe.gate is not None:
        figures.append(estimated("sparse step", sparse.total / scale, f"{unit} a sample", sources))
        valid, executed = sparse_ratios(recipe, footprint, lengths)
        figures += [
            estimated("sparse / dense, packed rows", valid, "", f"ideal, no padding; {sources}"),
        ]
        if recipe.gate.ramp is not None:
            end = replace(recipe.gate, keep_ratio=recipe.gate.ramp.to, ramp=None)
            valid, _ = sparse_ratios(recipe.model_copy(update={"gate": end}), footprint, lengths)
            figures.append(estimated("sparse / dense, at the ramp's end", valid, "", f"packed rows; {sources}"))
        if not differs_by_layer(recipe.gate):  # that needs packed rows
            figures += [
                estimated(
                    "sparse / dense, padded rows",
                    executed,
                    "",
                    f"ideal, where rows cannot be packed: both arms execute padding; {lengths.padding}",
                ),
            ]
    return figures


def hours(flops: float, use: Sequence[float] = (GOOD_USE, PAPER_USE)) -> tuple[float, float]:
    """GPU-hours on an H100, at the better and at the worse use of its peak."""
    low, high = (flops / (PEAK * part) / 3600 for part in use)
    return low, high


HOURS_SOURCE: Final = (
    f"H100, {PEAK / 1e12:.0f} TFLOP/s, {percent(GOOD_USE, 0)} of it used and the {percent(PAPER_USE, 1)} that the "
    "paper's hours imply"
)


def time_figures(recipe: Recipe, plan: Plan, footprint: Footprint, lengths: Lengths, gpus: int) -> list[Figure]:
    """FLOPs of the run, and for a model of published weights the GPU-hours that they are."""
    dense, sparse = dense_and_sparse(at_mean_ratio(recipe, plan), footprint, lengths)
    total = run_flops(plan, dense, sparse)
    teacher, size = teacher_flops(recipe, plan, footprint, lengths)
    unit, scale = _unit(total)
    figures = [estimated("training", total / scale, unit, f"{plan.steps:,} steps of {plan.global_batch} samples")]
    if teacher:
        figures.append(estimated("teacher", teacher / scale, unit, f"{_teacher_words(recipe)}; {size}"))
    if getattr(recipe.model, "generated", False):
        return figures
    low, high = hours(total)
    figures.append(estimated("training", low, "GPU-hours", HOURS_SOURCE, high))
    figures.append(
        estimated("training", low / gpus, f"hours on {gpus} GPUs", "GPU-hours shared evenly", high / gpus)
    )
    if teacher:
        low, high = hours(teacher)
        figures.append(estimated("teacher", low, "GPU-hours", f"{HOURS_SOURCE}; {size}", high))
    return figures


def _teacher_words(recipe: Recipe) -> str:
    if recipe.gate is not None and recipe.gate.reference.pictures:
        name = name_of_vlm(recipe)
        whose = "" if name is None else f" of {name}"
        return f"one forward pass over prompts and answers, and one{whose} with the pictures"
    return "one forward pass over prompts and answers"


def _unit(flops: float) -> tuple[str, float]:
    for unit, scale in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if flops >= scale:
            return unit, scale
    return "GFLOP", 1e9

