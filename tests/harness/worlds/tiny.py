"""The tiny model's recipe at sizes that a test can pay for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.config.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path


def tiny_recipe(folder: Path, **model: Any) -> Recipe:
    """A few clips and a few steps; everything below `folder`."""
    stage = {"clips": 8, "steps": 3, "batch": 4}
    return Recipe.model_validate(
        {
            "name": "tiny_test",
            "model": {
                "adapter": "tiny",
                "hidden": 32,
                "layers": 2,
                "heads": 2,
                "tower": stage,
                "text": {"steps": 3, "batch": 4},
                "align": stage,
                **model,
            },
            "data": {"source": "shapes", "train_clips": 6, "test_clips": 7, "stage_clips": 8},
            "train": {"steps": 2, "global_batch": 4, "micro_batch": 4, "optimizer": {"lr": 1e-3}},
            "gate": None,
            "evaluate": {"benchmarks": ()},
            "paths": {name: str(folder / name) for name in ("data", "weights", "stores", "results")},
        }
    )
