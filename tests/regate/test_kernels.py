"""The other attention kernels, on the CPU.

flash-attn runs on GPUs only: here its two functions are written in plain torch, so that everything around them
(masks, unpadding, the guess whether a row is packed) is transformers' own. flex attention runs without compiling,
forward only, because torch has no backward of it on the CPU.
"""

from __future__ import annotations

import sys
import types

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

import regate
from regate import UnsupportedModelError
from tests.regate import tiny
from tests.regate.test_equivalence import assert_same, gradients, run

CALLS = []


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    """Rows packed along the first dimension: attention within each pair of bounds."""
    CALLS.append(cu_seqlens_q.tolist())
    out = []
    for start, stop in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        one = (part[start:stop].transpose(0, 1)[None] for part in (q, k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            *one, is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        out.append(mixed[0].transpose(0, 1))
    return torch.cat(out)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    CALLS.append(None)
    rows = [part.transpose(1, 2) for part in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(
        *rows, is_causal=causal, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)


@pytest.fixture
def flash_on_cpu(monkeypatch):
    CALLS.clear()
    kernels = (flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *args, **kwargs: kernels)
    monkeypatch.setattr(flash, "_loaded_implementation", None)
    for name in ("_flash_fn", "_flash_varlen_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(flash, name, None)


def half(data):
    return tiny.select(
        data, torch.rand(data.layout.labels_BS.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    )


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Qwen3"])
@pytest.mark.parametrize(("batch", "pad"), [(1, "none"), (3, "none"), (3, "right"), (3, "both")])
def test_flash_attention_2(family, batch, pad):
    model, data = tiny.lm(family), tiny.rows(batch=batch, pad=pad)
    decision = half(data)
    oracle = run(model, data, decision, "layerwise")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.MonkeyPatch.context() as patch:
        if batch == 1:  # one row is given its bounds: nothing is guessed from gaps in its positions, layer by layer
            patch.setattr(flash, "_is_packed_sequence", None)
        compact_logits, _, grads = run(model, data, decision, "compact")
    lengths = decision.active_BS.sum(dim=1)
    if batch > 1:  # padding of the compact rows is not computed either
        assert CALLS[-1] == [0, *lengths.cumsum(0).tolist()]
    else:
        assert CALLS[-1] == [0, int(lengths)]
    assert (compact_logits - oracle[0]).abs().max().item() < 1e-10
    assert all((grads[name] - oracle[2][name]).abs().max().item() < 1e-10 for name in grads)


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("family", ["Qwen2", "Llama", "Qwen3"])
@pytest.mark.parametrize("batch", [1, 3])
def test_flash_attention_2_on_packed_rows(family, batch):
    """The bounds come with the call: nothing is guessed from positions, and no mask is looked at."""
    model, data = tiny.lm(family), tiny.rows(batch=batch)
    decision = half(data)
    oracle = run(model, data, decision, "layerwise")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.MonkeyPatch.context() as patch:
        for guess in ("_is_packed_sequence", "_upad_input"):
            patch.setattr(flash, guess, None)
        patch.setattr("transformers.masking_utils.find_packed_sequence_indices", None)
        result, kernel = packed(model, data, decision)
    assert kernel == "flash_attention_2"
    bounds = [0, *decision.active_BS.sum(dim=1).cumsum(0).tolist()]
    assert [call == bounds for call in CALLS] == [True] * 3
    assert_same(result, oracle)


def test_packed_rows_need_flash_attention_to_measure_no_window():
    model, data = tiny.lm("Mistral", sliding_window=8), tiny.rows(pad="none")
    model.model.config._attn_implementation = "flash_attention_2"
    elide = regate.attach(model, rows="packed")
    with elide(half(data)), pytest.raises(UnsupportedModelError, match="sliding window"):
        model(**data.inputs)


@pytest.mark.parametrize("signature", ["is_causal", "window_size"])
@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_torch_varlen_on_packed_rows(family, signature, monkeypatch):
    """torch's own kernel, which runs on GPUs only, written in plain torch, in its older and its newer signature."""
    from torch.nn.attention import varlen

    def attend(query, key, value, bounds, other, longest, *, scale, enable_gqa):
        assert bounds is other
        assert enable_gqa == (query.shape[1] != key.shape[1])
        assert longest == int(bounds.diff().max())
        return flash_attn_varlen_func(query, key, value, bounds, other, longest, longest, 0.0, scale, True)

    def older(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, scale=None, enable_gqa=False):
        assert is_causal
        return attend(q, k, v, cu_q, cu_k, max_q, scale=scale, enable_gqa=enable_gqa)

    def newer(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert window_size == (-1, 0)
        return attend(q, k, v, cu_q, cu_k, max_q, scale=scale, enable_gqa=enable_gqa)

    monkeypatch.setattr(varlen, "varlen_attn", older if signature == "is_causal" else newer)
    monkeypatch.setattr("regate.attention.missing", lambda kernel: None)
    model, data = tiny.lm(family), tiny.rows()
    decision = half(data)
    result, kernel = packed(model, data, decision, kernel="varlen")
    assert kernel == "varlen"
    assert_same(result, run(model, data, decision, "layerwise"))


@pytest.mark.parametrize("version", [2, 3])
def test_flash_attn_as_the_kernel_of_a_model_loaded_with_sdpa(version, monkeypatch):
    def function(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, **more):
        assert set(more) == ({"dropout_p"} if version == 2 else set())
        out = flash_attn_varlen_func(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, softmax_scale, causal
        )
        return out if version == 2 else (out, None)

    name = {2: "flash_attn", 3: "flash_attn_interface"}[version]
    package = types.ModuleType(name)
    package.flash_attn_varlen_func = function
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr("regate.attention.missing", lambda kernel: None)
    model, data = tiny.lm("Qwen2"), tiny.rows()
    decision = half(data)
    result, _ = packed(model, data, decision, kernel=f"flash_attention_{version}")
    assert_same(result, run(model, data, decision, "layerwise"))


@pytest.mark.parametrize("config", [{}, {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}])
def test_flex_attention_on_packed_rows(config):
    sizes = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1, **config}
    data = tiny.rows()
    decision = half(data)
    logits = []
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for attention in ("flex_attention", "sdpa"):
            model = tiny.lm("Qwen2", double=False, attention=attention, **sizes)
            elide = regate.attach(model, rows="packed")
            with elide(decision):
                logits.append(regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs))
            assert elide.kernel == attention
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)


def packed(model, data, decision, **attach):
    """Logits, losses and gradients on packed rows, and the kernel that was chosen."""
    elide = regate.attach(model, rows="packed", **attach)
    model.zero_grad()
    with elide(decision):
        logits_NV = regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs)
    loss_N = regate.token_loss(logits_NV, decision.targets_N)
    loss_N.sum().backward()
    elide.remove()
    return (logits_NV.detach(), loss_N.detach(), gradients(model)), elide.kernel


def test_flex_attention():
    sizes = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    data = tiny.rows()
    decision = half(data)
    logits = []
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        for attention in ("flex_attention", "sdpa"):
            model = tiny.lm("Qwen2", double=False, attention=attention, **sizes)
            elide = regate.attach(model)
            with elide(decision):
                logits.append(regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
