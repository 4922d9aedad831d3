"""What a run takes and what it can show, put together from the other files of this folder. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from harness.common.numbers import GB, percent, rounded
from harness.config.paper import read_paper
from harness.models import MODELS
from harness.models.other_vlm import name_of_vlm
from harness.plan.balance import balance_figures
from harness.plan.disk import disk_figures
from harness.plan.fetch import fetch_commands
from harness.plan.figures import Costs, Figure, estimated, stated
from harness.plan.memory import (
    check_devices,
    gpu_figures,
    gpus_of,
    host_figures,
    machines_of,
    teacher_figures,
    tower_bytes,
)
from harness.plan.nodes import node_lines
from harness.plan.questions import asked, difference_figures, question_figures
from harness.plan.teacher import seeing_footprint, teacher_decoder
from harness.plan.work import (
    GOOD_USE,
    PAPER_USE,
    PEAK,
    dense_and_sparse,
    lengths_of,
    same_work_figures,
    time_figures,
    work_figures,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.config.recipe import Recipe
    from harness.data.sources import DataSet
    from harness.models.footprint import Footprint
    from harness.plan import Plan
    from harness.plan.work import Lengths

TRAINING_MEMORY: Final = "memory of a GPU in training"
TEACHER_MEMORY: Final = "memory of a GPU in the teacher's pass"
PAPER_MODELS: Final = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2"}
_INTERNVL: Final = "InternVL3_5-"
"""How the names of the checkpoints of the paper's third model begin."""
CLIP_SECONDS: Final = (0.62, 1.27)
"""CPU seconds on an AMD EPYC for 16 frames of a clip of 360 lines, of 30 and of 120 s: 0.49 and 1.14 to read them
(`benchmarks/decode.py`, PyAV 15.1), 0.13 to make 384 x 384 of them and to normalise."""
CLIP_SOURCE: Final = "0.62 to 1.27 CPU-s for 16 frames of 360p, clips of 30 to 120 s (benchmarks/decode.py, AMD EPYC)"


def costs_of(recipe: Recipe, plan: Plan, data: DataSet | None) -> Costs:
    """Every figure of a run, each with its basis.

    Raises:
        RecipeError: what the recipe asks of the hardware that it names cannot be.
    """
    check_devices(recipe)
    whole = MODELS[recipe.model.adapter].footprint(recipe)
    footprint = _as_trained(whole, recipe, plan)
    every_step = None if footprint is whole else whole
    lengths = lengths_of(recipe, plan, footprint, data)
    gpus, memory = gpus_of(recipe)
    sections = {
        "work": [*work_figures(recipe, footprint, lengths), *balance_figures(recipe, lengths, gpus)],
        "time": time_figures(recipe, plan, footprint, lengths, gpus),
        "a baseline of the same work": same_work_figures(
            recipe, plan, footprint, lengths, every_step=every_step
        ),
        TRAINING_MEMORY: [] if recipe.model.generated else gpu_figures(recipe, footprint, lengths, gpus, memory),
        TEACHER_MEMORY: teacher_figures(recipe, plan, footprint, gpus),
        "memory of the machine": host_figures(recipe, plan, footprint, lengths, data, gpus),
        "decoding": decoding_figures(recipe, footprint, lengths, gpus),
        "disk": [*disk_figures(recipe, plan, footprint, lengths), *fetched_figures(recipe, plan)],
        "evaluation": question_figures(recipe, plan, footprint, data),
        "smallest difference between two runs": difference_figures(recipe, plan, data),
    }
    figures = {section: tuple(entries) for section, entries in sections.items() if entries}
    return Costs(
        figures=figures,
        fetch=tuple(fetch_commands(recipe, plan)),
        contradictions=tuple(contradictions(recipe)),
        warnings=(*_warnings(recipe, figures, memory), *_unknown_teacher(recipe, plan, footprint)),
        nodes=tuple(_nodes(recipe, plan, gpus)),
    )


