"""Checkpoints restore everything, belong to one run, and never count half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.common.errors import DataError, StaleError
from harness.common.hashing import file_digest
from harness.training import checkpoint
from harness.training.parallel import Replicated

if TYPE_CHECKING:
    from collections.abc import Callable

STATE: dict[str, Any] = {"schema": 1, "difficulty": {"epoch": 2, "step": 7, "offsets": {"0": 123}}}


def make(seed: int = 0) -> Replicated:
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        vocab_size=20, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    return Replicated(Accelerator(cpu=True), model, torch.optim.AdamW(model.parameters(), lr=1e-2))


def note_digest(path: Path, name: str) -> None:
    """Let a file of a checkpoint count as the one that was written."""
    complete = json.loads((path / "COMPLETE").read_text())
    complete["sha256"][name] = file_digest(path / name)
    (path / "COMPLETE").write_text(json.dumps(complete))


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


def test_only_complete_ones_count_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    placed = make()
    assert checkpoint.latest(tmp_path) is None
    for step in (1, 2, 3):
        checkpoint.save(placed, tmp_path, step=step, gate_state=STATE, identity="a")
    newest = checkpoint.save(placed, tmp_path, step=6, gate_state=STATE, identity="a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resume-000003", "resume-000006"]
    torn = tmp_path / "resume-000009"
    torn.mkdir()
    (torn / "state.json").write_text("{}")
    assert checkpoint.latest(tmp_path) == newest


def test_missing_random_states_are_noticed(tmp_path: Path) -> None:
    """accelerate itself goes on without them and says nothing."""
    placed = make()
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    (path / "random_states_0.pkl").unlink()
    with pytest.raises(DataError, match=r"random_states_0\.pkl is missing"):
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
        note_digest(path, "state.json")
        with pytest.raises(StaleError, match="this run has 1"):
            checkpoint.load(placed, path, identity="a")


def flip(path: Path) -> None:
    """Another value of one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, cut, empty, Path.unlink])
def test_a_damaged_file_is_never_trained_on(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """Of every file of a checkpoint: the one before it is taken, and the user is told which file it was."""
    placed, said = make(), []
    train(placed, 1)
    checkpoint.save(placed, tmp_path / "kept", step=1, gate_state=STATE, identity="a")
    wanted = train(placed, 2)
    newest = checkpoint.save(placed, tmp_path / "kept", step=3, gate_state=STATE, identity="a")
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    expected = {"COMPLETE", "gate-0.pt", "model.safetensors", "optimizer.bin", "random_states_0.pkl", "state.json"}
    assert expected <= {str(file) for file in files}
    for file in files:
        if harm is Path.unlink and file.name == "COMPLETE":
            continue  # what lacks it was never finished
        folder = tmp_path / f"damaged-{file.name}"
        shutil.copytree(tmp_path / "kept", folder)
        harm(folder / newest.name / file)
        other = make(seed=99)
        loaded = checkpoint.load_newest(other, folder, identity="a", say=said.append)
        assert loaded == (1, [STATE])
        assert train(other, 2) == wanted
        assert file.name in said[-1]
        assert newest.name in said[-1]
        assert checkpoint.latest(folder) == folder / "resume-000001"
    harm(tmp_path / "kept" / "resume-000001" / "model.safetensors")
    harm(tmp_path / "kept" / newest.name / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors") as caught:
        checkpoint.load_newest(make(), tmp_path / "kept", identity="a", say=said.append)
    assert "start anew" in str(caught.value.hint)
