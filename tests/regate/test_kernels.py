"""The other attention kernels, on the CPU.

flash-attn runs on GPUs only: here its two functions are written in plain torch, so that everything around them
(masks, unpadding, the guess whether a row is packed) is transformers' own. flex attention runs without compiling,
forward only, because torch has no backward of it on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from transformers import modeling_flash_attention_utils as flash

import regate
from tests.regate import tiny
from tests.regate.test_equivalence import run

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
