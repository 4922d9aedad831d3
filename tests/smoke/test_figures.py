"""Figures and reports of the real smoke pair: the replay is what the run's own journals say it computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.analysis.attention.study import ARMS, read_attention
from harness.analysis.choices.replay import Stores, choices, recipe_of
from harness.analysis.choices.selection import read_selection
from harness.analysis.runs import load_runs
from harness.cli.report import make_reports
from harness.common.progress import Progress
from harness.config.recipe import Paths
from harness.data.sources import open_data
from harness.models import adapter_for
from regate import DifficultyStore, ReferenceStore, journal
from regate.schedule import DualCycle

from .conftest import Ran, harness

pytestmark = pytest.mark.slow
NAME = "tiny_smoke_regate"


def paths_of(pair: Ran) -> Paths:
    workspace = pair.folder / "workspace"
    places = {name: str(workspace / name) for name in ("data", "weights", "stores")}
    return Paths(**places, results=str(pair.folder / "results"))


def test_the_replay_is_what_the_run_computed(pair: Ran) -> None:
    """Target by target, for every sample of every sparse step, from the journals that the training wrote."""
    (run,) = (run for run in load_runs(pair.folder / "results") if run.name == NAME)
    recipe = recipe_of(run, paths_of(pair))
    gate = recipe.gate
    assert gate is not None
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    (reference,) = (pair.folder / "workspace" / "stores").glob("reference-*")
    difficulty = DifficultyStore.open(run.folder / "difficulty")
    epochs = tuple(difficulty.epochs)
    stores = Stores(ReferenceStore.open(reference), difficulty, epochs)
    processor = adapter_for(recipe, data).processor()
    samples = list(data.samples)
    kept = {
        samples[chosen.sample].id: chosen.kept
        for first in range(0, len(samples), 64)
        for chosen in choices(samples[first : first + 64], first, gate, processor, stores, recipe.seed)
    }
    schedule, compared = DualCycle.from_config(gate), 0
    for epoch in epochs:
        for file in (run.folder / "difficulty").glob(f"journal.e{epoch}.rank*"):
            for _, record in journal.records(file):
                if schedule.keep_ratio_at(record.step) == 1.0:
                    continue
                starts = record.counts_b.cumsum()[:-1].tolist()
                rows = [record.seen[a:b] for a, b in zip([0, *starts], [*starts, None], strict=True)]
                for sample, seen in zip(record.ids_b.tolist(), rows, strict=True):
                    assert kept[sample][epoch].tolist() == seen.tolist()
                    compared += 1
    sparse = run.record["plan"]["sparse_steps"] * recipe.train.global_batch
    assert len(epochs) == run.totals["epochs_begun"] == 2
    assert compared == sparse


def test_figures_and_report_come_from_the_command_line(pair: Ran) -> None:
    done = harness(pair.folder, "figures", "--attended")
    assert done.returncode == 0, done.stderr[-2000:]
    written = [Path(line) for line in done.stdout.split()]
    assert all((pair.folder / path).stat().st_size for path in written)
    kinds = {"accuracy", "reference", "elided", "selection", "needed", "attention"}
    assert {path.name.split("_")[0] for path in written} == kinds
    looked = read_attention(pair.run_dir(NAME))
    assert looked is not None
    (shapes,) = looked["benchmarks"].values()
    assert all(0.0 < part < 1.0 for item in shapes["items"] for arm in ARMS for part in item[arm])
    (report,) = make_reports([f"paths.{name}={place}" for name, place in paths_of(pair).model_dump().items()],
                             Progress(quiet=True))  # fmt: skip
    page = report.read_text()
    found = read_selection(pair.run_dir(NAME))
    assert found is not None
    assert all(token["text"].strip() for panel in found["panels"] for token in panel["tokens"])
    grounded, whole = found["grounded"], found["kinds"]
    lost = [
        sum(row["left_out"][-1] for row in rows) / sum(row["targets"] for row in rows) for rows in (grounded, whole)
    ]
    assert lost[0] < 0.5 * lost[1], "the words that only the picture tells are kept"
    assert "data:image/jpeg" in page
    assert str(pair.folder) not in page
