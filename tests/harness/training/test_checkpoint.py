"""Checkpoints restore everything, belong to one run, and never count half-written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.common.errors import StaleError
from harness.training import checkpoint
from harness.training.parallel import Replicated

if TYPE_CHECKING:
    from pathlib import Path

STATE: dict[str, Any] = {"schema": 1, "difficulty": {"epoch": 2, "step": 7, "offsets": {"0": 123}}}


def make(seed: int = 0) -> Replicated:
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        vocab_size=20, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    return Replicated(Accelerator(cpu=True), model, torch.optim.AdamW(model.parameters(), lr=1e-2))


def train(placed: Replicated, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        ids = torch.randint(20, (2, 6))
        loss = placed.model(input_ids=ids, labels=ids).loss
        placed.accelerator.backward(loss)
        placed.optimizer.step()
        placed.optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_resumed_training_is_the_same_training(tmp_path: Path) -> None:
    """Weights (tied ones too), optimizer moments and random state: the next losses are equal bit for bit."""
    placed = make()
    train(placed, 3)
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    wanted = train(placed, 4)
    placed = make(seed=99)
    step, gates = checkpoint.load(placed, path, identity="a")
    assert (step, gates) == (3, [STATE])
    assert train(placed, 4) == wanted


def test_only_the_newest_complete_one_counts(tmp_path: Path) -> None:
    placed = make()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    newest = checkpoint.save(placed, tmp_path, step=6, gate_state=STATE, identity="a")
    assert [path.name for path in tmp_path.iterdir()] == ["resume-000006"]
    torn = tmp_path / "resume-000009"
    torn.mkdir()
    (torn / "state.json").write_text("{}")
    assert checkpoint.latest(tmp_path) == newest


def test_missing_random_states_are_noticed(tmp_path: Path) -> None:
    """accelerate itself goes on without them and says nothing."""
    placed = make()
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    (path / "random_states_0.pkl").unlink()
    with pytest.raises(StaleError, match="random_states_0"):
        checkpoint.load(placed, path, identity="a")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    placed = make()
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    with pytest.raises(StaleError, match="another recipe"):
        checkpoint.load(placed, path, identity="b")


def test_other_processes_or_another_sharding_are_refused(tmp_path: Path) -> None:
    placed = make()
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    state = json.loads((path / "state.json").read_text())
    for change in ({"world": 2}, {"sharding": "full"}):
        (path / "state.json").write_text(json.dumps(state | change))
        with pytest.raises(StaleError, match="this run has 1"):
            checkpoint.load(placed, path, identity="a")
