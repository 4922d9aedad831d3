"""The tiny model's work by part: the closed form against torch's own count, on the meta device."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

PARTS = ("vision", "projector", "decoder", "head", "all")


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part beside the decoder is counted as the formula says, digit by digit."""
    script = Path(__file__).parents[4] / "benchmarks" / "model_flops.py"
    monkeypatch.setattr("sys.argv", [str(script), "tiny"])
    runpy.run_path(str(script), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows[:5]] == [["8", "1.00", part] for part in PARTS]
    for _, _, part, _, _, counted, formula, *_ in rows:
        limit = 0.06 if part in ("decoder", "all") else 0.0
        assert float(counted) == pytest.approx(float(formula), rel=limit), part
    dense, sparse = (float(row[5]) for row in rows if row[2] == "decoder")
    assert 0.6 < sparse / dense < 0.7
