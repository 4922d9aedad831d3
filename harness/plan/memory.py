"""What a run holds at once, by part: memory of a GPU and of the machine; all calculated. No torch."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.models.footprint import kept_by_a_layer
from harness.plan.figures import Figure, counted, estimated

if TYPE_CHECKING:
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.footprint import Footprint
    from harness.plan import Plan
    from harness.plan.work import Lengths

GB: Final = 1e9
TRAINED_BYTES: Final = 16
"""Of a trained parameter: itself, its gradient and AdamW's two moments, in float32."""
LOGIT_BYTES: Final = 12
"""Of a logit: bfloat16, its float32 copy, the gradient of that, and bfloat16 again."""
AHEAD: Final = 2
"""Micro-batches that a loading process makes ready."""
ROW_BYTES: Final = 600
"""Of a packed sample beside its answer, where the data are not there: an assumption."""
CHARACTERS: Final = 5
"""Of a target, likewise."""
USABLE: Final = 0.9
"""Part of a GPU's memory that `train.recompute: auto` fills; the rest is the allocator's waste."""
_GPUS: Final = re.compile(r"(\d+) GPUs?(?: of (\d+) GB)?")


def gpus_of(recipe: Recipe) -> tuple[int, float | None]:
    """Number of GPUs, as `devices.processes` or the words of `hardware` say, and their GB where the words do."""
    words = _GPUS.search(recipe.hardware or "")
    number = recipe.devices.processes or (int(words[1]) if words else 1)
    return number, float(words[2]) if words and words[2] else None


def recomputed_layers(
    recipe: Recipe, footprint: Footprint, lengths: Lengths, gpus: int, memory: float | None
) -> int:
    """Layers of the decoder that are computed a second time in the backward pass, counted from the first: as
    `train.recompute` says. For `auto` the fewest with which the longest micro-batch leaves a tenth of the memory to
    the allocator.

    Args:
        memory: GB of a GPU; None where nobody knows.
    """
    layers, asked = footprint.decoder.layers, recipe.train.recompute
    if not recipe.train.gradient_checkpointing:
        return 0
    if isinstance(asked, int):
        return min(asked, layers)
    if asked == "all" or memory is None:
        return layers
    longest = _longest(lengths, recipe.train.micro_batch)
    for count in range(layers):
        parts = _gpu_parts(recipe, footprint, longest, gpus, count)
        if sum(figure.high for figure in parts) <= USABLE * memory:
            return count
    return layers


def _longest(lengths: Lengths, batch: int) -> Lengths:
    """As if every sample were a mean one of the longest micro-batch, of those that were looked at or drawn."""
    whole = len(lengths.target_N) // batch * batch
    order = np.random.default_rng(0).permutation(len(lengths.target_N))
    rows_MB = (order[:whole] if whole else order[:batch]).reshape(-1, min(batch, len(order)))
    positions_N = lengths.visual_N + lengths.prompt_N + lengths.target_N
    row_B = rows_MB[positions_N[rows_MB].sum(axis=1).argmax()]
    visual, prompt, targets = (
        float(array_N[row_B].mean()) for array_N in (lengths.visual_N, lengths.prompt_N, lengths.target_N)
    )
    return replace(lengths, visual=visual, prompt=prompt, targets=targets)


def gpu_figures(
    recipe: Recipe, footprint: Footprint, lengths: Lengths, gpus: int, memory: float | None
) -> list[Figure]:
    """Memory of one GPU in training, by part, in a dense step.

    Args:
        memory: GB that it has, where that is known; `train.recompute: auto` goes by it.
    """
    recomputed = recomputed_layers(recipe, footprint, lengths, gpus, memory)
    figures = _gpu_parts(recipe, footprint, lengths, gpus, recomputed)
    total = sum(figure.high for figure in figures)
    figures.append(estimated("together", total, "GB a GPU", "the sum; the allocator's own waste comes on top"))
    return figures


