"""How long a sparse step takes beside a dense one, on the same batches, and how near that is to the FLOP ideal.

    python benchmarks/step.py recipes/tiny_regate.yaml [key=value ...] [--rounds 40] [--json out.json]

Prepares the recipe as a run does, then alternates on each window of the loader: a dense step, a sparse step, the
other way round in every second round, so that drift and order fall on both alike. The figure is the median of the
per-round ratios. The bound is the ratio of the FLOPs of the same two steps (`harness.models.decoder_flops`): what a
step would take if it were arithmetic alone. "gain retained" is (1 - measured) / (1 - ideal).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import regate
from harness import pipeline as stages
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.data.loading.batches import windows
from harness.training.loop import Loop


def timed(loop: Loop, gate: regate.Gate | regate.DenseGate, window: list[Any], step: int) -> tuple[float, float]:
    """Seconds and FLOPs of one optimizer step."""
    loop.gate = gate
    _wait()
    began = time.perf_counter()
    result = loop.step(window, step)
    _wait()
    return time.perf_counter() - began, result.flops


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(loop: Loop, rounds: int, warmup: int) -> dict[str, Any]:
    """Alternate dense and sparse steps; `step` is one at which the gate's schedule is sparse."""
    job = loop.job
    dense, gate = regate.DenseGate(), loop.gate
    cycle = regate.DualCycle.from_config(job.recipe.gate or regate.GateConfig())
    sparse_step = next(step for step in range(job.steps) if cycle.keep_ratio_at(step) < 1)
    rows = []
    batches = windows(job.data, job.adapter.processor(), loop.sampler, start=0, stop=warmup + rounds, workers=0)
    for number, window in enumerate(batches):
        order = [("dense", dense), ("sparse", gate)]
        row: dict[str, tuple[float, float]] = {}
        for name, chosen in order if number % 2 else reversed(order):
            row[name] = timed(loop, chosen, window, sparse_step)
        if number >= warmup:
            rows.append(row)
    ratios = [row["sparse"][0] / row["dense"][0] for row in rows]
    ideal = statistics.median(row["sparse"][1] / row["dense"][1] for row in rows)
    measured = statistics.median(ratios)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "device": str(loop.accelerator.device),
        "dense_seconds": statistics.median(row["dense"][0] for row in rows),
        "sparse_seconds": statistics.median(row["sparse"][0] for row in rows),
        "ratio": measured,
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "ideal": ideal,
        "gain_retained": (1 - measured) / (1 - ideal),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(arguments.recipe, [*arguments.overrides, f"paths.results={folder}"])
        run = stages.prepare(recipe, Progress())
        loop = Loop(stages.train_job(run, stages.reference(run)))
        figures = measure(loop, arguments.rounds, arguments.warmup)
    print(
        f"dense {figures['dense_seconds'] * 1e3:.1f} ms, sparse {figures['sparse_seconds'] * 1e3:.1f} ms; "
        f"ratio {figures['ratio']:.3f} (quartiles {figures['ratio_quartiles'][0]:.3f} to "
        f"{figures['ratio_quartiles'][1]:.3f}), FLOP ideal {figures['ideal']:.3f}, "
        f"gain retained {figures['gain_retained']:.2f}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
