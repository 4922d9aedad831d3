"""VideoChat2 on the whole path: the toy pair from nothing to the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.smoke.conftest import RECIPES, Ran, harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
PAIR = (RECIPES / "tiny_videochat2_baseline.yaml", RECIPES / "tiny_videochat2_regate.yaml")
SMALL = ("data.train_clips=64", "data.test_clips=14", "evaluate.at=[1.0]", "evaluate.limit=2", "train.workers=0")


def test_the_toy_pair_from_nothing_to_the_table(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", *PAIR, *SMALL)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ReGATE" in done.stdout
    ran = Ran(tmp_path, done.stdout, done.stderr)
    dense, gated = (ran.record(path.stem) for path in PAIR)
    assert dense["totals"]["counts"]["scored"] == dense["totals"]["counts"]["target"]
    counts = gated["totals"]["counts"]
    assert counts["target"] == dense["totals"]["counts"]["target"]
    assert counts["valid"] - counts["active"] > 0
    assert counts["visual"] == 16 * 24 * 16, "sixteen visual tokens a clip, none of them elided"
    assert gated["reference"]["targets"] > 0
    assert 0.3 < gated["totals"]["targets_reduction"] < 0.45
    for found in (dense, gated):
        assert all(entry["counts"]["scored"] == entry["counts"]["expected"] for entry in found["evaluations"])
    kept = ran.run_dir(PAIR[1].stem) / "checkpoints" / "step-000024"
    assert {path.name for path in kept.iterdir()} >= {"config.json", "stage3.safetensors", "qformer_tokenizer"}
