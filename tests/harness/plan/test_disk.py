"""The disk that a start asks for: what the run has yet to write, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness import pipeline
from harness.common.errors import EnvironmentProblem
from harness.common.progress import Progress
from harness.models import MODELS
from harness.plan import Planner
from harness.plan.disk import disk_needs, model_bytes, resume_bytes
from harness.records import run_folder
from harness.records.ledger import Ledger
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from harness.config.recipe import Recipe


def _needs(recipe: Recipe, planner: Planner) -> list[int]:
    footprint = MODELS["tiny"].footprint(recipe)
    data = planner.open_data(recipe)
    needs = disk_needs(recipe, planner.plan(recipe), footprint, data, reference_store=False)
    return [need.size for need in needs]


def test_what_is_written_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, planner = tiny_recipe(tmp_path), Planner()
    prepared = pipeline.prepare(recipe, Progress(quiet=True), planner)
    footprint = MODELS["tiny"].footprint(recipe)
    kept, resume = model_bytes(footprint), resume_bytes(footprint)
    points = len(prepared.plan.evaluation_steps)
    assert _needs(recipe, planner) == [points * kept, 2 * resume]
    first = prepared.plan.evaluation_steps[0]
    (prepared.run_dir / "checkpoints" / f"step-{first:06d}").mkdir(parents=True)
    (prepared.run_dir / "checkpoints" / "resume-000001").mkdir()
    with Ledger(prepared.run_dir / "ledger.jsonl") as ledger:
        ledger.append("start", step=0, steps=2, world=1)
    assert _needs(recipe, planner) == [(points - 1) * kept, resume]

    asked = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"benchmarks": ("shapes",)})})
    limited = asked.model_copy(update={"devices": recipe.devices.model_copy(update={"frame_cache_gb": 0.5})})
    recipe.paths.frames.mkdir(parents=True)
    (recipe.paths.frames / "a.bin").write_bytes(bytes(1000))
    assert _needs(asked, planner)[2:] == [0]
    assert _needs(limited, planner)[2:] == [500_000_000 - 1000]

    free = run_folder.shutil.disk_usage(tmp_path)._replace(free=run_folder._SPARE_BYTES + kept)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: free)
    parts = r"GB for checkpoints to resume from \(1\), and 1 GB to spare"
    with pytest.raises(EnvironmentProblem, match=parts) as caught:
        pipeline.prepare(recipe, Progress(quiet=True), planner)
    assert caught.value.exit_code == 3
