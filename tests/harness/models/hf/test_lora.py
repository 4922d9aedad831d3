"""LoRA on every family of transformers at toy size: what is trained, exact elision, and that it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.common.errors import DataError, StaleError
from harness.models.hf.sizes import footprint_of
from tests.harness.models.hf.test_families import batch_of, dense, half, run
from tests.harness.worlds.transformers_models import PARAMS, loss_of, made, recipe_of

if TYPE_CHECKING:
    from pathlib import Path

RANK = 2
LORA = {"lora": {"rank": RANK, "alpha": 4, "dropout": 0.0}, "tower": {"train": False}}


@pytest.fixture(scope="module", params=PARAMS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return made(recipe_of(tmp_path_factory.mktemp(request.param), request.param, **LORA))


def moved(student: Any) -> Any:
    """With adapters that change something: fresh ones multiply to zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return student


def test_the_adapters_and_the_projector_are_trained_and_nothing_else(adapter: Any) -> None:
    student = adapter.student().double().train()
    groups = {group.name: group for group in adapter.parameter_groups(student)}
    assert groups["tower"].counts()["trained"] == 0
    projector = groups["projector"].counts()
    assert projector["trained"] == projector["parameters"] > 0
    trained = {name for name, p in groups["decoder"].parameters.items() if p.requires_grad}
    assert trained == {name for name in groups["decoder"].parameters if "lora_" in name} != set()
    linear = [m for name, m in student.get_decoder().named_modules() if name.endswith("base_layer")]
    assert groups["decoder"].counts()["trained"] == sum(RANK * (m.in_features + m.out_features) for m in linear)
    assert footprint_of(adapter.recipe).trained == sum(group.counts()["trained"] for group in groups.values())
    batch = batch_of(adapter, 0, 1, 2, 3)
    moved(student)
    loss_of(adapter, regate.ScoredLM(student), batch, dense(batch)).backward()
    with_gradient = {name for name, p in student.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in student.named_parameters() if p.requires_grad}


def test_all_kept_is_dense_and_compact_is_algorithm_1(adapter: Any) -> None:
    student, batch = moved(adapter.student().double().train()), batch_of(adapter, 0, 1, 2, 3)
    plain, kept = (run(adapter, student, batch, dense(batch), way) for way in (None, "compact"))
    assert torch.equal(plain[0], kept[0])
    assert all(torch.equal(plain[1][name], kept[1][name]) for name in plain[1])
    compact, oracle = (run(adapter, student, batch, half(batch), way) for way in ("compact", "layerwise"))
    assert float((compact[0] - oracle[0]).abs().max()) < 1e-9
    assert compact[1].keys() == oracle[1].keys()
    assert max(float((compact[1][name] - oracle[1][name]).abs().max()) for name in oracle[1]) < 1e-8


def test_a_checkpoint_holds_what_was_trained_and_comes_back(adapter: Any, tmp_path: Path) -> None:
    student = moved(adapter.student()).eval()
    (tmp_path / "kept").mkdir()
    adapter.save(student, tmp_path / "kept")
    back = adapter.load(tmp_path / "kept").eval()
    batch = adapter.processor().collate([adapter.processor().encode(adapter.data.samples[0], None)])
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    text = {name: value[:, -8:] for name, value in inputs.items()}  # behind the video
    with torch.no_grad():
        assert torch.equal(student.get_decoder()(**text)[0], back.get_decoder()(**text)[0])
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "kept").iterdir()}
    assert "trained.safetensors" in sizes
    assert "model.safetensors" not in sizes
    card = tmp_path / "kept" / "trained.json"
    card.write_text(card.read_text().replace(adapter.weights_fingerprint, "0" * len(adapter.weights_fingerprint)))
    with pytest.raises(StaleError, match="other weights"):
        adapter.load(tmp_path / "kept")
    adapter.save(student, tmp_path / "kept")
    for name in ("trained.safetensors", "trained.json"):
        content = (tmp_path / "kept" / name).read_bytes()
        (tmp_path / "kept" / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            adapter.load(tmp_path / "kept")
