"""Test builder: run directories as a training and its evaluations leave them, from a seed and without training.

The numbers are made up; the files, their order and their formats are those of a real run, killed and resumed ones
included. Nothing here may be shown as a result.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.recipe import Recipe
from harness.records.record import build_record, write_record
from regate.schedule import DualCycle

ABILITIES = {"colour": 4, "shape": 4, "direction": 4, "count": 4, "order": 2, "collision": 2}
WHERE = {
    "packages": {"torch": "2.15.0", "lmms-eval": "0.7.3"},
    "python": "3.11.7",
    "platform": {"system": "Linux"},
    "git": {"commit": "0" * 40, "dirty": False},
    "hardware": {"cpu": "Builder CPU", "cores": 2, "gpus": [], "threads": 2},
}
GATE = {"keep_ratio": 0.5, "cycle_steps": 8, "dense_steps": 1, "warmup_steps": 4}


def recipe(
    results: Path, name: str = "demo_baseline", *, gate: bool | dict[str, Any] = False, steps: int = 40, **fields: Any
) -> Recipe:
    content: dict[str, Any] = {
        "name": name,
        "model": {"adapter": "tiny"},
        "data": {"source": "shapes"},
        "train": {"steps": steps, "global_batch": 16, "micro_batch": 16, "optimizer": {"lr": 2e-3}},
        "gate": {**GATE, **(gate if isinstance(gate, dict) else {})} if gate else None,
        "evaluate": {"benchmarks": ["shapes"], "at": [0.5, 1.0]},
        "paths": {"results": str(results)},
        **fields,
    }
    return Recipe.model_validate_json(json.dumps(content))


@dataclass
class Clock:
    """Writes ledger lines at made-up times."""

    path: Path
    now: datetime = datetime(2025, 1, 1, tzinfo=UTC)
    attempt: int = 1

    def write(self, event: str, **fields: Any) -> None:
        self.now += timedelta(seconds=sum(fields.get("seconds", {}).values()))
        time = self.now.isoformat(timespec="milliseconds")
        line = {"schema": 1, "event": event, "time": time, "attempt": self.attempt, **fields}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def keep_ratio_at(made: Recipe, step: int) -> float:
    return 1.0 if made.gate is None else DualCycle.from_config(made.gate).keep_ratio_at(step)


def step_event(made: Recipe, step: int, noise: np.random.Generator) -> dict[str, Any]:
    """Counts and loss depend on the step alone, seconds and memory on the noise: as in an exact resume."""
    exact = np.random.default_rng([made.seed, step])
    rows = made.train.global_batch
    per_row = exact.integers(9, 16, size=rows)
    target, visual, special, prompt = int(per_row.sum()), 16 * rows, 5 * rows, 9 * rows
    valid = target + visual + special + prompt
    p = keep_ratio_at(made, step)
    scored = int(np.floor(per_row * p).sum())
    active = valid - (target - scored)
    ratio = active / valid
    train = 0.15 * (0.1 + 0.9 * ratio) * (1 + 0.05 * noise.random())
    return {
        "step": step,
        "epoch": step // 15,
        "counts": {
            "positions": valid + 3 * rows,
            "valid": valid,
            "visual": visual,
            "special": special,
            "prompt": prompt,
            "target": target,
            "active": active,
            "scored": scored,
        },
        "seconds": {
            "data": 0.01 + 0.002 * noise.random(),
            "train": train,
        },
        "cpu": {"seconds": round(1.9 * train, 6), "waited": round(0.02 * train, 6)},
        "devices": 1,
        "flops": 2e9 * ratio,
        "flops_dense": 2e9,
        "peak_bytes": int(6e8 + 1e6 * noise.random()),
        "loss": float(3 * np.exp(-step / 20) + 0.1 * exact.random()),
        "lr": 2e-3,
        "grad_norm": None if step == 3 else float(1 + exact.random()),
        "skipped": False,
        "keep_ratio": p,
        "failed": [],
        "truncated": {"samples": 1, "targets": 3},
        "unshuffled": 2,
    }


def write_steps(made: Recipe, clock: Clock, first: int, stop: int, noise: np.random.Generator) -> None:
    steps = made.train.steps
    clock.write("start", step=first, steps=steps, world=1)
    clock.write("stage", stage="load", seconds={"io": 0.8})
    for step in range(first, stop):
        clock.write("step", **step_event(made, step, noise))
        clock.write("stage", stage="checkpoint", step=step + 1, seconds={"io": 0.5 if step % 10 == 9 else 0.0})


def write_evaluation(
    made: Recipe, run_dir: Path, step: int, skill: float, *, n: int = 120, benchmark: str = "shapes"
) -> None:
    """Items whose difficulty is shared by all runs and whose outcome gets better with `skill`."""
    items, tasks = [], []
    for ability, options in ABILITIES.items():
        difficulty = np.random.default_rng([7, options, len(ability)]).normal(size=n)
        luck = np.random.default_rng([made.seed, step, len(ability), round(skill * 1000)]).normal(size=n)
        correct = (skill + 0.7 * luck > difficulty).astype(int)
        for index in range(n):
            answer = index % options
            prediction = answer if correct[index] else (answer + 1) % options
            losses = [0.5 if option == prediction else 2.0 for option in range(options)]
            items.append(
                {
                    "task": f"{benchmark}_{ability}",
                    "key": f"{ability}-{index:04d}",
                    "ability": ability,
                    "prediction": prediction,
                    "answer": answer,
                    "correct": int(correct[index]),
                    "option_loss": losses,
                }
            )
        value = float(correct.mean())
        tasks.append(
            {
                "task": f"{benchmark}_{ability}",
                "ability": ability,
                "metric": "acc",
                "value": value,
                "stderr": (value * (1 - value) / n) ** 0.5,
                "n": n,
                "in_mean": ability != "collision",
            }
        )
    meant = [task for task in tasks if task["in_mean"]]
    mean = sum(task["value"] for task in meant) / len(meant)
    result = {
        "schema": 2,
        "benchmark": benchmark,
        "scoring": {"unit": "item", "combine": "mean", "scale": "fraction"},
        "step": step,
        "fraction": step / made.train.steps,
        "checkpoint": f"{step:064x}",
        "prompt_hash": "p" * 16,
        "versions": {"lmms_eval": "0.7.3", "task": 1},
        "tasks": tasks,
        "mean": {"value": mean, "stderr": 0.02, "n": n * len(meant)},
        "counts": {
            "expected": len(items),
            "scored": len(items),
            "empty": 0,
            "unparsable": 0,
            "guessed": 0,
            "errors": 0,
        },
        "items": f"{benchmark}.items.jsonl",
        "seconds": 12.3,
    }
    folder = run_dir / "eval" / f"step-{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{benchmark}.json").write_text(json.dumps(result))
    (folder / f"{benchmark}.items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def build_run(made: Recipe, *, killed_at: int | None = None, skill: float = 1.0, noise: int = 0) -> Path:
    """A finished run. `killed_at` kills it once after that many steps; it resumes at the multiple of 10 before."""
    run_dir = Path(made.paths.results) / "runs" / made.run_id
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.json").write_text(made.model_dump_json())
    rng = np.random.default_rng(noise)
    steps = made.train.steps
    assert steps is not None
    clock = Clock(run_dir / "ledger.jsonl")
    clock.write("stage", stage="prepare", seconds={"prepare": 3.0})
    if made.gate is not None:
        clock.write("stage", stage="reference", seconds={"reference": 2.5})
    if killed_at is not None:
        write_steps(made, clock, 0, killed_at, rng)
        clock.attempt += 1
        clock.now += timedelta(minutes=5)
    write_steps(made, clock, 0 if killed_at is None else killed_at // 10 * 10, steps, rng)
    clock.write("end", step=steps)
    for done in sorted({max(1, round(fraction * steps)) for fraction in made.evaluate.at}):
        for benchmark in made.evaluate.names:
            write_evaluation(made, run_dir, done, skill * done / steps, benchmark=benchmark)
            clock.write("stage", stage="eval", step=done, seconds={"eval": 4.0})
    return run_dir


def plan_of(made: Recipe) -> dict[str, Any]:
    """Steps, samples and the closed form of the plan."""
    steps = made.train.steps or 0
    ratios = [keep_ratio_at(made, step) for step in range(steps)]
    closed = None
    if (gate := made.gate) is not None:
        closed = (1 - gate.warmup_steps / steps) * (1 - gate.dense_steps / gate.cycle_steps) * (1 - gate.keep_ratio)
    sparse = sum(ratio < 1 for ratio in ratios)
    return {
        "samples": 15 * made.train.global_batch,  # as the epochs of the steps have it
        "steps": steps,
        "global_batch": made.train.global_batch,
        "dense_steps": steps - sparse,
        "sparse_steps": sparse,
        "keep_ratio": sum(ratios) / steps,
        "expected_reduction": 1 - sum(ratios) / steps,
        "closed_form": closed,
    }


def finish(made: Recipe, run_dir: Path) -> dict[str, Any]:
    """Build and write the record of a built run."""
    reference = None
    if made.gate is not None:
        reference = {"fingerprint": "r" * 16, "targets": 5000, "seconds": {"reference": 2.5}, "devices": 1}
    record = build_record(
        made,
        plan_of(made),
        run_dir,
        data_fingerprint="d" * 16,
        weights_fingerprint="w" * 16,
        reference=reference,
        where=WHERE,
    )
    write_record(record, run_dir)
    return record


def build_pair(results: Path, stem: str = "demo", *, skills: tuple[float, float] = (1.2, 1.1), **fields: Any) -> None:
    """A finished baseline and a finished ReGATE run whose recipes differ in name and gate only."""
    for name, gate, skill in ((f"{stem}_baseline", False, skills[0]), (f"{stem}_regate", True, skills[1])):
        made = recipe(results, name, gate=gate, **fields)
        finish(made, build_run(made, skill=skill, noise=int(gate)))
