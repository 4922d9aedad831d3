"""The tiny model's work by part: the closed form against torch's own count, on the meta device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = ("vision", "projector", "decoder", "head", "all")


def test_the_table() -> None:
    """Every part beside the decoder is counted as the formula says, digit by digit."""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "benchmarks/model_flops.py", "tiny"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows[:5]] == [["8", "1.00", part] for part in PARTS]
    for _, _, part, _, _, counted, formula, *_ in rows:
        limit = 0.06 if part in ("decoder", "all") else 0.0
        assert float(counted) == pytest.approx(float(formula), rel=limit), part
    dense, sparse = (float(row[5]) for row in rows if row[2] == "decoder")
    assert 0.6 < sparse / dense < 0.7
