"""Where the kept models of a baseline and its gated run look when they write the right answer of an item.

Both read the same items with the right answer given, and the attention of the places that predict its tokens is
added up: by layer what goes to visual positions, and for a few items what goes to each cell of the clip. Attention
says where a model looks, not what its answer depends on.

The results lie in the gated run's folder (attention.json); figures are pure functions of that file.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.analysis.choices.kept_files import read_kept, write_kept
from harness.analysis.choices.needed_words import BOTH, LOST, items_of
from harness.analysis.choices.replay import recipe_of
from harness.analysis.runs import benchmarks_of
from harness.common.hashing import digest
from harness.data.sample import Sample, Turn, sample_id
from harness.evaluation.multiple_choice import LETTERS, prompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from harness.analysis.choices.needed_words import Item
    from harness.analysis.runs import Pair, Run
    from harness.benchmarks import Form
    from harness.common.progress import Progress
    from harness.config.recipe import Paths
    from harness.data.sample import Encoded, Question
    from harness.evaluation.task import MultipleChoiceTask
    from regate.types import Layout

SCHEMA: Final = 1
FILE: Final = "attention.json"
ITEMS: Final = 8
"""Items of each ability that are looked at: the first ones that both arms answered."""
ARMS: Final = ("baseline", "gated")
MAPPED: Final = (LOST, BOTH)
"""Groups of which the first item is shown cell by cell."""
_ROWS: Final = 4
_SIDE: Final = 96
"""Pixels of a kept frame's longer side, at most."""
Attention = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """A run and the model that its last evaluation asked."""

    run: Run
    checkpoint: Path


def study(pair: Pair, tasks: Mapping[str, MultipleChoiceTask], paths: Paths, progress: Progress) -> str | None:
    """Read where both arms look and write it to the gated run's folder.

    Args:
        tasks: benchmark -> the questions that its items were asked by; one without is left aside.
        paths: where data and weights are on this machine.

    Returns:
        Why there is nothing to show, or None where it was done. A file that is there and of the same checkpoints and
        items is left alone.

    Raises:
        DataError: a clip cannot be read, or items are not those of a record.
        EnvironmentProblem: the decoder gives no attention weights.
    """
    run, baseline = pair.gated, pair.baseline
    if run is None or baseline is None:
        return "it has no baseline to compare with"
    asked = {name: _first(items_of(pair, name, tasks[name])) for name in benchmarks_of(pair.runs) if name in tasks}
    asked = {name: items for name, items in asked.items() if items}
    if not asked:
        return "no benchmark of both arms has its items and questions kept"
    made_from = {
        "baseline": baseline.id,
        "checkpoints": {name: [_last(arm, name)["checkpoint"] for arm in (baseline, run)] for name in asked},
        "items": digest({name: [[i.task, i.question.key, i.group] for i in items] for name, items in asked.items()}),
    }
    stored = read_attention(run.folder)
    if stored is not None and stored["made_from"] == made_from:
        return None
    reason = _missing(pair, asked)
    if reason is not None:
        return reason
    attention = {
        "schema": SCHEMA,
        "run": run.id,
        "baseline": baseline.id,
        "made_from": made_from,
        "benchmarks": {
            name: _benchmark(pair, name, items, tasks[name].benchmark.form, paths, progress)
            for name, items in asked.items()
        },
    }
    write_attention(run.folder, attention)
    return None


def read_attention(run_dir: Path) -> Attention | None:
    """What `study` wrote; None if it was not made.

    Raises:
        DataError, StaleError: as `read_kept`.
    """
    return read_kept(run_dir / FILE, "the attention of a run's model", SCHEMA)


def write_attention(run_dir: Path, attention: Attention) -> Path:
    return write_kept(run_dir / FILE, attention)


def right_answer(form: Form, question: Question) -> str:
    """What a model that is right writes."""
    return LETTERS[question.answer] if form == "letter" else question.options[question.answer]


def answered(form: Form, question: Question) -> Sample:
    """An item with its right answer given, as an evaluation asks it."""
    turns = (Turn("user", prompt(form, question)), Turn("assistant", right_answer(form, question)))
    return Sample(sample_id("question", question.key), question.key, question.media, turns)


def frames_of(kept: Mapping[str, Any]) -> Any:
    """The frames of a map, uint8 array T, H, W, 3: what `keep_frames` kept."""
    import numpy as np

    pixels = zlib.decompress(base64.b64decode(kept["pixels"]))
    return np.frombuffer(pixels, dtype=np.uint8).reshape(kept["shape"])


