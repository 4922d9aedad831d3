"""`benchmarks/fidelity.py` on a small random decoder, and its committed table."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.regate import tiny

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "results" / "benchmarks" / "fidelity.json"


@pytest.fixture(scope="module")
def fidelity():
    spec = importlib.util.spec_from_file_location("fidelity", ROOT / "benchmarks" / "fidelity.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_exact_variant_is_exact_and_deep_at_the_last_layer_as_good(fidelity, monkeypatch):
    exact = next(iter(fidelity.VARIANTS))
    last = {
        "deep at the last layer": fidelity.Variant(deep=2 / 3),
        "leaves nowhere": fidelity.Variant(leaves=1.0),
        "every layer computes all": fidelity.Variant(layer_keep=1.0),
    }
    monkeypatch.setattr(fidelity, "VARIANTS", {**fidelity.VARIANTS, **last})
    ids_BS = torch.randint(3, tiny.VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    rows = fidelity.measure(tiny.lm("Llama", double=False), ids_BS, 8)
    for name in (exact, *last):
        assert rows[name]["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert rows[name]["norm_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert rows[name]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert rows["ReGATE"]["cosine"] < 0.999
    assert rows["baseline: loss on all targets"]["flops"] == pytest.approx(1.0)
    assert rows["ReGATE"]["flops"] < rows["leaves above 1/2"]["flops"] < rows[exact]["flops"] < 1.0
    assert rows["deep above 1/2"]["flops"] < rows[exact]["flops"]
    for part, more in (("a quarter", "ReGATE"), ("3/4", "3/4 of the targets below 1/2, half above")):
        assert rows[f"{part} selected: exact"]["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert rows[f"{part} selected: exact"]["kl"] == pytest.approx(0.0, abs=1e-5)
        assert rows[f"{part} selected: ReGATE"]["cosine"] < 0.999, "held against the same selection"
        assert rows[more]["flops"] < rows[exact]["flops"]
    by_keep = [rows[name]["flops"] for name in ("a quarter selected: ReGATE", "ReGATE", "3/4 selected: ReGATE")]
    assert by_keep == sorted(by_keep)
    assert rows["each layer computes a random half of the positions"]["cosine"] < 0.999
    nested = [rows[name]["flops"] for name in fidelity.VARIANTS if name.endswith("half above")]
    assert rows["ReGATE"]["flops"] < nested[0] < nested[1] < rows[exact]["flops"]


def test_the_committed_table_is_made_from_the_committed_figures(fidelity):
    document = json.loads(RESULT.read_text(encoding="utf-8"))
    assert list(document["variants"]) == list(fidelity.VARIANTS)
    assert RESULT.with_suffix(".md").read_text(encoding="utf-8") == fidelity.table(document)