def _nodes(recipe: Recipe, plan: Plan, gpus: int) -> list[str]:
    machines = machines_of(recipe)
    return node_lines(recipe, machines, gpus // machines, teacher=plan.teacher_pass) if gpus > 1 else []


def _as_trained(footprint: Footprint, recipe: Recipe, plan: Plan) -> Footprint:
    """The model as a step computes it: without a frozen tower whose features are kept, as on the CPU that a model
    made here trains on (`harness.training.stores.tower_cache`)."""
    size = tower_bytes(footprint, plan.samples)
    kept = size is not None and size <= recipe.devices.tower_cache_gb * GB and plan.epochs > 1
    if not kept or not recipe.model.generated:
        return footprint
    parts = tuple(part if part.trained else replace(part, forward=0.0) for part in footprint.parts)
    return replace(footprint, parts=parts)


def decoding_figures(recipe: Recipe, footprint: Footprint, lengths: Lengths, gpus: int) -> list[Figure]:
    """Cores that keep the GPUs busy."""
    if recipe.model.generated:
        return []
    dense, sparse = dense_and_sparse(recipe, footprint, lengths)
    flops = min(dense.total, sparse.total)
    low, high = (lengths.clips * gpus * PEAK * use / flops for use in (PAPER_USE, GOOD_USE))
    clips = f"{gpus} GPUs at {percent(PAPER_USE, 1)} to {percent(GOOD_USE, 0)} of an H100, every sample a video"
    return [
        estimated("clips", low, "a second", clips, high),
        estimated("CPU cores", low * CLIP_SECONDS[0], "", CLIP_SOURCE, high * CLIP_SECONDS[1]),
    ]


def fetched_figures(recipe: Recipe, plan: Plan) -> Iterator[Figure]:
    """What has to be fetched, as far as its publishers say its size."""
    weights = [need.gigabytes for need in recipe.model.needs() if getattr(recipe.model, need.field) is not None]
    if plan.missing_weights and weights:
        yield stated("weights", sum(size or 0 for size in weights), "GB", _known(weights, "files"))
    missing = "\n".join(plan.missing_data)
    folders = {benchmark.folder: benchmark for benchmark in asked(plan) if benchmark.origin.repository in missing}
    sizes = [benchmark.origin.gigabytes for benchmark in folders.values()]
    if sizes:
        yield stated("data of the benchmarks", sum(size or 0 for size in sizes), "GB", _known(sizes, "benchmarks"))


def _known(sizes: list[float | None], what: str) -> str:
    unknown = sum(size is None for size in sizes)
    return f"as published, all {what} together" + (f"; {unknown} of them without a stated size" if unknown else "")


def contradictions(recipe: Recipe) -> list[str]:
    """Places where the paper contradicts itself that touch this recipe; those of the gate do not touch a baseline."""
    model = PAPER_MODELS.get(recipe.model.adapter)
    if PurePath(getattr(recipe.model, "checkpoint", "")).name.startswith(_INTERNVL):
        model = "InternVL3.5"
    if model is None:
        return []
    return [
        f"{entry['touches']}: {entry['text']}"
        for entry in read_paper()["contradictions"]
        if model in entry["models"] and (recipe.gate is not None or entry["touches"] != "gate")
    ]


def _unknown_teacher(recipe: Recipe, plan: Plan, footprint: Footprint) -> Iterator[str]:
    if recipe.gate is not None and plan.teacher_pass and teacher_decoder(recipe, footprint) is None:
        yield f"the teacher {recipe.gate.reference.model} is not there and of unknown size: its pass is not counted"
    name = name_of_vlm(recipe)
    if plan.teacher_pass and name is not None and seeing_footprint(recipe, footprint) is None:
        yield f"the multimodal teacher {name} is not there: the reference pass is not counted"


def _warnings(recipe: Recipe, figures: dict[str, tuple[Figure, ...]], memory: float | None) -> Iterator[str]:
    together = [figure for figure in figures.get(TRAINING_MEMORY, ()) if figure.name == "together"]
    if memory is not None and together and together[0].high > memory:
        yield (
            f"{together[0].words} are more than the {memory:g} GB that `hardware` names: lower train.micro_batch, or "
            "set devices.sharding=full and train.gradient_checkpointing=true"
        )
    teacher = sum(figure.high for figure in figures.get(TEACHER_MEMORY, ()))
    if memory is not None and teacher > memory:
        yield (
            f"the teacher takes {rounded(teacher)} GB, more than the {memory:g} GB that `hardware` names: set "
            "devices.shard_teacher=true, or lower gate.reference.tokens_per_batch"
        )
