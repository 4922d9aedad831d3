"""The per-token loss and the head on scored rows.

Legend: B rows, S expanded length, N scored targets, V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regate
from regate import UnsupportedModelError, loss
from tests.regate import tiny


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 40), vocabulary=st.integers(1, 50), chunk=st.integers(1, 300), seed=st.integers(0, 9))
def test_equals_cross_entropy(rows, vocabulary, chunk, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocabulary, dtype=torch.float64, generator=draw, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,), generator=draw)
    weight = torch.rand(rows, dtype=torch.float64, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_CHUNK_ELEMENTS", chunk)
        ours = regate.token_loss(logits, targets)
        (grad,) = torch.autograd.grad((ours * weight).sum(), logits)
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (plain_grad,) = torch.autograd.grad((plain * weight).sum(), logits)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, plain_grad, rtol=0, atol=1e-12)


def test_numerical_gradient():
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: regate.token_loss(x, torch.tensor([0, 6, 3, 3, 1])), logits)


def test_half_precision_logits_are_summed_in_single():
    logits = (torch.randn(64, 999) * 8).bfloat16().requires_grad_()
    targets = torch.randint(0, 999, (64,))
    ours = regate.token_loss(logits, targets)
    assert ours.dtype == torch.float32
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)
    ours.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_no_second_array_of_the_logits_size_is_alive():
    """Counted by torch's profiler: beside the gradient itself, only chunks are allocated."""
    rows, vocabulary = 2048, 4000
    logits = torch.randn(rows, vocabulary).bfloat16().requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,))
    single = rows * vocabulary * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_CHUNK_ELEMENTS", 16 * vocabulary)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            regate.token_loss(logits, targets).sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < single  # a float32 copy of the logits would be an event of that size
    assert largest >= single // 2  # the bfloat16 gradient is one


def test_losses_of_full_logits():
    data = tiny.rows()
    logits = torch.randn(3, 20, tiny.VOCAB)
    ours = regate.causal_token_loss(logits, data.layout.labels_BS)
    shifted = torch.nn.functional.pad(data.layout.labels_BS[:, 1:], (0, 1), value=-100)
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), shifted.flatten(), reduction="none", ignore_index=-100
    )
    torch.testing.assert_close(ours, plain[shifted.flatten() != -100])


def test_a_micro_batch_without_targets_still_has_a_backward_pass():
    model, data = tiny.lm("Qwen2"), tiny.rows()
    logits = regate.ScoredLM(model)(predictor_BS=torch.zeros(3, 20, dtype=torch.bool), **data.inputs)
    regate.token_loss(logits, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert all(not bool(value.grad.any()) for value in model.parameters())


def test_head_equals_the_models_own_logits():
    model, data = tiny.lm("Qwen2"), tiny.rows()
    predictor_BS = torch.rand(3, 20) < 0.3
    ours = regate.ScoredLM(model)(predictor_BS=predictor_BS, **data.inputs)
    assert (ours - model(**data.inputs).logits[predictor_BS]).abs().max() < 1e-12


@pytest.mark.parametrize("family", ["Gemma2", "Gemma3Text"])
def test_soft_capping_is_applied(family):
    made = {"final_logit_softcapping": 0.05, "sliding_window": 64}
    if family == "Gemma2":
        made["attn_logit_softcapping"] = None
    from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

    torch.manual_seed(0)
    config = {"Gemma2": Gemma2Config, "Gemma3Text": Gemma3TextConfig}[family](**{**tiny.SIZES, **made})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    data = tiny.rows()
    predictor_BS = torch.rand(3, 20) < 0.3
    ours = regate.ScoredLM(model)(predictor_BS=predictor_BS, **data.inputs)
    torch.testing.assert_close(ours, model(**data.inputs).logits[predictor_BS])
    assert ours.abs().max() <= 0.05


@pytest.mark.parametrize(("family", "attribute"), [("Cohere", "logit_scale"), ("Granite", "logits_scaling")])
def test_other_scalings_are_refused_by_name(family, attribute):
    model = tiny.lm(family, double=False, **{attribute: 0.25})
    with pytest.raises(UnsupportedModelError, match=f"{attribute} = 0.25"):
        regate.ScoredLM(model)


def test_models_without_a_head_are_refused():
    with pytest.raises(UnsupportedModelError, match="output embeddings"):
        regate.ScoredLM(tiny.lm("Qwen2").model)


def test_prompt_tuning_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        tiny.lm("Qwen2", double=False), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(UnsupportedModelError, match="virtual tokens"):
        regate.ScoredLM(model)


def test_layout_of_another_length_is_refused():
    model, data = tiny.lm("Qwen2"), tiny.rows()
    with pytest.raises(regate.LayoutError, match="expanded length"):
        regate.ScoredLM(model)(predictor_BS=torch.zeros(3, 19, dtype=torch.bool), **data.inputs)


def test_liger_says_what_to_install():
    pytest.importorskip("torch")
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        with pytest.raises(regate.ConfigError, match=r"regate\[liger\]"):
            regate.token_loss(torch.zeros(1, 2), torch.tensor([0]), backend="liger")
