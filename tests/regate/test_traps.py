"""Traps of transformers 5, each of which gives wrong numbers in silence.

Legend: B rows, S expanded length, K active length.
"""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_flash_attention_utils import _is_packed_sequence

import regate
from regate import LayoutError, UnsupportedModelError
from regate.compaction import compact
from regate.inputs import compact_inputs
from tests.regate import tiny
from tests.regate.test_equivalence import LIMIT, assert_same, closed_keys, run


def half(data, seed=1):
    return tiny.select(
        data, torch.rand(data.layout.labels_BS.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 3])
def test_gaps_in_the_positions_are_no_packed_sequences(attention, batch):
    """Train mode, no cache, no padding: the mask may be None on the way in, and must not be below."""
    model, data = tiny.lm("Qwen2", attention=attention), tiny.rows(batch=batch, pad="none")
    decision = half(data)
    compaction = compact(decision.active_BS)
    ids_BK = compaction.gather(data.input_ids_BS)
    bare = model(input_ids=ids_BK, position_ids=compaction.index_BK, use_cache=False).logits
    elide = regate.attach(model)
    logits = []
    for mask_BS in (data.mask_BS, None):
        with elide(decision):
            logits.append(
                regate.ScoredLM(model)(
                    predictor_BS=decision.predictor_BS, input_ids=data.input_ids_BS, attention_mask=mask_BS
                )
            )
    elide.remove()
    oracle = run(model, data, decision, "layerwise")[0]
    limit = LIMIT if attention == "sdpa" else 1e-4  # eager's softmax is float32
    assert (logits[0] - oracle).abs().max().item() <= limit
    assert (logits[1] - oracle).abs().max().item() <= limit
    # The trap is there: the same call without a mask is far off.
    predictor_BK = compaction.gather(decision.predictor_BS) & compaction.valid_BK
    assert (bare[predictor_BK] - oracle).abs().max().item() > 1e-3


def test_flash_attention_at_batch_one_is_given_the_bounds():
    """Its own check of the positions would find packed sequences, and wait for the device in every layer."""
    model, data = tiny.lm("Qwen2"), tiny.rows(batch=1, pad="none")
    compaction = compact(half(data).active_BS)
    model.model.config._attn_implementation = "flash_attention_2"
    embeds = model.model.embed_tokens(data.input_ids_BS)
    inputs = compact_inputs(model.model, {"inputs_embeds": embeds}, embeds, compaction, full=compaction.full)
    assert bool(_is_packed_sequence(inputs["position_ids"], 1))  # the trap
    width = compaction.index_BK.shape[1]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, width]
    assert inputs["max_length_q"] == inputs["max_length_k"] == width


def test_labels_are_shifted_before_anything_is_left_out():
    """Shifting after the gather would train A on C in A _ C: the targets are those of the whole sequence."""
    data = tiny.rows(pad="none")
    decision = half(data)
    row_N, column_N = decision.predictor_BS.nonzero(as_tuple=True)
    assert torch.equal(decision.targets_N, data.input_ids_BS[row_N, column_N + 1])
    compaction = compact(decision.active_BS)
    labels_BK = compaction.gather(data.layout.labels_BS)
    predictor_BK = compaction.gather(decision.predictor_BS) & compaction.valid_BK
    shifted_late = torch.nn.functional.pad(labels_BK[:, 1:], (0, 1), value=-100)[predictor_BK]
    assert not torch.equal(shifted_late, decision.targets_N)


def test_positions_are_the_original_ones():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    decision = half(data)
    compaction = compact(decision.active_BS)
    renumbered = model(
        input_ids=compaction.gather(data.input_ids_BS), attention_mask=compaction.valid_BK.long()
    ).logits[compaction.gather(decision.predictor_BS) & compaction.valid_BK]
    assert (run(model, data, decision, "compact")[0] - renumbered).abs().max().item() > 1e-3


def test_the_decoder_really_computes_fewer_positions():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none", length=40)
    decision = half(data)
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    rows = []
    model.lm_head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
    run(model, data, decision, "compact")
    assert seen == [(3, int(decision.active_BS.sum(dim=1).max()))] * 3
    assert seen[0][1] < 40
    assert rows == [decision.counts.scored]