def _gpu_parts(
    recipe: Recipe, footprint: Footprint, lengths: Lengths, gpus: int, recomputed: int
) -> list[Figure]:
    sharded = recipe.devices.sharding == "full" and gpus > 1
    shards = gpus if sharded else 1
    frozen_bytes = 2 if footprint.adapters and recipe.train.precision != "float32" else 4
    where = f"spread over {gpus} GPUs" if sharded else "whole on every GPU"
    figures = [
        counted(
            "weights, gradients, AdamW",
            TRAINED_BYTES * footprint.trained / shards / GB,
            "GB",
            f"{footprint.trained / GB:.2f} billion trained parameters of {TRAINED_BYTES} bytes, {where}",
        ),
        counted(
            "frozen weights",
            frozen_bytes * footprint.frozen / shards / GB,
            "GB",
            f"{footprint.frozen / GB:.2f} billion parameters of {frozen_bytes} bytes, {where}",
        ),
    ]
    if sharded:
        figures.append(_gathered(footprint))
    return figures + _activations(recipe, footprint, lengths, recomputed)


def _gathered(footprint: Footprint) -> Figure:
    """Parts that are whole for a moment: two layers; what belongs to no layer, with its gradients."""
    others = footprint.other_parameters + sum(part.parameters for part in footprint.parts)
    trained = footprint.other_parameters + sum(part.parameters for part in footprint.parts if part.trained)
    size = 2 * (2 * footprint.layer_parameters + others + trained)
    source = "two layers and what belongs to none, in bfloat16"
    return estimated("put together for their pass", size / GB, "GB", source)


def _activations(recipe: Recipe, footprint: Footprint, lengths: Lengths, recomputed: int) -> list[Figure]:
    batch, shape = recipe.train.micro_batch, footprint.decoder
    positions = batch * lengths.positions
    value = 4 if recipe.train.precision == "float32" or recipe.model.generated else 2
    layer = positions * kept_by_a_layer(shape)
    # The kept layers are the last ones: they are given up before the first of the others is computed again.
    kept = shape.layers - recomputed
    decoder = recomputed * positions * shape.hidden + max(kept, 1) * layer
    if recomputed == shape.layers:
        source = "inputs of all layers, and one layer whole"
    elif recomputed:
        source = f"inputs of the first {recomputed} layers, and all that the other {kept} keep"
    else:
        source = "all that the layers keep"
    vision = batch * sum(part.kept for part in footprint.parts)
    vision += batch * max(part.at_once for part in footprint.parts)
    rows = batch * lengths.targets
    of = f"{batch} samples of {lengths.positions:,.0f} positions"
    return [
        estimated("decoder's activations", value * decoder / GB, "GB", f"{source}, {of}"),
        estimated("activations before the decoder", value * vision / GB, "GB", f"{batch} clips, from the shapes"),
        estimated(
            "logits",
            LOGIT_BYTES * rows * shape.vocabulary / GB,
            "GB",
            f"{rows:,.0f} scored rows, {LOGIT_BYTES} bytes a logit",
        ),
    ]


def host_figures(
    recipe: Recipe, plan: Plan, footprint: Footprint, lengths: Lengths, data: DataSet | None, gpus: int
) -> list[Figure]:
    """Memory of the machine."""
    whole = gpus if recipe.devices.sharding == "none" else 1
    weights = 4 * footprint.parameters * whole
    size = footprint.side
    clip = recipe.data.frames * 3 * size**2 * 4
    clips = recipe.train.workers * AHEAD * recipe.train.micro_batch * gpus
    figures = [
        estimated("weights while they are read", weights / GB, "GB", f"float32, held by {whole} of the processes"),
        estimated(
            "clips made ready",
            clip * clips / GB,
            "GB",
            f"{gpus} x {recipe.train.workers} loading processes, {AHEAD} micro-batches ahead, {recipe.data.frames} "
            f"frames of {size} x {size}",
        ),
    ]
    if data is None:
        packed = plan.samples * (ROW_BYTES + CHARACTERS * lengths.targets)
        source = f"{ROW_BYTES} bytes and {CHARACTERS} a target, assumed; shared by the processes of a machine"
        figures.append(estimated("conversations", packed / GB, "GB", source))
    return figures


def tower_bytes(footprint: Footprint, samples: int) -> int | None:
    """What a frozen tower says of so many samples, as it is kept (`harness.training.tower_cache`); None where it
    cannot be kept."""
    return None if footprint.tower_output is None else 4 * footprint.tower_output * samples
