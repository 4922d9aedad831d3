"""The same gate on seven multimodal families, pictures and frames included.

Legend: B rows, S expanded length, K active length.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

import regate
from regate import Gate, GateConfig, LayoutError
from regate.compaction import compact
from regate.inputs import compact_inputs
from regate.teacher import TextBackbone
from tests.regate import families, tiny
from tests.regate.test_equivalence import LIMIT, assert_same, gradients

NAMES = sorted(families.FAMILIES)


@cache
def case_of(name):
    return families.FAMILIES[name]()


def decided(case, step=1, **settings):
    gate = Gate(GateConfig(warmup_steps=0, cycle_steps=4, dense_steps=1, selection="random", **settings), None)
    return gate.decide(case.layout, torch.tensor([3, 4]), step=step)


def run(case, decision, execution="compact"):
    elision = regate.attach(case.model, execution=execution)
    case.model.zero_grad()
    with elision(decision):
        logits_NV = regate.ScoredLM(case.model)(predictor_BS=decision.predictor_BS, **case.inputs)
    elision.remove()
    loss_N = regate.token_loss(logits_NV, decision.targets_N)
    loss_N.sum().backward()
    return logits_NV.detach(), loss_N.detach(), gradients(case.model)


@pytest.mark.parametrize("name", NAMES)
def test_compact_equals_algorithm_1(name):
    case = case_of(name)
    decision = decided(case)
    assert decision.elides
    compact = run(case, decision)
    assert_same(compact, run(case, decision, "layerwise"))
    assert any("vision" in key or "visual" in key for key in compact[2])  # the tower gets its gradient too


@pytest.mark.parametrize("name", NAMES)
def test_compact_equals_the_untouched_decoder_with_closed_keys(name):
    case = case_of(name)
    decision = decided(case)
    length = decision.active_BS.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = ((causal & decision.active_BS[:, None, :]) | torch.eye(length, dtype=torch.bool))[:, None]
    dims = []

    def close(module, args, kwargs):
        dims.append(0 if kwargs["position_ids"] is None else kwargs["position_ids"].dim())
        return args, {**kwargs, "attention_mask": mask, "use_cache": False, "past_key_values": None}

    handle = case.model.get_decoder().register_forward_pre_hook(close, with_kwargs=True)
    with torch.no_grad():
        logits_BSV = case.model(**case.inputs).logits
    handle.remove()
    assert dims == [case.position_dims]
    assert (run(case, decision)[0] - logits_BSV[decision.predictor_BS]).abs().max().item() <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_step_is_bit_identical(name):
    case = case_of(name)
    decision = decided(case, step=0)
    logits_NV, _, _ = run(case, decision)
    with torch.no_grad():
        plain_BSV = case.model(**case.inputs, use_cache=False).logits
    torch.testing.assert_close(logits_NV, plain_BSV[decision.predictor_BS], rtol=0, atol=1e-12)
    base = case.model.base_model
    with torch.no_grad():
        without = base(**case.inputs, use_cache=False).last_hidden_state
        with regate.attach(case.model)(decision):
            within = base(**case.inputs, use_cache=False).last_hidden_state
    assert torch.equal(without, within)


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_computes_the_active_positions_only(name):
    case, seen = case_of(name), []
    decision = decided(case)
    handle = (
        case.model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    )
    run(case, decision)
    handle.remove()
    assert seen == [(2, int(decision.active_BS.sum(dim=1).max()))]
    assert seen[0][1] < families.LENGTH


@pytest.mark.parametrize("name", ["Qwen2.5-VL", "Qwen3-VL"])
def test_new_positions_would_be_wrong(name):
    """Rotary positions of three axes are the original ones: renumbered, the logits differ."""
    case = case_of(name)
    decision = decided(case)
    seen = []
    handle = case.model.get_decoder().rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    run(case, decision)
    run(case, decided(case, step=0))
    handle.remove()
    compaction = compact(decision.active_BS)
    assert torch.equal(seen[0], compaction.gather(seen[1], dim=2))
    assert bool((seen[0][1] != seen[0][2]).any())  # height and width differ somewhere


def test_deepstack_features_land_on_their_positions():
    case = case_of("Qwen3-VL")
    decision, seen = decided(case), []
    decoder = case.model.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["visual_pos_masks"]), with_kwargs=True
    )
    regate.attach(case.model)  # the first hook sees what the model passes
    run(case, decision)
    handle.remove()
    compaction = compact(decision.active_BS)
    inputs = {"visual_pos_masks": seen[0], "position_ids": None, "attention_mask": None}
    embeds = torch.zeros(2, families.LENGTH, 4)
    gathered = compact_inputs(decoder, inputs, embeds, compaction, full=False)["visual_pos_masks"]
    assert int(gathered.sum()) == int(seen[0].sum())
    assert torch.equal(compaction.index_BK[gathered], seen[0].nonzero()[:, 1])
    first_is_visual = {**inputs, "visual_pos_masks": seen[0] | (torch.arange(families.LENGTH) == 0)}
    gathered = compact_inputs(decoder, first_is_visual, embeds, compaction, full=False)["visual_pos_masks"]
    assert not bool(compaction.valid_BK.all())
    assert not bool(gathered[~compaction.valid_BK].any())  # padding points at position 0


@pytest.mark.parametrize("rows", [3, 4])
def test_position_ids_of_three_and_four_rows(rows):
    """Four rows carry the text positions first, from which transformers would guess packed sequences."""
    model = case_of("Qwen3-VL").model.model.language_model
    data = tiny.rows(batch=2, pad="none")
    decision = tiny.select(data, torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) < 0.5)
    positions = torch.stack([torch.arange(20).expand(2, 20) * (axis + 1) for axis in range(rows)])
    positions[0] = torch.arange(20)
    embeds = torch.randn(2, 20, 32, dtype=torch.float64)
    out = []
    for execution in ("compact", "layerwise"):
        elide = regate.attach(model, execution=execution)
        with elide(decision):
            out.append(model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state)
        elide.remove()
    assert (out[0] - out[1])[decision.active_BS].abs().max().item() <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_the_students_own_text_backbone_is_a_teacher(name, tmp_path):
    """Its pictures left out: the same as the whole decoder with the placeholders hidden."""
    case = case_of(name)
    number, checksum = regate.store_keys(case.layout)
    writer = regate.ReferenceWriter.create(
        tmp_path / "r", sample_ids=[3, 4], num_targets=number, checksums=checksum, fingerprint={}
    )
    rows = tiny.Rows(torch.tensor([3, 4]), case.inputs["input_ids"], case.inputs["attention_mask"], case.layout)
    store = regate.score_reference(TextBackbone(case.model), [rows], writer, placeholder_id=0)
    visual_BS = case.layout.kind_BS == regate.Kind.VISUAL
    decoder = case.model.get_decoder().eval()
    with torch.no_grad():
        hidden_BSD = decoder(
            inputs_embeds=decoder.get_input_embeddings()(rows.input_ids_BS),
            attention_mask=rows.mask_BS * ~visual_BS,
            position_ids=torch.arange(families.LENGTH).expand(2, -1),
        ).last_hidden_state
        expected = regate.causal_token_loss(case.model.get_output_embeddings()(hidden_BSD), case.layout.labels_BS)
    decoder.train()
    losses_BS = store.losses(rows.sample_ids_B, case.layout)
    torch.testing.assert_close(losses_BS[case.layout.target_BS].double(), expected, rtol=1e-3, atol=1e-3)


def test_positions_of_one_axis_are_noticed():
    case = case_of("Qwen2.5-VL")
    inputs = {name: value for name, value in case.inputs.items() if name != "mm_token_type_ids"}
    elide = regate.attach(case.model)
    with elide(decided(case)), pytest.raises(LayoutError, match="mm_token_type_ids"):
        case.model(**inputs)
    elide.remove()
