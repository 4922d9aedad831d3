"""ReGATE on VideoChat2 with adapters: the fast execution is Algorithm 1, keep_ratio 1 is the ungated model, and the
adapters learn from the selected targets alone.

In float64 on the parity fixture's model, with videos, a picture and a row of text. Dropout is off.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regate
from harness.data.sample import Batch, Sample, Turn
from harness.models.forward import scored_forward
from harness.models.pretrained import load_teacher
from harness.models.videochat2.checkpoint_names import LORA
from harness.models.videochat2.weights import merge_adapters
from regate.candidates import store_keys
from regate.types import IGNORE, Kind
from tests.harness.worlds.tiny import tiny_recipe
from tests.harness.worlds.videochat2_fixture import Parity

if TYPE_CHECKING:
    from torch import Tensor, nn

FIXTURE = Path(__file__).parents[3] / "fixtures" / "videochat2"
FRAMES = 4
Step = tuple["Tensor", "Tensor", dict[str, "Tensor"]]


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity(FIXTURE)


def rows(parity: Parity, frames: int) -> list[Any]:
    """Two videos, one with two turns, a captioned picture, and words alone."""
    processor = parity.processor("video8", frames)
    videos, pictures = parity.samples("video8"), parity.samples("image")
    made = []
    for samples, case, count in ((videos, "video8", frames), (pictures[1:], "image", 1)):
        for sample, clip in zip(samples, parity.clips(case)[-len(samples) :], strict=True):
            made.append(processor.encode(replace(sample, id=len(made) + 1), [clip[:count]]))
    words = Sample(9, "words", (), (Turn("user", "What is a tree?"), Turn("assistant", "A tree is a plant.")))
    return [*made, processor.encode(words, None)]


@pytest.fixture(scope="module")
def batch(parity: Parity) -> Batch:
    found = parity.processor("video8", FRAMES).collate(rows(parity, FRAMES))
    assert found.inputs["frame_counts"] == (FRAMES, FRAMES, 1)
    inputs = found.model_inputs()
    return replace(found, inputs={**inputs, "pixel_values": inputs["pixel_values"].double()}, colours={})


@pytest.fixture(scope="module", params=["adapters", "merged"])
def model(request: pytest.FixtureRequest, parity: Parity) -> nn.Module:
    made = parity.model().double()
    if request.param == "adapters":
        return made
    return merge_adapters(made).requires_grad_(True)


def decide(batch: Batch, keep_ratio: float, execution: str = "compact", **settings: Any) -> regate.Decision:
    config = regate.GateConfig(
        keep_ratio=keep_ratio, dense_steps=0, warmup_steps=0, selection="random", execution=execution, **settings
    )  # type: ignore[arg-type]
    return regate.Gate(config, None, seed=3).decide(batch.layout, batch.sample_ids_B, step=2)


def step(model: nn.Module, batch: Batch, decision: regate.Decision, execution: str, **attach: Any) -> Step:
    elide = regate.attach(model, execution=execution, **attach)  # type: ignore[arg-type]
    model.zero_grad()
    try:
        with elide(decision):
            logits_NV, targets_N = scored_forward(regate.ScoredLM(model), batch, decision)
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


@pytest.mark.parametrize("keep_ratio", [0.2, 0.5])
def test_compact_is_algorithm_1(model: nn.Module, batch: Batch, keep_ratio: float) -> None:
    """Logits, losses and every gradient, through the projector into QFormer and vision transformer."""
    decision = decide(batch, keep_ratio)
    assert decision.elides
    compact, oracle = step(model, batch, decision, "compact"), step(model, batch, decision, "layerwise")
    assert difference(compact, oracle) <= 1e-9
    for part in ("vision.patch_embed", "qformer.", "query_tokens", "projector"):
        assert any(part in name and bool(grad.any()) for name, grad in compact[2].items()), part


@pytest.mark.parametrize("keep_ratio", [0.5, 1.0])
def test_packed_is_algorithm_1(model: nn.Module, batch: Batch, keep_ratio: float) -> None:
    decision = decide(batch, keep_ratio)
    packed = step(model, batch, decision, "compact", rows="packed", outputs="predictors")
    assert difference(packed, step(model, batch, decision, "layerwise")) <= 1e-9


BELOW = (regate.KeepBelow(1, 0.75),)


@pytest.mark.parametrize("settings", [{"from_layer": 1}, {"keep_below": BELOW}, {"layer_keep": 0.5}], ids=str)
def test_layers_that_compute_less_equal_a_mask_for_each(
    model: nn.Module, batch: Batch, settings: dict[str, Any]
) -> None:
    decision = decide(batch, 0.5, **settings)
    packed = step(model, batch, decision, "compact", rows="packed", outputs="predictors")
    assert difference(packed, step(model, batch, decision, "layerwise")) <= 1e-9


@pytest.mark.parametrize("deep", [1, 2])
def test_deep_equals_layers_that_put_the_others_back(model: nn.Module, batch: Batch, deep: int) -> None:
    """The untouched model on padded rows; from a layer on, what is not read keeps the state it came with."""
    decision = decide(batch, 0.5, deep=deep)
    packed = step(model, batch, decision, "compact", rows="packed", outputs="predictors")

    def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        kept = torch.where(decision.predictor_BS[:, :, None], hidden, args[0] if args else kwargs["hidden_states"])
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    layers: Any = model.get_decoder().layers  # type: ignore[operator]
    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers[deep:]]
    try:
        slow = step(model, batch, replace(decision, deep=None), "loss_only")
    finally:
        for handle in handles:
            handle.remove()
    assert difference(packed, slow) <= 1e-9


def test_keep_ratio_1_is_the_ungated_model_exactly(model: nn.Module, batch: Batch) -> None:
    dense = regate.DenseGate().decide(batch.layout, batch.sample_ids_B, step=2)
    gated, ungated = (step(model, batch, one, "compact") for one in (decide(batch, 1.0), dense))
    assert difference(gated, ungated) == 0
    with torch.no_grad():
        whole = model(**batch.model_inputs(), labels=batch.layout.labels_BS)
    assert float(whole.loss) == pytest.approx(float(ungated[1].mean()), rel=1e-6)  # its loss is float32


def test_media_and_prompts_are_never_elided(batch: Batch) -> None:
    for keep_ratio in (0.01, 0.5):
        decision = decide(batch, keep_ratio)
        elided_BS = batch.layout.valid_BS & ~decision.active_BS
        assert bool(elided_BS.any())
        assert not (elided_BS & ~batch.layout.target_BS).any()
        assert int((batch.layout.kind_BS == Kind.VISUAL).sum()) == 3 * 96


def test_only_the_update_is_selective_with_loss_only(parity: Parity, batch: Batch) -> None:
    """Adapter gradients are those of the whole forward pass with the unselected labels taken out."""
    model = parity.model().double()
    decision = decide(batch, 0.5, "loss_only")
    selective = step(model, batch, decision, "loss_only")
    model.zero_grad()
    logits_BSV = model(**batch.model_inputs()).logits
    labels_BS = torch.where(decision.targets_BS, batch.layout.labels_BS, IGNORE)
    flat = logits_BSV[:, :-1].flatten(0, 1), labels_BS[:, 1:].flatten()
    torch.nn.functional.cross_entropy(*flat, reduction="sum").backward()
    adapters = {name: value for name, value in model.named_parameters() if LORA in name}
    assert len(adapters) == 2 * (7 * 3 + 1)
    assert set(adapters) < set(selective[2])
    for name, value in adapters.items():
        assert value.grad is not None
        assert float((value.grad - selective[2][name]).abs().max()) <= 1e-9, name
    assert all(value.grad is None for value in model.parameters() if not value.requires_grad)


@pytest.mark.parametrize("execution", ["compact", "loss_only"])
def test_unselected_targets_do_not_reach_the_adapters(parity: Parity, batch: Batch, execution: str) -> None:
    """Another answer in their place changes nothing: its label, and under elision its word too."""
    model = parity.model().double()
    decision = decide(batch, 0.5, execution)
    left_BS = batch.layout.target_BS & ~decision.targets_BS
    assert bool(left_BS.any())
    labels_BS = torch.where(left_BS, 7, batch.layout.labels_BS)
    inputs = dict(batch.inputs)
    if execution == "compact":
        dark_BS = batch.layout.valid_BS & ~decision.active_BS
        inputs["input_ids"] = torch.where(dark_BS, 7, inputs["input_ids"])
    layout = replace(batch.layout, labels_BS=labels_BS)
    other, changed = replace(batch, inputs=inputs, layout=layout), replace(decision, layout=layout)
    assert difference(step(model, batch, decision, execution), step(model, other, changed, execution)) == 0


def test_the_number_of_frames_leaves_the_stores_keys_valid(parity: Parity) -> None:
    """Sample id, target ordinal and checksums, and so the place of the reference losses."""
    few, many = (parity.processor("video8", frames) for frames in (2, 8))
    assert few.fingerprint == many.fingerprint != parity.processor("video8", 1).fingerprint
    one, two = few.collate(rows(parity, 2)), many.collate(rows(parity, 8))
    assert torch.equal(one.sample_ids_B, two.sample_ids_B)
    assert torch.equal(one.input_ids_BS, two.input_ids_BS)
    assert torch.equal(one.layout.ordinal_BS, two.layout.ordinal_BS)
    for ours, theirs in zip(store_keys(one.layout, "targets"), store_keys(two.layout, "targets"), strict=True):
        assert list(ours) == list(theirs)


def test_the_teacher_is_the_frozen_base_on_text_alone(parity: Parity, batch: Batch, tmp_path: Path) -> None:
    """Eq. 1: the language model without adapters, on the text at its original positions."""
    teacher: Any = load_teacher(tiny_recipe(tmp_path), parity.files.language_model).double()
    assert not any(value.requires_grad for value in teacher.parameters())
    counts, checksums = store_keys(batch.layout, "targets")
    ids = batch.sample_ids_B.tolist()
    writer = regate.ReferenceWriter.create(
        tmp_path / "store", sample_ids=ids, num_targets=counts, checksums=checksums, fingerprint={"t": 1}
    )
    placeholder = parity.processor("video8", FRAMES).placeholder_id
    store = regate.score_reference(teacher, [batch], writer, placeholder_id=placeholder, dtype="float32")
    losses_BS = store.losses(batch.sample_ids_B, batch.layout)
    read_BS = (batch.layout.kind_BS != Kind.VISUAL) & batch.layout.valid_BS
    for row in range(len(ids)):
        place = read_BS[row].nonzero().squeeze(1)
        words = batch.input_ids_BS[row, place][None]
        mask = torch.ones(len(place), len(place), dtype=torch.bool).tril()[None, None]
        with torch.no_grad():
            logits = teacher(input_ids=words, position_ids=place[None], attention_mask=mask).logits[0]
        target = batch.layout.target_BS[row, place]
        theirs = torch.nn.functional.cross_entropy(logits[:-1], words[0, 1:], reduction="none")[target[1:]]
        assert (losses_BS[row, batch.layout.target_BS[row]] - theirs).abs().max() <= 1e-2  # kept in half precision
