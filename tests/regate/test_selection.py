"""The selection methods: what each ranks by, what it reads, and that a wrong entry cannot be made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import regate
from regate import ConfigError, DifficultyStore, Gate, GateConfig, config
from regate.scoring import score
from regate.selection import COMBINE, SELECTIONS, SelectionMethod
from tests.regate import tiny

NAN = float("nan")
ROOT = Path(regate.__file__).parents[1]


def scored(selection, **settings):
    return score(
        GateConfig(selection=selection, **settings),
        torch.tensor([[-1, 0, 1, 2]]),
        torch.tensor([5]),
        student_BS=torch.tensor([[NAN, 1.0, 4.0, 0.0]]),
        reference_BS=torch.tensor([[NAN, 3.0, 1.0, 2.0]]),
        seed=0,
        step=0,
    )[0, 1:]


def test_each_selection_ranks_by_what_it_says():
    ranked = {name: scored(name).argsort(descending=True, stable=True).tolist() for name in SELECTIONS}
    assert ranked["regate"] == [1, 0, 2]  # 2.5, 4.5, 1.0
    assert ranked["reference"] == [0, 2, 1]
    assert ranked["difficulty"] == ranked["loss"] == [1, 0, 2]
    assert ranked["excess"] == [1, 0, 2]  # -2, 3, -2: equal ones keep their order
    assert ranked["first"] == [0, 1, 2]
    assert scored("excess").tolist() == [-2.0, 3.0, -2.0]


def test_equation_3_and_its_convex_reading():
    difficulty, reference = torch.tensor([1.0, 4.0]), torch.tensor([6.0, 2.0])
    assert COMBINE["sum"](difficulty, reference, 0.5).tolist() == [4.0, 5.0]
    assert COMBINE["convex"](difficulty, reference, 0.25).tolist() == [2.25, 3.5]
    assert COMBINE["convex"](difficulty, reference, 1.0).tolist() == reference.tolist()


@pytest.mark.parametrize("combine", ["sum", "convex"])
def test_without_a_weight_every_reading_of_equation_3_is_the_difficulty_to_the_bit(combine):
    generator = torch.Generator().manual_seed(0)
    difficulty, reference = (torch.rand(1000, generator=generator) * 9 for _ in range(2))
    assert torch.equal(COMBINE[combine](difficulty, reference, 0.0), difficulty)
    assert torch.equal(scored("regate", combine=combine, reference_weight=0.0), scored("difficulty"))


def test_what_a_selection_needs_follows_from_its_score():
    configs = {name: GateConfig(selection=name) for name in SELECTIONS}
    assert {name: (gate.needs_reference, gate.needs_difficulty) for name, gate in configs.items()} == {
        "regate": (True, True),
        "reference": (True, False),
        "difficulty": (False, True),
        "loss": (False, True),
        "excess": (True, True),
        "random": (False, False),
        "first": (False, False),
    }
    after = {name for name in SELECTIONS if GateConfig(selection=name, execution="loss_only").selects_after_forward}
    assert after == {"loss", "excess"}
    assert {name for name in SELECTIONS if GateConfig(selection=name).difficulty_decay == 0.0} == after


def test_without_a_weight_no_teacher_is_needed_unless_the_difficulty_starts_from_it():
    for combine in ("sum", "convex"):
        assert not GateConfig(reference_weight=0.0, combine=combine).needs_reference
    assert GateConfig(reference_weight=0.0, ema_init="reference").needs_reference
    assert GateConfig(reference_weight=0.0, selection="reference").needs_reference  # it does not read the weight
    assert GateConfig(reference_weight=0.0, selection="excess").needs_reference


def test_without_a_weight_the_gate_decides_the_same_with_and_without_the_reference_losses(tmp_path):
    data = tiny.rows()
    store = tiny.reference_store(tmp_path / "reference", [data])
    settings = {"warmup_steps": 0, "cycle_steps": 8, "dense_steps": 1}
    decided = []
    for name, gate_config, reference in [
        ("with", GateConfig(reference_weight=0.0, **settings), store),
        ("without", GateConfig(reference_weight=0.0, **settings), None),
    ]:
        ids, counts = store.index.ids_M, store.index.offsets_M1[1:] - store.index.offsets_M1[:-1]
        difficulty = DifficultyStore.for_gate(tmp_path / name, gate_config, sample_ids=ids, num_targets=counts)
        gate = Gate(gate_config, reference, difficulty)
        dense = gate.decide(data.layout, data.sample_ids_B, step=0)
        gate.observe(dense, torch.linspace(0, 5, dense.counts.target).flip(0))
        gate.end_epoch()
        decided.append(gate.decide(data.layout, data.sample_ids_B, step=1).targets_BS)
    assert torch.equal(*decided)
    assert not torch.equal(decided[0], data.layout.target_BS)


def test_the_choices_of_a_gate_are_the_entries_of_the_table():
    assert config.Selection.__args__ == tuple(SELECTIONS)
    with pytest.raises(ConfigError, match=r"selection is regat, not one of\n  regate: Eq\. 3"):
        GateConfig(selection="regat")
    text = (ROOT / "docs" / "interpretations.md").read_text()
    for name, method in SELECTIONS.items():
        assert f"`{name}`" in text
        assert re.fullmatch(r"[A-Z].*[.]", method.description)


def test_an_entry_that_reads_what_there_is_not_cannot_be_made():
    with pytest.raises(ConfigError, match="its score reads entropy_BS; a score may read difficulty_BS, loss_BS"):
        SelectionMethod("entropy", lambda entropy_BS: entropy_BS)
    with pytest.raises(ConfigError, match="not both"):
        SelectionMethod("both", lambda difficulty_BS, loss_BS: difficulty_BS + loss_BS)


def test_a_score_without_its_losses_says_so():
    for selection, words in {"reference": "the reference losses", "loss": "the student's losses"}.items():
        with pytest.raises(ConfigError, match=f"selection: {selection} reads {words}"):
            score(
                GateConfig(selection=selection),
                torch.tensor([[0]]),
                torch.tensor([5]),
                student_BS=None,
                reference_BS=None,
                seed=0,
                step=0,
            )


ENTRY = '''    "easy": SelectionMethod("easy first", easy_score),
}
"""By the value of'''
FUNCTION = '''def easy_score(difficulty_BS: Tensor, reference_BS: Tensor) -> Tensor:
    """The easiest first: the smaller of both losses."""
    return -difficulty_BS.minimum(reference_BS)


