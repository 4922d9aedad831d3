"""The compact execution equals Algorithm 1: logits, losses and gradients, in float64.

Two oracles: Algorithm 1 written out (`layerwise`), and the model itself, untouched, on the whole sequence with a
four-dimensional mask that closes every elided key.

Legend: B rows, S expanded length, L layers, N scored targets, V vocabulary.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regate
from tests.regate import tiny

FAMILIES = ["Qwen2", "Mistral", "Llama", "Qwen3"]
LIMIT = 1e-10


@cache
def model_of(family, attention="sdpa"):
    return tiny.lm(family, attention=attention)


def run(model, data, decision, execution, **elide):
    """Logits, losses and all gradients of one step."""
    elision = regate.attach(model, execution=execution)
    model.zero_grad()
    scored = regate.ScoredLM(model)
    try:
        with elision(decision, **elide):
            logits_NV = scored(predictor_BS=decision.predictor_BS, **data.inputs)
        loss_N = regate.token_loss(logits_NV, decision.targets_N)
        loss_N.sum().backward()
    finally:
        elision.remove()
    return logits_NV.detach(), loss_N.detach(), gradients(model)


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def closed_keys(model, data, decision):
    """The same step by the untouched model: whole sequence, elided keys closed in every layer."""
    model.zero_grad()
    open_BS = decision.active_BS
    length = open_BS.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    # A query sees itself, so that no row of an elided query is empty; nobody reads that row.
    mask = (causal & open_BS[:, None, :]) | torch.eye(length, dtype=torch.bool)
    logits_BSV = model(input_ids=data.input_ids_BS, attention_mask=mask[:, None], use_cache=False).logits
    loss_N = regate.causal_token_loss(logits_BSV, decision.labels_BS)
    loss_N.sum().backward()
    return logits_BSV[decision.predictor_BS].detach(), loss_N.detach(), gradients(model)


def assert_same(one, other, limit=LIMIT):
    assert one[0].shape == other[0].shape
    assert one[2].keys() == other[2].keys()
    pairs = [(one[0], other[0]), (one[1], other[1]), *((one[2][name], other[2][name]) for name in one[2])]
    for left, right in pairs:
        if left.numel():
            assert (left - right).abs().max().item() <= limit


MASKS = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(
        st.just(seed),
        st.sampled_from(["none", "left", "right", "both"]),
        st.sampled_from(["one", "some", "most", "all", "empty row"]),
    )
)


def decided(seed, pad, kind):
    data = tiny.rows(pad=pad, seed=seed % 97)
    draw = torch.Generator().manual_seed(seed)
    chance_BS = torch.rand(data.layout.labels_BS.shape, generator=draw)
    target_BS = data.layout.target_BS
    if kind == "one":
        best_B = torch.where(target_BS, chance_BS, -1.0).argmax(dim=1)
        chosen_BS = torch.nn.functional.one_hot(best_B, target_BS.shape[1]).bool()
    else:
        chosen_BS = chance_BS < {"some": 0.4, "most": 0.8, "all": 2.0, "empty row": 0.5}[kind]
    if kind == "empty row":
        labels_BS = data.layout.labels_BS.clone()
        labels_BS[seed % 3] = -100
        data.layout = regate.layout_from_labels(labels_BS, data.mask_BS)
    return data, tiny.select(data, chosen_BS)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(case=MASKS)
def test_compact_equals_algorithm_1(family, case):
    data, decision = decided(*case)
    model = model_of(family)
    compact = run(model, data, decision, "compact")
    assert_same(compact, run(model, data, decision, "layerwise"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("align", ["predictor", "union"])
def test_compact_equals_the_untouched_model_with_closed_keys(family, align):
    data = tiny.rows(seed=5)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(3)) < 0.4, align=align)
    assert decision.elides
    model = model_of(family)
    assert_same(run(model, data, decision, "compact"), closed_keys(model, data, decision))


@pytest.mark.parametrize("execution", ["compact", "layerwise"])
def test_literal_alignment_reads_uncomputed_states(execution):
    """align: target: a selected token whose predictor is elided is predicted from its embedding, past the norm."""
    model, data = model_of("Qwen2"), tiny.rows(seed=6)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(4)) < 0.4, align="target")
    dead_BS = decision.predictor_BS & ~decision.active_BS
    assert bool(dead_BS.any())
    logits_NV, _, _ = run(model, data, decision, execution)
    expected_nV = model.lm_head(model.model.norm(model.model.embed_tokens(data.input_ids_BS[dead_BS])))
    rows_n = dead_BS[decision.predictor_BS]
    assert (logits_NV[rows_n] - expected_nV).abs().max().item() <= LIMIT


def test_literal_alignment_is_the_same_by_both_executions():
    model, data = model_of("Qwen2"), tiny.rows(seed=6)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(4)) < 0.4, align="target")
    assert_same(run(model, data, decision, "compact"), run(model, data, decision, "layerwise"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(family, reentrant):
    model, data = model_of(family), tiny.rows(seed=8)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(5)) < 0.5)
    plain = run(model, data, decision, "layerwise")
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    try:
        assert_same(run(model, data, decision, "compact"), plain)
    finally:
        model.activation_checkpointing_disable()
        if reentrant:
            model.disable_input_require_grads()


@pytest.mark.parametrize("family", FAMILIES)
def test_under_lora(family):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(tiny.lm(family), config).double()
    data = tiny.rows(seed=9)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(6)) < 0.5)
    compact = run(model, data, decision, "compact")
    assert_same(compact, run(model, data, decision, "layerwise"))
    assert compact[2]
    assert all("lora" in name for name in compact[2])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_single_precision_kernels(attention):
    """Within 2e-5, or, where float32 itself is that far from float64, within twice what Algorithm 1 is: how far the
    sums are off depends on the processor's kernels."""
    model, data = tiny.lm("Qwen2", double=False, attention=attention), tiny.rows(seed=10)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(7)) < 0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # float32 sums differ by the number of threads that share them
    try:
        compact, layerwise = (run(model, data, decision, execution) for execution in ("compact", "layerwise"))
        exact = run(tiny.lm("Qwen2", attention=attention), data, decision, "layerwise")
    finally:
        torch.set_num_threads(threads)
    assert_same((*compact[:2], {}), (*layerwise[:2], {}), limit=2e-5)
    assert compact[2].keys() == layerwise[2].keys() == exact[2].keys()
    for name, gradient in layerwise[2].items():
        rounding = float((gradient - exact[2][name]).abs().max())
        assert float((compact[2][name] - gradient).abs().max()) <= max(2e-5, 2 * rounding), name


