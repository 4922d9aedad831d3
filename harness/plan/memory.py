"""What a run holds at once, by part: memory of a GPU and of the machine; all calculated. No torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.common.errors import RecipeError
from harness.common.numbers import GB
from harness.models.footprint import kept_by_a_layer
from harness.models.other_vlm import name_of_vlm
from harness.plan.figures import Figure, counted, estimated
from harness.plan.nodes import check_split
from harness.plan.teacher import seeing_footprint

if TYPE_CHECKING:
    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.footprint import Footprint
    from harness.plan import Plan
    from harness.plan.work import Lengths

TRAINED_BYTES: Final = 16
"""Of a trained parameter: itself, its gradient and AdamW's two moments, in float32."""
ZERO_BYTES: Final = {"zero1": (8, 12), "zero2": (4, 16)}
"""Of one by DeepSpeed: on every GPU, and spread over them; the optimizer has a copy of the parameter."""
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
_GPUS: Final = re.compile(r"(?:(\d+) machines? of )?(\d+) GPUs?(?: of (\d+) GB)?")


def gpus_of(recipe: Recipe) -> tuple[int, float | None]:
    """Number of GPUs of all machines, as `devices.processes` or the words of `hardware` say, and their GB where the
    words do."""
    words = _GPUS.search(recipe.hardware or "")
    number = recipe.devices.processes or (int(words[2]) if words else 1)
    return number * machines_of(recipe), float(words[3]) if words and words[3] else None


def machines_of(recipe: Recipe) -> int:
    """As the words of `hardware` say; 1 where they do not."""
    words = _GPUS.search(recipe.hardware or "")
    return int(words[1]) if words and words[1] else 1


def check_devices(recipe: Recipe) -> None:
    """Refuse what cannot be on the hardware that the recipe names.

    Raises:
        RecipeError: weights are to be spread within each machine, and there is one; or the global batch is not a
            whole number of micro-batches for each GPU.
    """
    gpus, machines = gpus_of(recipe)[0], machines_of(recipe)
    if recipe.devices.sharding == "node" and machines == 1:
        raise RecipeError(
            f"{recipe.name}: devices.sharding is node, which spreads the weights within each of several machines, "
            f"and hardware names one ({recipe.hardware or 'nothing'})",
            hint="set devices.sharding=full, or hardware to N machines of M GPUs of G GB",
        )
    check_split(recipe, gpus)


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
    devices = recipe.devices
    sharded = devices.in_parts
    shards = shards_of(recipe, gpus)
    half = recipe.train.precision != "float32"
    where = f"spread over {shards} GPUs" if sharded else "whole on every GPU"
    on_gpu = 0 if devices.offload else 1
    tower = sum(part.parameters for part in footprint.parts if not part.trained)
    decoder = footprint.frozen - tower
    decoder_bytes = 2 if footprint.adapters and half else 4
    bytes_before = 2 if half and (sharded or footprint.adapters) else 4
    lie = "in the machine's memory" if devices.offload else where
    trained, bytes_of = on_gpu * TRAINED_BYTES / shards, f"{TRAINED_BYTES} bytes, {lie}"
    if devices.sharding in ZERO_BYTES and gpus > 1:
        every, spread = ZERO_BYTES[devices.sharding]
        trained, bytes_of = every + spread / gpus, f"{every} bytes and {spread} spread over {gpus} GPUs"
    figures = [
        counted(
            "weights, gradients, AdamW",
            trained * footprint.trained / GB,
            "GB",
            f"{footprint.trained / GB:.2f} billion trained parameters of {bytes_of}",
        ),
        counted(
            "frozen weights",
            (on_gpu * decoder_bytes * decoder / shards + bytes_before * tower) / GB,
            "GB",
            f"{decoder / GB:.2f} billion parameters of the decoder of {decoder_bytes} bytes, {lie}; {tower / GB:.2f} "
            f"billion before it of {bytes_before} bytes, whole on every GPU",
        ),
    ]
    if sharded:
        figures.append(_gathered(recipe, footprint))
    if devices.reduce == "step":
        size, source = 4 * footprint.trained / shards / GB, "float32, until machines add them once a step"
        figures.append(counted("sums of gradients of this machine", size, "GB", source))
    return figures + _activations(recipe, footprint, lengths, recomputed)


