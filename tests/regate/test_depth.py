"""Layers that compute less than the layers below them equal their slow definitions: logits, losses and all gradients,
in float64.

Oracles: for positions that leave above a layer, Algorithm 1 with a mask for each layer; for `deep`, the untouched
model whose deep layers put back the state of every position that is not read.

Legend: B rows, S expanded length, N scored targets, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

import regate
from regate import ConfigError, GateConfig, KeepBelow, RampConfig, UnsupportedModelError
from regate.types import Level
from tests.regate import families, tiny
from tests.regate.test_equivalence import FAMILIES, LIMIT, assert_same, gradients
from tests.regate.test_packed import half, packed, run

NAMES = sorted(families.FAMILIES)
ALIGN = ["predictor", "union", "target"]


@cache
def model_of(family):
    return tiny.lm(family)


@cache
def case_of(name):
    return families.FAMILIES[name]()


def leaving(decision, layer):
    """The decision whose elided positions leave above a layer."""
    valid_BS = decision.layout.valid_BS
    return replace(decision, levels=(Level(0, valid_BS), Level(layer, decision.active_BS)))


def deepened(decision, layer, *, elide=False):
    """Deep above a layer; with nothing elided unless asked."""
    if elide:
        return replace(decision, deep=layer)
    return replace(decision, active_BS=decision.layout.valid_BS, deep=layer, levels=())


def gated(case, **settings):
    settings = {"selection": "random", "warmup_steps": 0, "cycle_steps": 4, "dense_steps": 1, **settings}
    return regate.Gate(GateConfig(**settings), None).decide(case.layout, torch.tensor([3, 4]), step=1)


def frozen(model, inputs, decision, layer):
    """The untouched model on whole padded rows; from a layer on, what is not read keeps the state it came with."""
    read_BS1 = decision.predictor_BS[:, :, None]
    handles = []

    def keep(module, args, kwargs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        before = args[0] if args else kwargs["hidden_states"]
        kept = torch.where(read_BS1, hidden, before)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    for module in regate.wrapping.decoder_of(model).layers[layer:]:
        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    model.zero_grad()
    try:
        logits_NV = regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    loss_N = regate.token_loss(logits_NV, decision.targets_N)
    loss_N.sum().backward()
    return logits_NV.detach(), loss_N.detach(), gradients(model)


OUTPUTS = pytest.mark.parametrize("outputs", ["active", "predictors"])


# Positions that leave above a layer.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("align", ALIGN)
@pytest.mark.parametrize("layer", [1, 2])
def test_leaving_above_a_layer_equals_a_mask_for_each_layer(family, align, layer):
    data = tiny.rows(seed=5)
    decision = leaving(half(data, align=align), layer)
    model = model_of(family)
    slow = run(model, data.inputs, decision, execution="layerwise")
    assert_same(packed(model, data.inputs, decision), slow)
    assert_same(packed(model, data.inputs, decision, outputs="predictors"), slow)
    assert_same(packed(model, data.inputs, decision, multiple=8), slow)


@pytest.mark.parametrize("name", NAMES)
@OUTPUTS
def test_families_leave_above_a_layer(name, outputs):
    case = case_of(name)
    layer = 2 if name == "Qwen3-VL" else 1
    decision = gated(case, from_layer=layer)
    assert [level.first for level in decision.levels] == [0, layer]
    slow = run(case.model, case.inputs, decision, execution="layerwise")
    assert_same(packed(case.model, case.inputs, decision, outputs=outputs), slow)


@pytest.mark.parametrize("name", NAMES)
def test_leaving_above_the_last_layer_is_loss_only_and_above_none_the_paper(name):
    case = case_of(name)
    loss_only = packed(case.model, case.inputs, gated(case, execution="loss_only"), execution="loss_only")
    for last in (3, 1.0):
        assert_same(packed(case.model, case.inputs, gated(case, from_layer=last)), loss_only)
    paper = packed(case.model, case.inputs, gated(case))
    for none in (0, 0.0, None):
        assert_same(packed(case.model, case.inputs, gated(case, from_layer=none)), paper, limit=0.0)


@pytest.mark.parametrize(
    ("layer", "settings"),
    [(layer, {"from_layer": layer}) for layer in (0, 1, 2)] + [(1, {"keep_below": (KeepBelow(1, 1.0),)})],
)
def test_what_stands_behind_an_elided_word_has_read_it_above_no_layer_only(layer, settings):
    model, data = model_of("Qwen2"), tiny.rows(pad="none")
    gate = regate.Gate(GateConfig(selection="first", warmup_steps=0, dense_steps=0, **settings), None)
    decision = gate.decide(data.layout, data.sample_ids_B, step=0)
    targets_BS = data.layout.target_BS & (torch.arange(20) % 2 == 0)
    active_BS = data.layout.valid_BS & (~data.layout.target_BS | regate.gate.predictor_of(targets_BS))
    levels = tuple(replace(level, active_BS=active_BS) if level.first else level for level in decision.levels)
    decision = replace(decision, active_BS=active_BS, targets_BS=targets_BS, levels=levels)
    elided = (data.layout.target_BS[0] & ~active_BS[0]).nonzero()[0]
    with torch.no_grad():
        logits = []
        for ids in (7, 9):
            data.input_ids_BS[0, elided] = ids
            elide = regate.attach(model, rows="packed")
            with elide(decision):
                logits.append(regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs))
            elide.remove()
    place_n = decision.predictor_BS[0].nonzero().squeeze(1)
    behind_n = (place_n > elided).nonzero().squeeze(1)
    changed = (logits[0] - logits[1])[behind_n].abs().max().item()
    assert changed > 1e-4 if layer else changed == 0.0


@pytest.mark.parametrize("family", ["Mistral", "Qwen2"])
def test_sliding_windows_are_measured_on_positions(family):
    config = {"sliding_window": 4}
    if family == "Qwen2":
        config |= {"use_sliding_window": True, "max_window_layers": 1}
    model, data = tiny.lm(family, **config), tiny.rows(length=30)
    decision = leaving(half(data), 2)
    slow = run(model, data.inputs, decision, execution="layerwise")
    assert_same(packed(model, data.inputs, decision), slow)
    deep = deepened(half(data), 1)
    assert_same(packed(model, data.inputs, deep), frozen(model, data.inputs, deep, 1))


def test_flex_attention_leaves_and_goes_deep():
    sizes = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    data = tiny.rows(seed=5)
    for decision in (leaving(half(data), 1), deepened(half(data), 1)):
        logits = []
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            for attention in ("flex_attention", "sdpa"):
                model = tiny.lm("Qwen2", double=False, attention=attention, **sizes)
                elide = regate.attach(model, rows="packed")
                with elide(decision):
                    logits.append(regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs))
                assert elide.kernel == attention
        torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


# Deep.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [1, 2])
@OUTPUTS
def test_deep_equals_layers_that_put_the_others_back(family, layer, outputs):
    data = tiny.rows(seed=5)
    decision = deepened(half(data), layer)
    model = model_of(family)
    assert_same(packed(model, data.inputs, decision, outputs=outputs), frozen(model, data.inputs, decision, layer))


@pytest.mark.parametrize("name", NAMES)
@OUTPUTS
def test_families_go_deep(name, outputs):
    case = case_of(name)
    layer = 2 if name == "Qwen3-VL" else 1
    decision = gated(case, deep=layer)
    assert not decision.elides
    slow = frozen(case.model, case.inputs, decision, layer)
    assert_same(packed(case.model, case.inputs, decision, outputs=outputs), slow)


@pytest.mark.parametrize("name", NAMES)
@OUTPUTS
def test_deep_at_the_last_layer_is_loss_only(name, outputs):
    case = case_of(name)
    loss_only = packed(case.model, case.inputs, gated(case, execution="loss_only"), execution="loss_only")
    assert_same(packed(case.model, case.inputs, gated(case, deep=2), outputs=outputs), loss_only)
    assert_same(packed(case.model, case.inputs, gated(case, deep=3), outputs=outputs), loss_only)


@pytest.mark.parametrize("first", [0, 1, 2])
@OUTPUTS
def test_deep_above_a_layer_that_words_leave(first, outputs):
    model, data = model_of("Llama"), tiny.rows(seed=7)
    decision = deepened(leaving(half(data), first), 2, elide=True)
    slow = _frozen_by_layer(model, data, decision)
    assert_same(packed(model, data.inputs, decision, outputs=outputs), slow)


def _frozen_by_layer(model, data, decision):
    """Keys of elided words closed from the layer on that they leave at, and layer 2 computes what is read alone."""
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    model.zero_grad()
    hidden_BSD = model.model.embed_tokens(data.input_ids_BS)
    cos_sin = model.model.rotary_emb(hidden_BSD, torch.arange(20)[None])
    for index, layer in enumerate(model.model.layers):
        open_BS = [level.active_BS for level in decision.levels if level.first <= index][-1]
        mask = causal & open_BS[:, None, :] | torch.eye(20, dtype=torch.bool)
        out_BSD = layer(hidden_BSD, attention_mask=mask[:, None], position_embeddings=cos_sin)
        kept_BS = decision.predictor_BS if index >= 2 else open_BS
        hidden_BSD = torch.where(kept_BS[:, :, None], out_BSD, hidden_BSD)
    logits_NV = model.lm_head(model.model.norm(hidden_BSD[decision.predictor_BS]))
    loss_N = regate.token_loss(logits_NV, decision.targets_N)
    loss_N.sum().backward()
    return logits_NV.detach(), loss_N.detach(), gradients(model)


def test_deep_layers_compute_the_predictors_alone():
    model, data, seen = tiny.lm("Qwen2"), tiny.rows(), []
    decision = deepened(half(data), 1)
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    packed(model, data.inputs, decision)
    assert seen == [decision.counts.valid, *[int(decision.predictor_BS.sum())] * 2]
    assert seen[1] < seen[0]


@pytest.mark.parametrize("outputs", ["active", "predictors"])
@pytest.mark.parametrize(("first", "deep"), [(1, None), (None, 1), (1, 2), (0, 1)])
def test_the_work_of_the_layers_is_that_of_their_modules(first, deep, outputs):
    """Keys, computed positions and pairs by layer, as the modules and the kernel meet them."""
    model, data = tiny.lm("Llama"), tiny.rows()
    decision = leaving(half(data), first) if first is not None else deepened(half(data), 3)
    decision = replace(decision, deep=deep)
    keys, computed, masks = [], [], []
    for layer in model.model.layers:
        layer.self_attn.k_proj.register_forward_pre_hook(lambda module, args: keys.append(args[0].shape[1]))
        layer.mlp.up_proj.register_forward_pre_hook(lambda module, args: computed.append(args[0].shape[1]))
    elide = regate.attach(model, rows="packed", outputs=outputs)
    with elide(decision), torch.no_grad():
        regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs)
    work = [part for span in elide.work(decision) for part in [span] * span.layers]
    assert [part.keys for part in work] == keys
    assert [part.computed for part in work] == computed
    rows = [(decision.layout.valid_BS if index < (first or 0) else decision.active_BS) for index in range(3)]
    for index, active_BS in enumerate(rows):
        queries_BS = decision.predictor_BS if deep is not None and index >= deep else active_BS
        causal = torch.ones(20, 20, dtype=torch.bool).tril()
        masks.append(int((queries_BS[:, :, None] & active_BS[:, None, :] & causal).sum()))
    assert [part.pairs for part in work] == masks
    assert elide.executed(decision) == -(-sum(keys) // 3)
    elide.remove()


# Wrappers.


@pytest.mark.parametrize("decide", [lambda d: leaving(d, 1), lambda d: deepened(d, 1)], ids=["leave", "deep"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
@OUTPUTS
def test_with_layers_recomputed_after_the_context_is_closed(decide, family, reentrant, outputs):
    model, data = model_of(family), tiny.rows(seed=8)
    decision = decide(half(data))
    plain = packed(model, data.inputs, decision)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    try:
        assert_same(packed(model, data.inputs, decision, outputs=outputs), plain)
    finally:
        model.activation_checkpointing_disable()
        if reentrant:
            model.disable_input_require_grads()


@pytest.mark.parametrize("name", NAMES)
def test_families_under_lora_with_recomputation(name):
    from peft import LoraConfig, get_peft_model

    case = families.FAMILIES[name]()
    layers = r".*(language_model|text_model).*\.(q_proj|v_proj|o_proj|down_proj)"
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=layers, init_lora_weights=False)
    model = get_peft_model(case.model, config).double()
    layer = 2 if name == "Qwen3-VL" else 1
    leave, deep = gated(case, from_layer=layer), gated(case, deep=layer)
    plain = run(model, case.inputs, leave, execution="layerwise"), frozen(model, case.inputs, deep, layer)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    for decision, slow in zip((leave, deep), plain, strict=True):
        result = packed(model, case.inputs, decision, outputs="predictors")
        assert_same(result, slow)
        assert result[2]
        assert all("lora" in key for key in result[2])


def test_a_dense_step_after_a_deep_one_is_as_before():
    case = case_of("InternVL")
    dense = regate.DenseGate().decide(case.layout, torch.tensor([3, 4]), step=0)
    elide = regate.attach(case.model, rows="packed", outputs="predictors")
    logits = []
    with torch.no_grad():
        for decision in (dense, gated(case, deep=1), dense, gated(case, from_layer=1), dense):
            with elide(decision):
                logits.append(regate.ScoredLM(case.model)(predictor_BS=decision.predictor_BS, **case.inputs))
    elide.remove()
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[0], logits[4])
    plain = case.model(**case.inputs).logits[dense.predictor_BS]
    assert (logits[0] - plain).abs().max().item() <= LIMIT


# Keep ratios of the lower layers.


def nested(case, *below, **settings):
    below = tuple(KeepBelow(layer, keep) for layer, keep in below)
    return gated(case, keep_below=below, keep_ratio=0.25, **settings)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Qwen3-VL"])
@pytest.mark.parametrize("align", ["predictor", "union"])
def test_nested_keep_ratios_equal_a_mask_for_each_layer(name, align):
    case = case_of(name)
    decision = nested(case, (1, 0.75), (2, 0.5), align=align)
    assert [level.first for level in decision.levels] == [0, 1, 2]
    for lower, upper in pairwise(decision.levels):
        assert not bool((upper.active_BS & ~lower.active_BS).any())
        assert int(upper.active_BS.sum()) < int(lower.active_BS.sum())
    by_ratio = [gated(case, keep_ratio=ratio, align=align) for ratio in (0.75, 0.5, 0.25)]
    for level, alone in zip(decision.levels, by_ratio, strict=True):
        assert torch.equal(level.active_BS, alone.active_BS)
    assert torch.equal(decision.targets_BS, by_ratio[-1].targets_BS)
    slow = run(case.model, case.inputs, decision, execution="layerwise")
    for outputs in ("active", "predictors"):
        assert_same(packed(case.model, case.inputs, decision, outputs=outputs), slow)


def test_everything_below_a_layer_is_from_layer():
    case = case_of("InternVL")
    leaves = packed(case.model, case.inputs, gated(case, from_layer=2, keep_ratio=0.25))
    assert_same(packed(case.model, case.inputs, nested(case, (2, 1.0))), leaves, limit=0.0)


def test_parts_that_mean_the_same_layer_are_the_upper_one():
    case = case_of("InternVL")
    once = packed(case.model, case.inputs, nested(case, (1, 0.5)))
    twice = nested(case, (0.2, 0.75), (0.3, 0.5))  # of three layers, 0.6 and 0.9: both are layer 1
    merged = packed(case.model, case.inputs, twice)
    above = packed(case.model, case.inputs, nested(case, (1, 0.75)))
    assert_same(merged, above, limit=0.0)
    assert not torch.equal(once[0], above[0])


def test_nested_keep_ratios_go_with_deep():
    model, data = model_of("Llama"), tiny.rows(seed=7)
    settings = {"keep_below": (KeepBelow(1, 0.75),), "keep_ratio": 0.25, "warmup_steps": 0, "dense_steps": 0}
    gate = regate.Gate(GateConfig(selection="random", deep=2, **settings), None)
    decision = gate.decide(data.layout, data.sample_ids_B, step=1)
    assert int((decision.levels[0].active_BS & ~decision.active_BS).sum()) > 0
    slow = _frozen_by_layer(model, data, decision)
    assert_same(packed(model, data.inputs, decision, outputs="predictors"), slow)


# What is refused, by name.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep_below": (KeepBelow(1, 0.5),)}, "more than keep_ratio"),
        ({"keep_below": (KeepBelow(1, 0.75),), "from_layer": 1}, "both say"),
        ({"keep_below": (KeepBelow(1, 0.75),), "align": "target"}, "predictor or union"),
        ({"keep_below": (KeepBelow(2, 0.9), KeepBelow(1, 0.75))}, "from the bottom up"),
        ({"keep_below": (KeepBelow(1, 0.75), KeepBelow(2, 0.9))}, "upper layers keep less"),
        ({"keep_below": (KeepBelow(0.5, 0.9), KeepBelow(2, 0.75))}, "all by number"),
        ({"keep_below": (KeepBelow(1, 0.75),), "execution": "loss_only"}, "elides nothing"),
        ({"keep_below": (KeepBelow(1, 0.75),), "ramp": RampConfig(to=0.8, steps=9)}, "ramp.to"),
    ],
)
def test_nested_keep_ratios_that_contradict_themselves(settings, says):
    with pytest.raises(ConfigError, match=says):
        GateConfig(**settings)


def test_padded_rows_are_refused():
    case = case_of("InternVL")
    for settings in ({"from_layer": 1}, {"deep": 1}):
        elide = regate.attach(case.model)
        with pytest.raises(ConfigError, match="packed"):
            elide.check(GateConfig(**settings))
        with pytest.raises(ConfigError, match="packed"), elide(gated(case, **settings)):
            pass
        elide.remove()
    elide = regate.attach(case.model)
    elide.check(GateConfig(from_layer=0))
    elide.remove()


def test_features_that_are_added_between_layers_are_refused():
    case = case_of("Qwen3-VL")
    for settings in ({"from_layer": 1}, {"deep": 1}):
        with pytest.raises(UnsupportedModelError, match="adds features of the pictures"):
            packed(case.model, case.inputs, gated(case, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"from_layer": -1}, "from_layer must be"),
        ({"deep": 1.5}, "deep must be"),
        ({"deep": 1, "execution": "loss_only"}, "elides nothing"),
        ({"from_layer": 1, "execution": "loss_only"}, "elides nothing"),
        ({"deep": 1, "execution": "layerwise"}, "execution: compact"),
    ],
)
def test_settings_that_contradict_each_other(settings, message):
    with pytest.raises(ConfigError, match=message):
        GateConfig(**settings)


def test_layers_that_are_not_there():
    elide = regate.attach(model_of("Qwen2"), rows="packed")
    with pytest.raises(ConfigError, match="the decoder has 3 layers"):
        elide.check(GateConfig(deep=4))
    with pytest.raises(ConfigError, match="from_layer 2 is above deep 1"):
        elide.check(GateConfig(deep=1, from_layer=2))
    elide.check(GateConfig(deep=0.5, from_layer=0.5))
    elide.remove()