def test_keep_everything_is_bit_identical_to_the_ungated_model():
    model, data = tiny.lm("Qwen2", double=False), tiny.rows(seed=11)
    gate = regate.Gate(regate.GateConfig(keep_ratio=1.0, warmup_steps=0, selection="first"), None)
    decision = gate.decide(data.layout, data.sample_ids_B, step=50)
    gated = run(model, data, decision, "compact")
    model.zero_grad()
    logits_BSV = model(**data.inputs, use_cache=False).logits
    loss_N = regate.causal_token_loss(logits_BSV, data.layout.labels_BS)
    assert torch.equal(gated[1], loss_N)
    hidden_BSD = model.model(**data.inputs, use_cache=False).last_hidden_state
    with regate.attach(model)(decision):
        again_BSD = model.model(**data.inputs, use_cache=False).last_hidden_state
    assert torch.equal(hidden_BSD, again_BSD)
    place = decision.predictor_BS.flatten().nonzero().squeeze(1)
    regate.token_loss(model.lm_head(hidden_BSD.flatten(0, 1)[place]), decision.targets_N).sum().backward()
    plain = gradients(model)
    assert all(torch.equal(gated[2][name], plain[name]) for name in plain)


def test_elided_positions_keep_their_embeddings_on_the_way_out():
    model, data = model_of("Qwen2"), tiny.rows(seed=12)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(8)) < 0.5)
    embeds_BSD = model.model.embed_tokens(data.input_ids_BS)
    for execution in ("compact", "layerwise"):
        elide = regate.attach(model, execution=execution)
        with elide(decision):
            out_BSD = model.model(inputs_embeds=embeds_BSD, attention_mask=data.mask_BS).last_hidden_state
        elide.remove()
        assert torch.equal(out_BSD[~decision.active_BS], embeds_BSD[~decision.active_BS])
        assert not torch.equal(out_BSD[decision.active_BS], embeds_BSD[decision.active_BS])


def test_input_embeddings_get_the_same_gradient():
    model, data = model_of("Llama"), tiny.rows(seed=13)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(9)) < 0.5)
    grads = []
    for execution in ("compact", "layerwise"):
        embeds_BSD = model.model.embed_tokens(data.input_ids_BS).detach().requires_grad_()
        elide = regate.attach(model, execution=execution)
        with elide(decision):
            hidden_BSD = model.model(inputs_embeds=embeds_BSD, attention_mask=data.mask_BS).last_hidden_state
        elide.remove()
        hidden_BSD[decision.predictor_BS].pow(2).sum().backward()
        grads.append(embeds_BSD.grad)
    assert (grads[0] - grads[1]).abs().max().item() <= LIMIT
    assert not bool(grads[0][~decision.active_BS].any())


def test_a_mask_for_each_layer():
    """Shrinking masks: a position leaves at some layer; every earlier layer computed it."""
    model, data = model_of("Qwen2"), tiny.rows(pad="none", seed=14)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(10)) < 0.4)
    full_BS = data.layout.valid_BS
    active_LBS = torch.stack([full_BS, decision.active_BS, decision.active_BS])
    logits_NV, _, _ = run(model, data, decision, "layerwise", active_LBS=active_LBS)
    same, _, _ = run(model, data, decision, "layerwise", active_LBS=decision.active_BS.expand(3, -1, -1))
    assert (same - run(model, data, decision, "layerwise")[0]).abs().max().item() == 0.0
    assert (logits_NV - same).abs().max().item() > 1e-3
    hidden_BSD = model.model.embed_tokens(data.input_ids_BS)
    cos_sin = model.model.rotary_emb(hidden_BSD, torch.arange(20)[None])
    for layer, active_BS in zip(model.model.layers, active_LBS, strict=True):  # keys closed layer by layer
        mask = torch.ones(20, 20, dtype=torch.bool).tril() & active_BS[:, None, :] | torch.eye(20, dtype=torch.bool)
        out_BSD = layer(hidden_BSD, attention_mask=mask[:, None], position_embeddings=cos_sin)
        hidden_BSD = torch.where(active_BS[:, :, None], out_BSD, hidden_BSD)
    expected = model.lm_head(model.model.norm(hidden_BSD[decision.predictor_BS]))
    assert (logits_NV - expected).abs().max().item() <= LIMIT


def test_rounding_the_length_up_changes_nothing():
    model, data = model_of("Qwen2"), tiny.rows(seed=15)
    decision = tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=_draw(11)) < 0.3)
    exact = run(model, data, decision, "compact")
    elide = regate.attach(model, multiple=8)
    with elide(decision):
        logits_NV = regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs)
    elide.remove()
    assert (logits_NV - exact[0]).abs().max().item() <= LIMIT


def _draw(seed):
    return torch.Generator().manual_seed(seed)