def shards_of(recipe: Recipe, gpus: int) -> int:
    """Over how many of the GPUs one copy of the weights is spread."""
    if recipe.devices.sharding == "node":
        return max(1, gpus // machines_of(recipe))
    return gpus if recipe.devices.sharding == "full" else 1


def teacher_figures(recipe: Recipe, plan: Plan, footprint: Footprint, gpus: int) -> list[Figure]:
    """Memory of one GPU while the teacher reads the data: its weights and the logits of a batch; none of a baseline,
    or where a teacher's files are not there to say their size."""
    if not plan.teacher_pass or recipe.gate is None or recipe.model.generated:
        return []
    reference, shape = recipe.gate.reference, footprint.decoder
    value = 2 if reference.dtype == "bfloat16" else 4
    if reference.model is None:
        weights, of = float(value * footprint.decoder_parameters), f"the student's decoder, {value} bytes a parameter"
    else:
        folder = Path(recipe.paths.weights) / reference.model
        weights = float(sum(path.stat().st_size for path in folder.glob("*.safetensors")))
        of = f"the files of {folder}"
    if not weights:
        return []
    shards = max(1, gpus // machines_of(recipe)) if recipe.devices.shard_teacher else 1
    where = f"spread over {shards} GPUs" if shards > 1 else "whole on every GPU"
    logits = value * reference.tokens_per_batch * shape.vocabulary
    rows = f"at most {reference.tokens_per_batch:,} rows, {value} bytes a logit"
    figures = [
        counted("the teacher's weights", weights / shards / GB, "GB", f"{of}, {where}"),
        estimated("the teacher's logits", logits / GB, "GB", rows),
    ]
    if reference.pictures and (seeing := seeing_footprint(recipe, footprint)) is not None:
        parameters = seeing.decoder_parameters + sum(part.parameters for part in seeing.parts)
        who = name_of_vlm(recipe) or "the student's starting weights"
        figures.append(
            counted("the model that sees the pictures", 4 * parameters / GB, "GB", f"{who}, 4 bytes a parameter")
        )
    if shards > 1:
        # The layer that computes and the next one; the head has come after them.
        whole = max(2 / shape.layers, shape.vocabulary * shape.hidden / footprint.decoder_parameters) * weights
        source = "two layers or the head, as a part of all weights"
        figures.append(estimated("put together for their pass", whole / GB, "GB", source))
    return figures


def _gathered(recipe: Recipe, footprint: Footprint) -> Figure:
    """Units that are whole for a moment, at the most, when the backward pass begins: two layers, the head, what is
    trained before the decoder; gradients of a layer, of the head and of that part, and their copies to be summed."""
    value = 4 if recipe.train.precision == "float32" else 2
    vocabulary = footprint.decoder.vocabulary * footprint.decoder.hidden
    before = sum(part.parameters for part in footprint.parts if part.trained)
    whole = 2 * footprint.layer_parameters + vocabulary + before
    trained = before + (0 if footprint.adapters else footprint.layer_parameters + vocabulary)
    size = value * whole + (value + 4) * trained
    source = f"two layers, head and what is trained before the decoder: {value} bytes, and {value + 4} of gradients"
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
    """Memory of one machine."""
    of_machine = gpus // machines_of(recipe)
    whole = 1 if recipe.devices.in_parts else of_machine
    weights = 4 * footprint.parameters * whole
    size = footprint.side
    clip = recipe.data.frames * 3 * size**2
    clips = recipe.train.workers * AHEAD * recipe.train.micro_batch * of_machine
    figures = [
        estimated("weights while they are read", weights / GB, "GB", f"float32, held by {whole} of the processes"),
        estimated(
            "clips made ready",
            clip * clips / GB,
            "GB",
            f"{of_machine} x {recipe.train.workers} loading processes, {AHEAD} micro-batches ahead, "
            f"{recipe.data.frames} frames of {size} x {size}, a byte a colour",
        ),
    ]
    if recipe.devices.offload:
        frozen = footprint.frozen - sum(part.parameters for part in footprint.parts if not part.trained)
        size = TRAINED_BYTES * footprint.trained + (2 if footprint.adapters else 4) * frozen
        part = of_machine / shards_of(recipe, gpus)
        source = f"devices.offload: {TRAINED_BYTES} bytes a trained parameter, pinned; {part:.3g} copies on a machine"
        figures.append(counted("weights, gradients, AdamW", part * size / GB, "GB", source))
    if data is None:
        packed = plan.samples * (ROW_BYTES + CHARACTERS * lengths.targets)
        source = f"{ROW_BYTES} bytes and {CHARACTERS} a target, assumed; shared by the processes of a machine"
        figures.append(estimated("conversations", packed / GB, "GB", source))
    return figures


def tower_bytes(footprint: Footprint, samples: int) -> int | None:
    """What a frozen tower says of so many samples, as it is kept (`harness.training.stores.tower_cache`); None where
    it cannot be kept."""
    return None if footprint.tower_output is None else 4 * footprint.tower_output * samples