SELECTIONS: '''
STEP = """
import sys, tempfile
from pathlib import Path
import regate
from regate.selection import SELECTIONS
assert Path(regate.__file__).is_relative_to(Path.cwd()), regate.__file__
from harness.config.load import RECIPE, check, load_recipe
from harness.plan import make_plan
from tests.regate import tiny

recipe = load_recipe("tiny_smoke_regate", ["gate.selection=easy", "gate.warmup_steps=0", "gate.dense_steps=1"])
assert make_plan(recipe).teacher_pass and recipe.gate.needs_difficulty
(problem,) = check(RECIPE, "tiny_smoke_regate", ["gate.selection=eas"]).problems
assert problem.message.endswith("random, first, easy; did you mean easy?"), problem.message
data, folder = tiny.rows(), Path(tempfile.mkdtemp(dir="."))
store = tiny.reference_store(folder / "reference", [data])
gate = regate.Gate(recipe.gate, store, regate.DifficultyStore.for_gate(folder / "m", recipe.gate, reference=store))
dense = gate.decide(data.layout, data.sample_ids_B, step=0)
gate.observe(dense, 9 + 0 * store.losses(data.sample_ids_B, data.layout)[dense.targets_BS])
gate.end_epoch()
sparse = gate.decide(data.layout, data.sample_ids_B, step=1)
assert 0 < sparse.counts.scored < dense.counts.scored
loss_BS = store.losses(data.sample_ids_B, data.layout).clamp(max=0.1 * 9)
for row in range(len(loss_BS)):
    kept = loss_BS[row][sparse.targets_BS[row]]
    left = loss_BS[row][data.layout.target_BS[row] & ~sparse.targets_BS[row]]
    assert kept.max() <= left.min() + 1e-2
print("decided by", SELECTIONS["easy"].label)
"""


def test_an_added_entry_works_from_the_recipe_to_a_sparse_step(tmp_path):
    """One function and one line in a copy of the project."""
    for folder in ("regate", "harness", "recipes", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "worlds", "golden", "fixtures")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    path = tmp_path / "regate" / "selection.py"
    text = path.read_text()
    assert text.count('}\n"""By the value of') == text.count("SELECTIONS: ") == 1
    path.write_text(text.replace('}\n"""By the value of', ENTRY).replace("SELECTIONS: ", FUNCTION))
    done = subprocess.run(
        [sys.executable, "-c", STEP], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "decided by easy first\n"
