"""Cells that leave by a layer's attention, and single layers that compute a part: both equal their slow definitions,
logits, losses and all gradients, in float64.

Oracle of both is Algorithm 1 with a mask for each layer; which cells leave is read from the weights of transformers'
eager attention.

Legend: B rows, S expanded length, L layers.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch

import regate
from regate import ConfigError, GateConfig, Grid, UnsupportedModelError, VisualConfig
from regate.depth import layer_masks
from regate.types import Kind, Level
from regate.wrapping import decoder_of
from tests.regate import families, tiny
from tests.regate.test_equivalence import assert_same, gradients
from tests.regate.test_packed import case_of, packed, run
from tests.regate.test_visual import decide, with_grids

NAMES = sorted(families.FAMILIES)
LAYERS = 3


def attended(case, layer, **settings):
    return decide(with_grids(case), visual=VisualConfig(0.5, "attention", layer), **settings)


def by_eager_weights(case, decision, layer):
    """The decision with the cells that stay known beforehand: those to which the last position of a row attends most
    in the layer below, by weights that transformers computes."""
    decoder = decoder_of(case.model)
    lower_BS = decision.levels[0].active_BS
    weights = []
    module = decoder.layers[layer - 1].self_attn
    handle = module.register_forward_hook(lambda _, args, output: weights.append(output[1]))
    decoder.set_attn_implementation("eager")
    elide = regate.attach(case.model, execution="layerwise")
    everything = replace(decision, visual=None, levels=(), active_BS=lower_BS)
    counts = replace(decision.counts, active=decision.counts.valid - 1)  # so that layers go sample by sample
    with torch.no_grad(), elide(replace(everything, counts=counts)):
        case.model(**case.inputs)
    elide.remove()
    handle.remove()
    decoder.set_attn_implementation("sdpa")
    cells_BS = decision.layout.kind_BS == Kind.VISUAL
    kept_BS = torch.zeros_like(cells_BS)
    for row, weight in enumerate(weights):
        score_S = torch.full((cells_BS.shape[1],), -1.0, dtype=weight.dtype)
        score_S[lower_BS[row]] = weight[0, :, -1].mean(0)
        places = cells_BS[row].nonzero().squeeze(1).tolist()
        for grid in decision.layout.grids[row]:
            own, places = places[: grid.cells], places[grid.cells :]
            best = sorted(own, key=lambda place: -float(score_S[place]))
            kept_BS[row, best[: ceil(0.5 * len(own)) if grid.elidable else len(own)]] = True
    active_BS = decision.active_BS & ~cells_BS | kept_BS
    return replace(decision, visual=None, active_BS=active_BS, levels=(Level(0, lower_BS), Level(layer, active_BS)))


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_cells_leave_by_the_attention_of_the_layer_below(name, keep_ratio):
    case, layer = case_of(name), 2 if name == "Qwen3-VL" else 1
    decision = attended(case, layer, keep_ratio=keep_ratio)
    assert [level.first for level in decision.levels] == [0, layer]
    beforehand = by_eager_weights(case, decision, layer)
    assert not torch.equal(beforehand.active_BS, decision.active_BS)
    assert torch.equal(beforehand.active_BS.sum(1), decision.active_BS.sum(1))
    expected = run(case.model, case.inputs, beforehand, execution="layerwise")
    for attach in ({}, {"outputs": "predictors"}, {"outputs": "predictors", "multiple": 8}):
        assert_same(packed(case.model, case.inputs, decision, **attach), expected)


def test_they_leave_under_lora_with_recomputation():
    from peft import LoraConfig, get_peft_model

    case = families.FAMILIES["InternVL"]()
    layers = r".*language_model.*\.(q_proj|v_proj|o_proj|down_proj)"
    torch.manual_seed(1)
    case.model = get_peft_model(case.model, LoraConfig(r=4, target_modules=layers, init_lora_weights=False)).double()
    decision = attended(case, 2, keep_ratio=0.5)
    single = decide(case.layout, layer_keep=0.5, keep_ratio=0.5)
    slow = [
        run(case.model, case.inputs, step, execution="layerwise")
        for step in (by_eager_weights(case, decision, 2), single)
    ]
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    case.model.enable_input_require_grads()
    for step, expected in zip((decision, single), slow, strict=True):
        result = packed(case.model, case.inputs, step, outputs="predictors")
        assert_same(result, expected)
        assert result[2]
        assert all("lora" in key for key in result[2])


# Single layers that compute a part.


@pytest.mark.parametrize("settings", [{}, {"keep_ratio": 0.5}, {"visual": VisualConfig(0.5, "pattern")}])
@pytest.mark.parametrize("name", NAMES)
def test_single_layers_equal_a_mask_for_each_layer(name, settings):
    case = case_of(name)
    decision = decide(with_grids(case), layer_keep=0.5, **settings)
    assert decision.sparse
    expected = run(case.model, case.inputs, decision, execution="layerwise")
    for attach in ({}, {"outputs": "predictors", "multiple": 8}):
        assert_same(packed(case.model, case.inputs, decision, **attach), expected)


def test_masks_of_single_layers():
    """First and last layer whole; in the others as many of every row, other ones in each layer and step."""
    data = tiny.rows(seed=5)
    gate = regate.Gate(GateConfig(keep_ratio=1.0, selection="random", warmup_steps=0, layer_keep=0.3), None, seed=4)
    decision, later = (gate.decide(data.layout, data.sample_ids_B, step=step) for step in (100, 101))
    masks = layer_masks(decision, 5)
    assert sorted(masks) == [1, 2, 3]
    for mask_BS in masks.values():
        assert not bool((mask_BS & ~decision.active_BS).any())
        assert mask_BS.sum(1).tolist() == [ceil(0.3 * count) for count in decision.active_BS.sum(1).tolist()]
    again, other = layer_masks(decision, 5), layer_masks(later, 5)
    assert all(torch.equal(masks[layer], again[layer]) for layer in masks)
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[1], other[1])
    assert gate.decide(data.layout, data.sample_ids_B, step=0).layer_keep is None  # a dense step
    whole = replace(gate.config, layer_keep=1.0)
    assert not regate.Gate(whole, None).decide(data.layout, data.sample_ids_B, step=100).sparse


def test_positions_that_are_said_are_computed():
    data = tiny.rows(visual=4, pad="right", seed=5)
    layout = replace(data.layout, grids=((Grid(1, 2, 2),),) * 3)
    model = tiny.lm()
    for settings in ({"layer_keep": 0.5}, {"visual": VisualConfig(0.5, "attention", 2)}):
        decision = decide(layout, **settings)
        elide = regate.attach(model, rows="packed")
        computed = seen_by_attention(model, elide, decision, data)
        work = [part.computed for part in elide.work(decision) for _ in range(part.layers)]
        assert work == computed
        assert elide.executed(decision) == ceil(sum(computed) / LAYERS)
        elide.remove()


def seen_by_attention(model, elide, decision, data):
    """Positions that enter each layer's attention."""
    seen = []
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    with elide(decision):
        regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs)
    for handle in handles:
        handle.remove()
    return seen


