"""A selection rule of the caller's own: as a function, and as a file that a recipe names."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import pytest
import torch

from regate import ConfigError, DifficultyStore, Gate, GateConfig, store_keys
from regate.scoring import score
from regate.selection import SELECTIONS, own_method
from regate.selection_file import SelectionFile
from tests.regate import tiny

RULE = "def score(difficulty_BS, position_BS):\n    return difficulty_BS + 0.001 * position_BS\n"


def ranked(selection):
    return score(
        GateConfig(selection=selection),
        torch.tensor([[-1, 0, 1, 2]]),
        torch.tensor([5]),
        student_BS=torch.tensor([[float("nan"), 1.0, 4.0, 0.0]]),
        reference_BS=torch.tensor([[float("nan"), 3.0, 1.0, 2.0]]),
        seed=0,
        step=0,
    )


def middle_first(reference_BS):
    return -(reference_BS - 2).abs()


def last_loss(loss_BS):
    return loss_BS


def test_a_function_declares_what_it_reads_by_its_parameters():
    config = GateConfig(selection=middle_first)
    assert (config.needs_reference, config.needs_difficulty) == (True, False)
    assert ranked(middle_first)[0, 1:].tolist() == [-1.0, -1.0, 0.0]
    assert GateConfig(selection=last_loss).difficulty_decay == 0.0
    assert config.selection_name.startswith("middle_first of ")


def test_a_gate_decides_by_the_function_it_is_given():
    batch = tiny.rows()
    config = GateConfig(keep_ratio=0.5, cycle_steps=2, dense_steps=1, warmup_steps=0)

    def last_ones(position_BS):
        return position_BS

    chosen = Gate(config, None, selection=last_ones).decide(batch.layout, batch.sample_ids_B, step=1)
    first = Gate(replace(config, selection="first"), None).decide(batch.layout, batch.sample_ids_B, step=1)
    assert chosen.counts.scored == first.counts.scored
    assert not torch.equal(chosen.targets_BS, first.targets_BS)
    for row in range(len(batch.sample_ids_B)):
        kept, all_targets = chosen.targets_BS[row], batch.layout.target_BS[row]
        left_out = all_targets & ~kept
        if left_out.any():
            assert int(kept.nonzero()[0]) > int(left_out.nonzero()[-1])


def test_a_gate_asks_for_what_its_function_reads():
    with pytest.raises(ConfigError, match=r"middle_first of .*test_own_rule.py reads the reference losses"):
        Gate(GateConfig(selection="random"), None, selection=middle_first)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda wrong: wrong, "reads wrong; a score may read difficulty_BS"),
        (lambda: None, "reads nothing"),
        (lambda difficulty_BS, loss_BS: loss_BS, "not both"),
        (lambda *losses: losses, "reads losses; a score may read"),
        (dict, "selection dict: its parameters cannot be read"),
    ],
)
def test_a_function_that_is_no_score_is_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        own_method(rule)


def raising(reference_BS):
    raise KeyError("speed")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (raising, r"raising of .*test_own_rule.py raised KeyError: 'speed'"),
        (lambda reference_BS: reference_BS[:, 1:], r"float32 of shape \(1, 3\); a float32 tensor of shape \(1, 4\)"),
        (lambda reference_BS: reference_BS.double(), r"gives float64 of shape \(1, 4\)"),
        (lambda reference_BS: reference_BS > 1, r"gives bool of shape"),
        (lambda reference_BS: reference_BS.tolist(), r"gives list; a float32 tensor"),
        (lambda reference_BS: reference_BS.log() - float("inf"), r"gives -inf for 3 of 3 candidates"),
        (lambda reference_BS: reference_BS.where(reference_BS > 1, float("nan")), r"gives nan for 1 of 3"),
    ],
)
def test_what_a_function_gives_is_checked(rule, message):
    with pytest.raises(ConfigError, match=message):
        ranked(rule)


def test_what_it_gives_elsewhere_than_at_candidates_does_not_matter():
    assert torch.isnan(ranked(lambda reference_BS: reference_BS)[0, 0])


def test_a_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "my_rule.py"
    path.write_text(RULE)
    rule = SelectionFile(str(path), "score")
    assert rule.sha256 == hashlib.sha256(RULE.encode()).hexdigest()
    assert rule.method.signals == ("difficulty_BS", "position_BS")
    assert rule.method.label == "score of my_rule.py"
    assert torch.equal(ranked(rule)[0, 1:], torch.tensor([1.001, 4.002, 0.003]))
    again = pickle.loads(pickle.dumps(GateConfig(selection=rule)))
    assert again == GateConfig(selection=rule)
    assert torch.equal(ranked(again.selection)[0, 1:], ranked(rule)[0, 1:])
    path.write_text(RULE + "\n")
    with pytest.raises(ConfigError, match=r"my_rule.py is not the one that these settings were made with"):
        SelectionFile(str(path), "score", rule.sha256)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("def score(:\n", "cannot be run, line 1: SyntaxError"),
        ("import no_such_package\n", "cannot be run: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)\n", "cannot be run: SystemExit: 3"),
        ("def other(loss_BS):\n    return loss_BS\n", "function score is not in .*it defines other"),
        ("score = 3\n", "function score is not in .*it defines no function"),
        ("def score(speed):\n    return speed\n", "score of .*rule.py: its score reads speed"),
    ],
)
def test_a_file_without_a_usable_rule_is_refused(tmp_path, text, message):
    path = tmp_path / "rule.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        SelectionFile(str(path), "score")


def test_the_shipped_scores_are_called_as_they_are():
    assert all(method.origin is None for method in SELECTIONS.values())


def test_a_running_loss_is_kept_for_a_function_that_reads_it(tmp_path):
    batch = tiny.rows()
    config = GateConfig(keep_ratio=0.5, cycle_steps=2, dense_steps=1, warmup_steps=0, selection=last_loss)
    counts, _ = store_keys(batch.layout)
    store = DifficultyStore.for_gate(
        tmp_path, config, sample_ids=batch.sample_ids_B.tolist(), num_targets=counts
    )
    gate = Gate(config, None, store)
    dense = gate.decide(batch.layout, batch.sample_ids_B, step=0)
    gate.observe(dense, torch.arange(dense.counts.scored, dtype=torch.float32))
    gate.end_epoch()
    sparse = gate.decide(batch.layout, batch.sample_ids_B, step=1)
    for row in range(len(batch.sample_ids_B)):  # the losses rise, so the last targets of each row are kept
        kept = sparse.targets_BS[row].nonzero().flatten()
        assert kept.tolist() == batch.layout.target_BS[row].nonzero().flatten()[-len(kept) :].tolist()
