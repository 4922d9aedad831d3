"""The library where torch and numpy are installed and nothing else, and what is said where an extra is missing.

Every other package is hidden from a process: what torch and numpy declare that they need stays.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HIDE = """
import sys
from importlib.machinery import PathFinder
class Some:
    def find_spec(self, name, path=None, target=None):
        if path is None and name not in SEEN and name not in sys.stdlib_module_names and not name.startswith("_"):
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path = [Some() if finder is PathFinder else finder for finder in sys.meta_path]
"""


def closure(*names: str) -> set[str]:
    """Distributions, and all that they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return found


def importable(distributions: set[str]) -> set[str]:
    """Top-level modules of distributions."""
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & distributions
    }


LOOP = """
import regate, torch
from torch import nn
for name in regate.__all__:
    getattr(regate, name)
torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 11))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
ids = torch.randint(0, 11, (2, 8))
labels = ids.clone()
labels[:, :2] = -100
config = regate.GateConfig(selection="random", cycle_steps=4, dense_steps=1, warmup_steps=0)
gate = regate.Gate(config, None)
layout = regate.layout_from_labels(labels, torch.ones_like(ids))
losses = []
for step in range(8):
    decision = gate.decide(layout, torch.tensor([1, 2]), step=step)
    logits = model(ids)[decision.predictor_BS]
    loss = regate.token_loss(logits, decision.targets_N)
    loss.sum().div(decision.counts.scored).backward()
    optimizer.step()
    optimizer.zero_grad()
    gate.observe(decision, loss.detach())
    losses.append(float(loss.mean().detach()))
print(losses[0], losses[-1], decision.counts.scored)
"""
SEEN = sorted({"regate", "harness", *importable(closure("torch", "numpy"))})


def run(code: str) -> subprocess.CompletedProcess[str]:
    script = f"SEEN = {SEEN!r}\n{HIDE}\n{code}"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_others_are_hidden() -> None:
    assert {"torch", "numpy"} <= set(SEEN)
    for name in ("transformers", "pydantic", "typer", "yaml", "accelerate"):
        assert name not in SEEN
        assert run(f"import {name}").returncode == 1


def test_what_is_declared_is_what_is_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [re.split("[^a-z-]", need)[0] for need in project["dependencies"]] == ["torch", "numpy"]
    assert {"hf", "harness", "flash", "liger"} <= project["optional-dependencies"].keys()


def test_a_training_loop_with_torch_and_numpy_alone() -> None:
    """Every public name is there, and a plain torch model learns from the targets that the gate chooses."""
    done = run(LOOP)
    assert done.returncode == 0, done.stderr
    first, last, scored = (float(word) for word in done.stdout.split())
    assert last < first
    assert scored == 2 * 3, "half of the six targets of each row"


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("import regate.hf", 1, 'pip install "regate[hf]"'),
        ("import harness.__main__; harness.__main__.main()", 3, 'pip install "regate[harness]"'),
        (
            "import regate.reference; regate.reference.ReferenceStore.to_parquet(None, 'file.parquet')",
            1,
            "pip install pyarrow",
        ),
    ],
)
def test_an_extra_that_is_missing_is_named_with_its_command(code: str, exit_code: int, words: str) -> None:
    done = run(code)
    assert done.returncode == exit_code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr or exit_code == 1