def test_a_dense_step_after_them_is_as_before():
    """With layers recomputed, whose second call may stop within the layer."""
    case = families.FAMILIES["InternVL"]()
    layout = with_grids(case)
    dense = decide(layout, step=4)
    before = packed(case.model, case.inputs, dense)
    case.model.gradient_checkpointing_enable({"use_reentrant": False})
    elide = regate.attach(case.model, rows="packed", outputs="predictors")
    for decision in (decide(layout, layer_keep=0.5), attended(case, 1), dense):
        case.model.zero_grad()
        with elide(decision):
            logits_NV = regate.ScoredLM(case.model)(predictor_BS=decision.predictor_BS, **case.inputs)
        loss_N = regate.token_loss(logits_NV, decision.targets_N)
        loss_N.sum().backward()
    elide.remove()
    assert_same((logits_NV.detach(), loss_N.detach(), gradients(case.model)), before)


# What is refused, by name.


BY_ATTENTION = VisualConfig(0.5, "attention", 1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layer_keep": 0.5, "deep": 1}, "deep and layer_keep both say"),
        ({"layer_keep": 0.5, "visual": BY_ATTENTION}, r"layer_keep and visual\.how attention both"),
        ({"from_layer": 1, "visual": BY_ATTENTION}, r"from_layer and visual\.how attention both"),
        ({"layer_keep": 0.0}, r"layer_keep must be in \(0, 1\]"),
        ({"layer_keep": 0.5, "execution": "loss_only"}, "elides nothing"),
        ({"visual": BY_ATTENTION, "execution": "layerwise"}, "execution: compact"),
    ],
)
def test_settings_that_contradict_each_other(settings, says):
    with pytest.raises(ConfigError, match=says):
        GateConfig(**settings)


def test_cells_leave_above_a_layer_by_attention_alone():
    with pytest.raises(ConfigError, match=r"visual\.from_layer is missing: how: attention needs"):
        VisualConfig(0.5, "attention")
    with pytest.raises(ConfigError, match=r"visual\.from_layer is for how: attention alone; by pool cells"):
        VisualConfig(0.5, "pool", 1)
    with pytest.raises(ConfigError, match="from 1 on"):
        VisualConfig(0.5, "attention", 0)


def test_models_and_rows_that_cannot_are_refused():
    case = case_of("InternVL")
    by_attention, by_layer = GateConfig(visual=VisualConfig(0.5, "attention", 2)), GateConfig(layer_keep=0.5)
    padded = regate.attach(case.model)
    for config in (by_attention, by_layer):
        with pytest.raises(ConfigError, match="packed rows"):
            padded.check(config)
    for decision in (attended(case, 2), decide(case.layout, layer_keep=0.5)):
        with pytest.raises(ConfigError, match="packed rows"), padded(decision):
            pass
    padded.remove()
    elide = regate.attach(case.model, rows="packed")
    with pytest.raises(ConfigError, match="below it no layer attends"):
        elide.check(GateConfig(visual=VisualConfig(0.5, "attention", 0.1)))
    elide.remove()
    short = tiny.lm(num_hidden_layers=2)
    elide = regate.attach(short, rows="packed")
    with pytest.raises(ConfigError, match="first and the last layer whole"):
        elide.check(by_layer)
    elide.remove()
    with pytest.raises(UnsupportedModelError, match="adds features of the pictures"):
        packed(case_of("Qwen3-VL").model, case_of("Qwen3-VL").inputs, attended(case_of("Qwen3-VL"), 1))
