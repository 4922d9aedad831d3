"""Test builder: runs as the paper would have had them, with its printed numbers as their results.

They exist in memory only; nothing here may be shown as a result.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from harness.analysis.paper.definitions import (
    BASELINE,
    EXTENDED,
    FAST,
    RECIPES,
    Definition,
    fields_of_record,
    shipped_definitions,
)
from harness.analysis.paper.numbers import GATED, MODELS, TABLES, Paper
from harness.analysis.runs import Run
from harness.config.load import load_recipe
from regate.config import GateConfig

ADAPTERS = {model: adapter for adapter, model in MODELS.items()}
STEPS = {"extended": 2000, "fast": 1190, "baseline": 2000}
ENDS = {"baseline": "", "extended": f"{GATED}-extended", "fast": f"{GATED}-fast"}


def run_of(
    model: str,
    arm: str,
    scores: dict[str, float],
    *,
    steps: int = 2000,
    targets: float = 1e6,
    hours: float = 10.0,
    teacher: float | None = None,
    seed: int = 42,
    gpu: str = "NVIDIA H100",
    devices: int = 4,
    gate: dict[str, Any] | None = None,
) -> Run:
    """A finished run without a folder: its items are not kept. Its recipe is the paper's, with this gate."""
    name = f"{model}-{arm}".lower()
    record = {
        "id": f"{name}-{seed}",
        "name": name,
        "recipe": {
            **papers_recipe(model, arm if arm in ENDS else EXTENDED if gate else BASELINE),
            "name": name,
            "seed": seed,
            "gate": gate,
            "evaluate": {"benchmarks": sorted(scores), "at": [1.0], "batch": 1, "limit": None},
        },
        "provenance": {"hardware": {"gpus": [{"name": gpu}] * devices, "cpu": "x"}, "packages": {}},
        "totals": {
            "steps": steps,
            "devices": devices,
            "counts": {"scored": round(targets)},
            "seconds": {"train": hours / devices * 3600, "reference": 0.0},
            "device_hours": {"train": hours},
            "peak_bytes": None,
            "step_seconds": {"dense_median": 1.0, "sparse_median": 0.8},
        },
        "reference": None if teacher is None else {"seconds": teacher * 3600, "devices": 1},
        "evaluations": [_evaluation(benchmark, value, steps) for benchmark, value in sorted(scores.items())],
    }
    return Run(record, Path("nowhere"))


@cache
def _shipped(name: str) -> str:
    return json.dumps(load_recipe(name).identity())


def papers_recipe(model: str, arm: str) -> dict[str, Any]:
    """What the shipped recipe of a row asks for. InternVL3.5's are not stated: it has VideoLLaMA2's here."""
    known = model if (model, arm) in RECIPES else "VideoLLaMA2"
    content: dict[str, Any] = json.loads(_shipped(RECIPES[known, arm]))
    if known != model:
        content["model"] = {"adapter": ADAPTERS[model]}
    return content


def definitions() -> tuple[Definition, ...]:
    """The shipped rows, and InternVL3.5's as if the paper stated them."""
    invented = []
    for arm in (BASELINE, EXTENDED, FAST):
        fields = fields_of_record(papers_recipe("InternVL3.5", arm))
        invented.append(Definition("InternVL3.5", arm, "invented", fields))
    return (*shipped_definitions(), *invented)


def paper_gate(**changes: Any) -> dict[str, Any]:
    """As a record holds it."""
    gate: dict[str, Any] = json.loads(json.dumps({**asdict(GateConfig()), **changes}))
    return gate


def papers_own_runs(paper: Paper) -> list[Run]:
    """Every run of the paper's tables: its scores, tokens, hours and teacher, as if they were ours."""
    costs = paper.costs("table4_efficiency_acl")
    runs = []
    for model in MODELS.values():
        for arm, end in ENDS.items():
            row = costs[model + end]
            scores = _scores(paper, model + (GATED if arm == "extended" else "")) if arm != "fast" else {}
            printed = paper.costs("table4_efficiency_v1").get(model + end)
            if printed:
                scores["mvbench"] = printed["MVBench"] / 100
            runs.append(
                run_of(
                    model,
                    arm,
                    scores,
                    steps=STEPS[arm],
                    targets=row["tokens"],
                    hours=row["train_gpu_hours"],
                    teacher=row["teacher_gpu_hours"],
                    devices=16 if model == "InternVL3.5" else 4,
                    gate=None if arm == "baseline" else paper_gate(),
                )
            )
    for weight, combine in ((0.0, "sum"), (1.0, "convex")):
        row = paper.costs("table5_lambda_v1")[str(weight)]
        gate = paper_gate(reference_weight=weight, combine=combine)
        runs.append(run_of("VideoLLaMA2", f"lambda{weight:g}", {"mvbench": row["MVBench"] / 100}, gate=gate))
    return runs


def _scores(paper: Paper, label: str) -> dict[str, float]:
    known = {one.name: paper.reported(label, one.name) for columns in TABLES.values() for one in columns}
    return {name: value for name, value in known.items() if value is not None}


def _evaluation(benchmark: str, value: float, step: int) -> dict[str, Any]:
    points = benchmark.startswith("mme_")
    scoring = {"unit": "mme", "combine": "sum", "scale": "points"} if points else {}
    return {
        "benchmark": benchmark,
        "step": step,
        "items": f"{benchmark}.items.jsonl",
        "scoring": scoring,
        "prompt_hash": "p",
        "prompts": "paper",
        "lmms_eval": "0.7.3",
        "tasks": [
            {"task": benchmark, "ability": "all", "metric": "score", "value": value, "n": 100, "in_mean": True}
        ],
        "mean": {"value": value, "stderr": None, "n": 100},
        "progress": {"scored": 1, "train_seconds": 1.0, "train_device_hours": 1.0},
    }
