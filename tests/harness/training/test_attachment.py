"""A kernel that a recipe names is used or refused: before anything is computed, with what to install."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest
import torch

from harness import pipeline
from harness.cli import doctor
from harness.common.errors import EnvironmentProblem, RecipeError
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path

ABSENT = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash_attn_interface",
    "varlen": "a CUDA GPU",
    "flex": "a CUDA GPU",
}
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels that need a GPU may run here")


@no_gpu
@pytest.mark.parametrize("name", ABSENT)
def test_a_kernel_that_is_not_here_is_refused_before_anything_is_made(name: str, tmp_path: Path) -> None:
    places = [f"paths.{key}={tmp_path / key}" for key in ("data", "weights", "stores", "results")]
    recipe = load_recipe("tiny_smoke_baseline", [*places, f"model.attention={name}"])
    with pytest.raises(EnvironmentProblem, match=f"model.attention {name} needs .*{ABSENT[name]}"):
        pipeline.prepare(recipe, Progress(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3"])
def test_plan_and_doctor_say_what_to_install(name: str) -> None:
    recipe = load_recipe("tiny_smoke_baseline", [f"model.attention={name}"])
    package = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}[name]
    here = importlib.util.find_spec({"flash-attn": "flash_attn"}.get(package, "flash_attn_interface")) is not None
    warned = [line for line in make_plan(recipe).warnings if f"pip install {package})" in line]
    assert bool(warned) == (not here)
    (check,) = doctor._kernels_asked([recipe], {name: "ModuleNotFoundError: no such module", "sdpa": "runs"})
    assert (check.state, check.mend) == ("fail", f"pip install {package}, or leave model.attention out")
    assert not list(doctor._kernels_asked([recipe], {name: "runs"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.attention=eager", "train.rows=packed"], "model.attention eager does not compute packed rows"),
        (["model.attention=varlen", "train.rows=padded"], "model.attention varlen computes packed rows only"),
        (["gate.execution=layerwise", "train.rows=packed"], "gate.execution layerwise goes sample by sample"),
        (["model.attention=fast"], r"model\.attention"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny_regate", changes)


def test_the_keys_leave_run_ids_as_they_are_at_their_defaults() -> None:
    recipe = load_recipe("tiny_regate")
    assert load_recipe("tiny_regate", ["model.attention=auto"]).run_id == recipe.run_id
    assert "attention" not in recipe.identity()["model"]
    assert "rows" not in recipe.identity()["train"]
    changed = {load_recipe("tiny_regate", [key]).run_id for key in ("model.attention=sdpa", "train.rows=padded")}
    assert len(changed | {recipe.run_id}) == 3