def keep_frames(frames_T3HW: Tensor, steps: int) -> dict[str, Any]:
    """The first frame of each of `steps` equal parts of a clip, every n-th pixel of it, as plain values."""
    total, _, height, width = frames_T3HW.shape
    apart = -(-max(height, width) // _SIDE)
    chosen = frames_T3HW[[step * total // steps for step in range(steps)], :, ::apart, ::apart].permute(0, 2, 3, 1)
    packed = zlib.compress(chosen.contiguous().numpy().tobytes(), 9)
    return {"shape": list(chosen.shape), "pixels": base64.b64encode(packed).decode()}


def _first(items: Sequence[Item]) -> list[Item]:
    """The first items of each task."""
    taken: dict[str, list[Item]] = {}
    for item in items:
        of_task = taken.setdefault(item.task, [])
        if len(of_task) < ITEMS:
            of_task.append(item)
    return [item for of_task in taken.values() for item in of_task]


def _last(run: Run, benchmark: str) -> dict[str, Any]:
    last = run.last(benchmark)
    assert last is not None
    return last


def _arm(run: Run, benchmark: str) -> Arm:
    return Arm(run, run.folder / "checkpoints" / f"step-{_last(run, benchmark)['step']:06d}")


def _missing(pair: Pair, asked: Mapping[str, Sequence[Item]]) -> str | None:
    for run in pair.runs:
        for benchmark in asked:
            checkpoint = _arm(run, benchmark).checkpoint
            if not checkpoint.is_dir():
                return f"the model of {run.id} is not kept: {checkpoint}"
    clips = (media.path for items in asked.values() for item in items for media in item.question.media)
    lacking = next((path for path in clips if not path.exists()), None)
    return None if lacking is None else f"its clips are not here: {lacking}"


def _benchmark(
    pair: Pair, benchmark: str, items: Sequence[Item], form: Form, paths: Paths, progress: Progress
) -> dict[str, Any]:
    """Every item under both arms, and the maps of a few."""
    assert pair.baseline is not None
    assert pair.gated is not None
    mapped = [next((place for place, item in enumerate(items) if item.group == group), None) for group in MAPPED]
    rows: list[dict[str, Any]] = [
        {"task": item.task, "key": item.question.key, "ability": item.question.ability, "group": item.group}
        for item in items
    ]
    maps: dict[int, dict[str, Any]] = {}
    for name, run in zip(ARMS, (pair.baseline, pair.gated), strict=True):
        for place, row in enumerate(_looked(_arm(run, benchmark), items, form, paths, progress)):
            rows[place] |= {name: row.by_layer, "uniform": row.uniform}
            if place in mapped and row.cells is not None:
                item = items[place]
                shown = maps.setdefault(
                    place,
                    {
                        "key": item.question.key,
                        "group": item.group,
                        "question": item.question.text.replace("<media:0>", " ").strip(),
                        "right": item.question.options[item.question.answer],
                        "given": item.given,
                        "frames": row.frames,
                    },
                )
                shown[name] = row.cells
    return {"items": rows, "maps": [maps[place] for place in mapped if place is not None and place in maps]}


@dataclass(frozen=True, slots=True)
class _Row:
    """An item under one arm.

    Attributes:
        by_layer: the part of the attention that goes to visual positions.
        cells: [frames][rows][columns], the attention to each cell of the first clip; None where the visual positions
            are no cells.
        frames: what `keep_frames` kept of that clip.
    """

    by_layer: list[float]
    uniform: float
    cells: list[list[list[float]]] | None
    frames: dict[str, Any] | None


def _looked(
    arm: Arm, items: Sequence[Item], form: Form, paths: Paths, progress: Progress
) -> Iterator[_Row]:
    import torch

    from harness.analysis.attention.weights import attended
    from harness.data.loading.video import read_frames
    from harness.models import adapter_for
    from harness.models.device import compute_dtype, use_threads

    recipe = recipe_of(arm.run, paths)
    use_threads(recipe.devices.threads)
    adapter = adapter_for(recipe, None)
    dtype = compute_dtype(recipe.train.precision)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = adapter.load(arm.checkpoint).to(device).eval()
    processor = adapter.processor()
    encode = getattr(processor, "encode_answered", processor.encode)
    with progress.task(f"attention of {arm.run.name}", len(items)) as advance:
        for first in range(0, len(items), _ROWS):
            samples = [answered(form, item.question) for item in items[first : first + _ROWS]]
            clips = [
                [read_frames(media, frames=recipe.data.frames, rule=adapter.frame_rule) for media in sample.media]
                for sample in samples
            ]
            encoded: list[Encoded] = [encode(sample, shown) for sample, shown in zip(samples, clips, strict=True)]
            batch = processor.collate(encoded)
            looked = attended(adapter, model, batch, None if dtype == torch.float32 else dtype)
            for row, shown in enumerate(clips):
                cells = _cells(looked.weight_BS[row], batch.layout, row)
                frames = None if cells is None else keep_frames(shown[0], len(cells))
                by_layer = [round(value, 6) for value in looked.visual_BL[row].tolist()]
                yield _Row(by_layer, round(float(looked.uniform_B[row]), 6), cells, frames)
            advance(first + len(samples))


def _cells(weight_S: Tensor, layout: Layout, row: int) -> list[list[list[float]]] | None:
    """The weights of the row's first grid of cells."""
    from regate.types import Kind

    grids = () if layout.grids is None else layout.grids[row]
    visual = weight_S[layout.kind_BS[row] == Kind.VISUAL]
    begin = 0
    for grid in grids:
        if grid.elidable:
            cells: list[list[list[float]]] = visual[begin : begin + grid.cells].view(grid.shape).tolist()
            return [[[round(value, 8) for value in columns] for columns in rows] for rows in cells]
        begin += grid.cells
    return None


__all__ = [
    "ARMS", "FILE", "ITEMS", "Attention", "answered", "frames_of", "keep_frames", "read_attention", "right_answer",
    "study", "write_attention",
]  # fmt: skip
