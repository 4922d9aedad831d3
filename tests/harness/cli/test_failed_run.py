"""Exit code 1 as a user comes to it: a training that a command started and that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness.worlds import videollama2

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.cli.command import Command


def test_a_training_that_diverges_ends_its_command_with_1(harness: Command, tmp_path: Path) -> None:
    recipe = videollama2.user_supplied(
        videollama2.write_world(tmp_path),
        "train.precision=float32",
        "train.optimizer.lr=1e30",
        "train.workers=0",
        "train.epochs=null",
        "train.steps=4",
        "gate=null",
    )
    file = tmp_path / "mine.yaml"
    file.write_text(recipe.model_dump_json())
    assert harness("train", str(file)) == 1, harness.err
    assert "training diverged: loss nan" in harness.err
    assert harness.out == ""
    assert harness("status", str(file)) == 0
    assert "training, step " in harness.out, "it is not taken for one that ended"
