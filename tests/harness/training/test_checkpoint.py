"""Checkpoints restore everything, belong to one run, and never count half-written."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from torch.distributed.checkpoint import FileSystemReader
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.common.errors import DataError, StaleError
from harness.training import checkpoint
from harness.training.placement.parallel import Replicated

if TYPE_CHECKING:
    from collections.abc import Callable

STATE: dict[str, Any] = {"schema": 1, "difficulty": {"epoch": 2, "step": 7, "offsets": {"0": 123}}}


def make(seed: int = 0, *, frozen: bool = False) -> Replicated:
    """Frozen: the embeddings, and a weight that nothing uses beside them."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=16,
        vocab_size=20, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    if frozen:
        model.model.embed_tokens.requires_grad_(False)
        model.unused = torch.nn.Parameter(torch.ones(2))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Replicated(Accelerator(cpu=True), model, torch.optim.AdamW(trained, lr=1e-2))


def train(placed: Replicated, steps: range) -> list[float]:
    """As the loop does: what a step draws depends on its number."""
    losses = []
    for step in steps:
        torch.manual_seed(step)
        ids = torch.randint(20, (2, 6))
        loss = placed.model(input_ids=ids, labels=ids).loss
        placed.backward(loss)
        placed.update(1e-2, math.inf)
        losses.append(float(loss.detach()))
    return losses


def test_resumed_training_is_the_same_training(tmp_path: Path) -> None:
    """Weights (tied ones too) and optimizer moments: the next losses are equal bit for bit."""
    placed = make()
    train(placed, range(3))
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    wanted = train(placed, range(3, 7))
    placed = make(seed=99)
    step, gates = checkpoint.load(placed, path, identity="a")
    assert (step, gates) == (3, [STATE])
    assert train(placed, range(3, 7)) == wanted


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


def test_frozen_weights_stay_out_and_weights_without_moments_come_back(tmp_path: Path) -> None:
    """The frozen ones are those of the start. Weights that no gradient has reached yet have no moments."""
    placed = make(frozen=True)
    train(placed, range(3))
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    entries = FileSystemReader(path / "trained").read_metadata().state_dict_metadata
    assert "model/model.norm.weight" in entries
    assert "model/unused" in entries
    assert not any("embed_tokens" in entry or "lm_head" in entry for entry in entries)
    wanted = train(placed, range(3, 5))
    placed = make(frozen=True)  # the same frozen weights
    with torch.no_grad():
        placed.model.model.norm.weight.zero_()
        placed.model.unused.fill_(7)
    checkpoint.load(placed, path, identity="a")
    assert placed.model.unused.tolist() == [1, 1]
    assert placed.model.unused not in placed.optimizer.optimizer.state
    assert train(placed, range(3, 5)) == wanted


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    placed = make()
    path = checkpoint.save(placed, tmp_path, step=3, gate_state=STATE, identity="a")
    with pytest.raises(StaleError, match="another recipe"):
        checkpoint.load(placed, path, identity="b")


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
    train(placed, range(1))
    checkpoint.save(placed, tmp_path / "kept", step=1, gate_state=STATE, identity="a")
    wanted = train(placed, range(1, 3))
    newest = checkpoint.save(placed, tmp_path / "kept", step=3, gate_state=STATE, identity="a")
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    expected = {"COMPLETE", "gate.pt", "state.json", "trained/.metadata", "trained/__0_0.distcp"}
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
        assert train(other, range(1, 3)) == wanted
        assert file.name in said[-1]
        assert newest.name in said[-1]
        assert checkpoint.latest(folder) == folder / "resume-000001"
    harm(tmp_path / "kept" / "resume-000001" / "trained" / "__0_0.distcp")
    harm(tmp_path / "kept" / newest.name / "trained" / "__0_0.distcp")
    with pytest.raises(DataError, match=r"__0_0\.distcp") as caught:
        checkpoint.load_newest(make(), tmp_path / "kept", identity="a", say=said.append)
    assert "start anew" in str(caught.value.hint)
