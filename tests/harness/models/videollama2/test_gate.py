"""ReGATE on VideoLLaMA2: the fast execution is Algorithm 1, keep_ratio 1 is the ungated model, media always stay.

In float64 on the parity fixture's model, with its videos, its picture and its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import regate
from harness.common.progress import Progress
from harness.data.loading.batches import load
from harness.data.sources import open_data
from harness.models import adapter_for
from regate.types import Kind
from tests.harness.worlds.videollama2 import user_supplied, write_world

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Batch

Step = tuple[Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, nn.Module, Batch]:
    """Adapter, student and one batch with all its media."""
    recipe = user_supplied(write_world(tmp_path_factory.mktemp("world")))
    data = open_data(recipe.data, recipe.paths, recipe.seed)
    adapter = adapter_for(recipe, data)
    adapter.prepare(Progress(quiet=True))
    processor = adapter.processor()
    batch = processor.collate([load(sample, data, processor) for sample in data.samples])
    return adapter, adapter.student().double().train(), batch


def gate(keep_ratio: float, selection: str = "random", execution: str = "compact") -> regate.Gate:
    config = regate.GateConfig(
        keep_ratio=keep_ratio, cycle_steps=4, dense_steps=1, warmup_steps=0, selection=selection, execution=execution
    )  # type: ignore[arg-type]
    return regate.Gate(config, None, seed=3)


def step(world: tuple[Any, nn.Module, Batch], decision: regate.Decision, execution: str, **attach: Any) -> Step:
    adapter, model, batch = world
    elide = regate.attach(model, execution=execution, **attach)
    model.zero_grad()
    try:
        with elide(decision):
            logits_NV, targets_N = adapter.forward(regate.ScoredLM(model), batch, decision)
    finally:
        elide.remove()
    loss_N = regate.token_loss(logits_NV, targets_N)
    loss_N.sum().backward()
    grads = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return logits_NV.detach(), loss_N.detach(), grads


def difference(one: Step, other: Step) -> float:
    assert one[2].keys() == other[2].keys()
    pairs = [(one[0], other[0]), (one[1], other[1]), *((one[2][name], other[2][name]) for name in one[2])]
    assert all(left.shape == right.shape for left, right in pairs)
    return max(float((left - right).abs().max()) for left, right in pairs)


@pytest.mark.parametrize("keep_ratio", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_compact_is_algorithm_1(world: tuple[Any, nn.Module, Batch], keep_ratio: float, attention: str) -> None:
    """Logits, losses and every gradient, connector included."""
    _, model, batch = world
    model.set_attn_implementation(attention)
    decision = gate(keep_ratio).decide(batch.layout, batch.sample_ids_B, step=2)
    assert decision.elides
    compact, oracle = step(world, decision, "compact"), step(world, decision, "layerwise")
    # transformers' eager attention takes its softmax in float32, whatever the weights are.
    assert difference(compact, oracle) <= (1e-10 if attention == "sdpa" else 1e-3)
    assert any("mm_projector" in name for name in compact[2])
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("keep_ratio", [0.5, 1.0])
@pytest.mark.parametrize("outputs", ["active", "predictors"])
def test_packed_is_algorithm_1(world: tuple[Any, nn.Module, Batch], keep_ratio: float, outputs: str) -> None:
    _, _, batch = world
    decision = gate(keep_ratio).decide(batch.layout, batch.sample_ids_B, step=2)
    packed = step(world, decision, "compact", rows="packed", outputs=outputs)
    assert difference(packed, step(world, decision, "layerwise")) <= 1e-10


def test_checkpointing_and_elision_go_together(world: tuple[Any, nn.Module, Batch]) -> None:
    _, model, batch = world
    decision = gate(0.5).decide(batch.layout, batch.sample_ids_B, step=2)
    plain = step(world, decision, "compact")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        assert difference(plain, step(world, decision, "compact")) <= 1e-10
    finally:
        model.gradient_checkpointing_disable()


def test_keep_ratio_1_is_the_ungated_model_exactly(world: tuple[Any, nn.Module, Batch]) -> None:
    _, model, batch = world
    kept = gate(1.0).decide(batch.layout, batch.sample_ids_B, step=2)
    dense = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=2)
    gated, ungated = step(world, kept, "compact"), step(world, dense, "compact")
    assert difference(gated, ungated) == 0
    # ... which is the model itself, called as anybody calls it.
    model.zero_grad()
    with torch.no_grad():
        whole = model(**batch.model_inputs(), labels=batch.layout.labels_BS)
    assert float(whole.loss) == pytest.approx(float(ungated[1].mean()), rel=1e-6)  # its loss is float32


@pytest.mark.parametrize("selection", ["random", "first"])
@pytest.mark.parametrize("keep_ratio", [0.01, 0.5])
def test_media_and_prompts_are_never_elided(
    world: tuple[Any, nn.Module, Batch], selection: str, keep_ratio: float
) -> None:
    adapter, _, batch = world
    tokens = adapter.processor().visual_tokens
    for at in range(8):
        decision = gate(keep_ratio, selection).decide(batch.layout, batch.sample_ids_B, step=at)
        elided_BS = batch.layout.valid_BS & ~decision.active_BS
        assert bool(elided_BS.any()) == (at % 4 != 0)
        assert not (elided_BS & ~batch.layout.target_BS).any()
        visual_BS = batch.layout.kind_BS == Kind.VISUAL
        assert decision.active_BS[visual_BS].all()
        assert int(visual_BS.sum()) == tokens * len(batch.inputs["frame_counts"])


def test_the_teacher_reads_no_media(world: tuple[Any, nn.Module, Batch], tmp_path: Path) -> None:
    """Eq. 1 on the text backbone: the losses do not depend on where the picture is filled in, and are those of the
    language model on the text at its original positions."""
    adapter, _, batch = world
    teacher = adapter.teacher().double()
    counts, checksums = regate.store_keys(batch.layout, "targets")
    ids = batch.sample_ids_B.tolist()
    writer = regate.ReferenceWriter.create(
        tmp_path / "store", sample_ids=ids, num_targets=counts, checksums=checksums, fingerprint={"t": 1}
    )
    store = regate.score_reference(
        teacher, [batch], writer, placeholder_id=adapter.processor().placeholder_id, dtype="float32"
    )
    losses_BS = store.losses(batch.sample_ids_B, batch.layout)
    layout = batch.layout
    read_BS = (layout.kind_BS != Kind.VISUAL) & layout.valid_BS
    for row in range(len(ids)):
        place = read_BS[row].nonzero().squeeze(1)
        words = batch.input_ids_BS[row, place][None]
        # Four dimensions: with fewer, gaps in the positions would be read as borders of packed sequences.
        mask = torch.ones(len(place), len(place), dtype=torch.bool).tril()[None, None]
        with torch.no_grad():
            logits = teacher(input_ids=words, position_ids=place[None], attention_mask=mask).logits[0]
        target = layout.target_BS[row, place]
        theirs = torch.nn.functional.cross_entropy(logits[:-1], words[0, 1:], reduction="none")[target[1:]]
        ours = losses_BS[row, layout.target_BS[row]]
        assert (ours - theirs).abs().max() <= 1e-2  # the store keeps half precision
