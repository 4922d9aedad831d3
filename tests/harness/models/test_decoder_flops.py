"""The FLOP formula against torch's own counter and against the figures computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness.models.adapter import DecoderShape
from harness.models.decoder_flops import LayerSpan, forward_flops, layered_flops, step_flops

TINY = DecoderShape(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=160, vocabulary=300)
QWEN2_7B = DecoderShape(
    hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, intermediate=18944, vocabulary=152064
)


def _model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=160,
        vocab_size=300,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config)


def test_forward_equals_what_torch_counts() -> None:
    """The eager kernel computes the whole square of the attention, so the formula's triangle is put beside it."""
    length = 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _model()(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    ours = forward_flops(TINY, [length], scored=length)
    square = 4 * TINY.layers * TINY.heads * TINY.head_dim * length**2
    assert counter.get_total_flops() == ours.linear + square + ours.head
    assert ours.attention == pytest.approx(square * (length + 1) / (2 * length))


def test_backward_of_full_fine_tuning_is_twice_the_forward_for_linear_layers() -> None:
    length = 24
    model = _model()
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False).logits.sum().backward()
    forward = forward_flops(TINY, [length], scored=length)
    square = 4 * TINY.layers * TINY.heads * TINY.head_dim * length**2
    # Eager attention keeps its scores, so its backward is two forwards and not 2.5.
    assert counter.get_total_flops() == 3 * (forward.linear + forward.head + square)
    flash = 3 * (forward.linear + forward.head) + 3.5 * forward.attention
    assert step_flops(TINY, [length], scored=length) == pytest.approx(flash)


def test_the_last_layer_on_read_positions_equals_what_torch_counts() -> None:
    """Beside the whole layer: the queries, outputs and MLP of the positions that nobody reads are missing."""
    length, read = 24, 5
    model = _model()
    layer = model.model.layers[-1]
    hidden_BSD, rotary = torch.zeros(1, length - read, 64), (torch.ones(1, length - read, 16),) * 2
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(hidden_BSD, position_embeddings=rotary)
    square = 4 * TINY.heads * TINY.head_dim * (length - read) ** 2
    keys_values = 2 * 2 * TINY.hidden * TINY.head_dim * TINY.kv_heads * (length - read)
    whole = forward_flops(TINY, [length], scored=read)
    limited = forward_flops(TINY, [length], scored=read, last_layer=read)
    assert whole.linear - limited.linear == counter.get_total_flops() - square - keys_values
    assert step_flops(TINY, [length], read, last_layer=length) == step_flops(TINY, [length], read)
    again = step_flops(TINY, [length], read, recomputed=TINY.layers, last_layer=length)
    once = step_flops(TINY, [length], read, last_layer=length)
    assert again - once == (whole.linear + whole.attention) / 2  # one of two layers is computed again


def test_qwen2_7b_forward_of_one_video() -> None:
    """The decoder of VideoLLaMA2.1 takes about 20 TFLOP forward for 1502 positions, its head 1.6 or so on all."""
    forward = forward_flops(QWEN2_7B, [1502], scored=1502)
    assert forward.linear + forward.attention == pytest.approx(20.5e12, rel=0.03)
    assert forward.head == pytest.approx(1.6e12, rel=0.03)


def test_sparse_over_dense_at_the_sizes_of_the_paper() -> None:
    """1352 visual positions, 60 of prompt, 279 targets: gating alone leaves .911 of a sparse step's FLOPs."""
    dense = step_flops(QWEN2_7B, [1352 + 60 + 279], scored=279, recomputed=QWEN2_7B.layers)
    sparse = step_flops(QWEN2_7B, [1352 + 60 + 140], scored=140, recomputed=QWEN2_7B.layers)
    assert sparse / dense == pytest.approx(0.911, abs=0.005)


def test_lora_has_no_weight_gradients_for_frozen_layers() -> None:
    lora = DecoderShape(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=160, vocabulary=300, trainable_linear=0.0
    )
    full = step_flops(TINY, [10], scored=3)
    forward = forward_flops(TINY, [10], scored=3)
    assert full - step_flops(lora, [10], scored=3) == pytest.approx(forward.linear + forward.head)


def test_spans_of_equal_layers_are_the_whole_decoder() -> None:
    shape = DecoderShape(64, 4, 4, 2, 16, 160, 300, trainable_linear=0.0, adapter_parameters=800)
    pairs = 24 * 25 / 2
    spans = [LayerSpan(1, 24, 24, pairs), LayerSpan(2, 24, 24, pairs), LayerSpan(1, 24, 5, pairs)]
    assert layered_flops(shape, [LayerSpan(4, 24, 24, pairs)], 5, rows=1) == forward_flops(shape, [24], 5)
    limited = forward_flops(shape, [24], 5, last_layer=5)
    assert layered_flops(shape, spans, 5, rows=1).linear == limited.linear
    for last_layer, parts in ((None, [LayerSpan(4, 24, 24, pairs)]), (5, spans)):
        plain = DecoderShape(64, 4, 4, 2, 16, 160, 300)
        whole = step_flops(plain, [24], 5, recomputed=4, last_layer=last_layer)
        by_span = step_flops(plain, [24], 5, recomputed=4, last_layer=last_layer, spans=parts)
        assert by_span == pytest.approx(whole)


def test_a_deep_step_of_a_7b_model_behind_many_visual_tokens() -> None:
    """1352 visual, 80 other, 200 targets, half of them selected, from layer 14 on the predictors alone."""
    full, half = 1632 * 1633 / 2, 100 * (1632 - 100)
    spans = [LayerSpan(14, 1632, 1632, full), LayerSpan(14, 1632, 100, half)]
    deep = step_flops(QWEN2_7B, [1632], 100, spans=spans)
    assert deep / step_flops(QWEN2_7B, [1632], 200) == pytest.approx(0.537, abs=0.005)