@pytest.mark.parametrize("family", ["Mistral", "Qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [4, 9, 64])
def test_sliding_windows_are_measured_on_positions(family, attention, window):
    config = {"sliding_window": window}
    if family == "Qwen2":
        config |= {"use_sliding_window": True, "max_window_layers": 1}
    model, data = tiny.lm(family, attention=attention, **config), tiny.rows(length=30)
    decision = half(data)
    limit = LIMIT if attention == "sdpa" else 1e-4
    assert_same(run(model, data, decision, "compact"), run(model, data, decision, "layerwise"), limit)


def test_sliding_window_of_a_kernel_without_dense_masks_is_refused():
    model, data = tiny.lm("Mistral", sliding_window=8), tiny.rows(pad="none")
    model.model.config._attn_implementation = "flash_attention_2"
    with regate.attach(model)(half(data)), pytest.raises(UnsupportedModelError, match="sliding window of 8"):
        model(**data.inputs)


def test_ready_made_masks_of_four_dimensions_are_gathered():
    model, data = tiny.lm("Qwen2"), tiny.rows(seed=4)
    decision = half(data)
    length = data.mask_BS.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril() & data.mask_BS.bool()[:, None, :]
    boolean = (causal | torch.eye(length, dtype=torch.bool))[:, None]
    additive = torch.zeros(boolean.shape, dtype=torch.float64).masked_fill(~boolean, torch.finfo(torch.float64).min)
    oracle = closed_keys(model, data, decision)[0]
    elide = regate.attach(model)
    for mask in (boolean, additive, {"full_attention": boolean}):
        with elide(decision):
            logits_NV = regate.ScoredLM(model)(
                predictor_BS=decision.predictor_BS, input_ids=data.input_ids_BS, attention_mask=mask
            )
        assert (logits_NV - oracle).abs().max().item() <= LIMIT


def test_layout_that_is_not_in_expanded_length():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    short = tiny.rows(length=12, pad="none")
    with regate.attach(model)(half(short)), pytest.raises(LayoutError, match="expanded length"):
        model(**data.inputs)


def test_a_model_that_bypasses_its_decoder_is_noticed():
    model, data = tiny.lm("Qwen2"), tiny.rows()
    elide = regate.attach(model)
    with pytest.raises(UnsupportedModelError, match="was not called inside"), elide(half(data)):
        model.model.forward(**data.inputs)
    model(**data.inputs)  # the model is usable after


def test_what_elision_cannot_reproduce_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3NextConfig, Qwen3NextForCausalLM

    with pytest.raises(UnsupportedModelError, match="GPT2Model has no rotary"):
        regate.attach(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))
    hybrid = Qwen3NextConfig(
        vocab_size=9, hidden_size=16, num_hidden_layers=4, intermediate_size=8, num_attention_heads=2,
        num_key_value_heads=1, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8,
        shared_expert_intermediate_size=8, linear_num_value_heads=2, linear_num_key_heads=2,
    )  # fmt: skip
    with torch.device("meta"), pytest.raises(UnsupportedModelError, match="linear_attention"):
        regate.attach(Qwen3NextForCausalLM(hybrid))
    with pytest.raises(UnsupportedModelError, match="get_decoder"):
        regate.attach(torch.nn.Linear(2, 2))


def test_generation_and_inner_outputs_are_refused_inside():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    elide = regate.attach(model)
    with elide(half(data)), pytest.raises(UnsupportedModelError, match="output_hidden_states"):
        model(**data.inputs, output_hidden_states=True)
    cache = model(**data.inputs, use_cache=True).past_key_values
    with elide(half(data)), pytest.raises(UnsupportedModelError, match="cache"):
        model(**data.inputs, past_key_values=cache)


def test_arguments_that_run_along_the_sequence_are_not_left_behind():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    with regate.attach(model)(half(data)), pytest.raises(UnsupportedModelError, match="mystery_BS"):
        model(**data.inputs, mystery_BS=torch.zeros(3, 20))


def test_contexts_do_not_nest_and_removal_is_final():
    model, data = tiny.lm("Qwen2"), tiny.rows()
    elide = regate.attach(model)
    with elide(half(data)):
        with pytest.raises(regate.ConfigError, match="already open"), elide(half(data)):
            pass
        model(**data.inputs)
    elide.remove()
    with pytest.raises(regate.ConfigError, match="removed"), elide(half(data)):
        pass
