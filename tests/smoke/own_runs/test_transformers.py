"""A model of transformers on the whole path: the toy pair from nothing to the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.smoke.conftest import RECIPES, Ran, harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
PAIR = (RECIPES / "tiny_internvl_baseline.yaml", RECIPES / "tiny_internvl_regate.yaml")


def test_the_toy_pair_from_nothing_to_the_table(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", *PAIR)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "ReGATE" in done.stdout
    ran = Ran(tmp_path, done.stdout, done.stderr)
    dense, gated = (ran.record(path.stem) for path in PAIR)
    assert dense["totals"]["counts"]["scored"] == dense["totals"]["counts"]["target"]
    counts = gated["totals"]["counts"]
    assert counts["target"] == dense["totals"]["counts"]["target"]
    assert counts["visual"] > 0
    assert counts["valid"] - counts["active"] > 0
    assert gated["reference"]["targets"] > 0
    for record in (dense, gated):
        parts = record["groups"]
        assert set(parts) == {"tower", "projector", "decoder"}
        assert all(part["trained"] == part["parameters"] > 0 and part["lr"] == 1e-3 for part in parts.values())
        assert all(entry["counts"]["scored"] == entry["counts"]["expected"] for entry in record["evaluations"])
