"""Test builder: a finished run whose stores were written by the real gate, with random losses in place of a model's.

Clips, conversations, tokenizer, stores, gate and journals are the harness's own; only the numbers that a teacher and
a student would have computed are drawn from a seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import regate
from harness.analysis.runs import Run, load_runs
from harness.common.hashing import digest
from harness.common.progress import Progress
from harness.config.recipe import Recipe
from harness.data.sampler import Sampler
from harness.data.sources import DataSet, make_data, open_data
from harness.models import adapter_for
from harness.records.record import write_record
from harness.training.stores.target_index import index_targets
from regate.candidates import candidates_of, in_order
from tests.harness.worlds.run_builder import build_run, finish

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.processor import Processor

STEPS = 26
GATE = {"keep_ratio": 0.5, "cycle_steps": 4, "dense_steps": 2, "warmup_steps": 1}


@dataclass
class World:
    """The run, what it was made of, and what its gate kept: (step, epoch, sample id) -> bool of each target."""

    recipe: Recipe
    run: Run
    data: DataSet
    processor: Processor
    kept: dict[tuple[int, int, int], list[bool]]

    @property
    def results(self) -> Path:
        return self.run.folder.parent.parent


def choice_recipe(folder: Path) -> Recipe:
    stage = {"clips": 2, "steps": 1, "batch": 2}
    model = {"adapter": "tiny", "hidden": 32, "layers": 2, "heads": 2, "tower": stage, "align": stage}
    content = {
        "name": "choices",
        "model": {**model, "text": {"steps": 1, "batch": 2}},
        "data": {"source": "shapes", "train_clips": 6, "test_clips": 7, "stage_clips": 2},
        "train": {"steps": STEPS, "global_batch": 2, "micro_batch": 2, "optimizer": {"lr": 1e-3}},
        "gate": GATE,
        "evaluate": {"benchmarks": ["shapes"], "at": [0.5, 1.0]},
        "paths": {name: str(folder / name) for name in ("data", "weights", "stores", "results")},
    }
    return Recipe.model_validate_json(json.dumps(content))


def build_world(folder: Path) -> World:
    """18 samples in 9 steps an epoch: two whole epochs and a part of the third."""
    recipe = choice_recipe(folder)
    make_data(recipe.data, recipe.paths, recipe.seed)
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    adapter.prepare(Progress(quiet=True))
    processor = adapter.processor()
    run_dir = build_run(recipe)
    reference = _score(folder / "stores", data, processor)
    kept, checksums = _gate(recipe, run_dir, data, processor, reference)
    record = {**finish(recipe, run_dir), **checksums}
    made_from = reference.manifest["fingerprint"]
    record["reference"] = {
        "fingerprint": digest(made_from),
        "made_from": made_from,
        "targets": reference.num_targets_total,
        "seconds": 1.0,
        "devices": 1,
    }
    record["provenance"] |= {"data": data.fingerprint, "reference": digest(made_from)}
    record["totals"]["epochs_begun"] = 1 + (STEPS - 1) // (len(data.samples) // recipe.train.global_batch)
    write_record(record, run_dir)
    (run,) = load_runs(folder / "results")
    return World(recipe, run, data, processor, kept)


def _score(stores: Path, data: DataSet, processor: Processor) -> regate.ReferenceStore:
    index = index_targets(data, processor, "targets", stores, Progress(quiet=True))
    made_from = {"data": data.fingerprint, "processor": processor.fingerprint, "teacher": "drawn"}
    writer = regate.ReferenceWriter.create(
        stores / f"reference-{digest(made_from)[:16]}",
        sample_ids=index.sample_ids.tolist(),
        num_targets=index.num_targets.tolist(),
        checksums=index.checksums.tolist(),
        fingerprint=made_from,
    )
    draw = np.random.default_rng(1)
    losses = [torch.from_numpy(draw.gamma(1.0, 2.0, size=count)).float() for count in index.num_targets.tolist()]
    writer.write(index.sample_ids.tolist(), losses)
    return writer.finish()


def _gate(
    recipe: Recipe, run_dir: Path, data: DataSet, processor: Processor, reference: regate.ReferenceStore
) -> tuple[dict[tuple[int, int, int], list[bool]], dict[str, Any]]:
    """Every step's decision, on drawn losses: what each sparse step kept of each sample, in canonical order; and what
    the record says of the running losses."""
    assert recipe.gate is not None
    difficulty = None
    if recipe.gate.needs_difficulty:
        difficulty = regate.DifficultyStore.for_gate(run_dir / "difficulty", recipe.gate, reference=reference)
    gate = regate.Gate(recipe.gate, reference, difficulty, seed=recipe.seed)
    sampler = Sampler(len(data.samples), global_batch=2, micro_batch=2, seed=recipe.seed)
    draw = torch.Generator().manual_seed(2)
    kept: dict[tuple[int, int, int], list[bool]] = {}
    for step in range(STEPS):
        (rows,) = sampler.window(step)
        batch = processor.collate([processor.encode(data.samples[row], None) for row in rows])
        decision = gate.decide(batch.layout, batch.sample_ids_B, step=step)
        count = int(decision.losses_BS.sum())
        gate.observe(decision, 30 * torch.rand(count, generator=draw))
        if decision.keep_ratio < 1:
            chosen = in_order(candidates_of(batch.layout), decision.targets_BS)
            for sample, row in zip(batch.sample_ids_B.tolist(), chosen, strict=True):
                kept[step, sampler.epoch_of(step), sample] = row.tolist()
        if sampler.epoch_of(step + 1) != sampler.epoch_of(step):
            gate.end_epoch()
    gate.state_dict()
    return kept, {"running_losses": gate.checksums()} if recipe.gate.needs_difficulty else {}
