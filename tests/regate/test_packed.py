"""Packed rows equal padded rows and Algorithm 1: logits, losses and all gradients, in float64.

Legend: B rows, S expanded length, T active positions of all rows, N scored targets, V vocabulary.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings

import regate
from regate import ConfigError, Gate, GateConfig, LayoutError, UnsupportedModelError
from regate.attention import NAME, choose_kernel, missing
from regate.compaction import pack
from tests.regate import families, tiny
from tests.regate.test_equivalence import FAMILIES, LIMIT, MASKS, assert_same, closed_keys, decided, gradients

NAMES = sorted(families.FAMILIES)


@cache
def model_of(family):
    return tiny.lm(family)


@cache
def case_of(name):
    return families.FAMILIES[name]()


def run(model, inputs, decision, **attach):
    """Logits, losses and all gradients of one step. The backward pass is outside of `with elide(...)`."""
    elision = regate.attach(model, **attach)
    model.zero_grad()
    try:
        with elision(decision):
            logits_NV = regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **inputs)
        loss_N = regate.token_loss(logits_NV, decision.targets_N)
        loss_N.sum().backward()
    finally:
        elision.remove()
    return logits_NV.detach(), loss_N.detach(), gradients(model)


def packed(model, inputs, decision, **attach):
    return run(model, inputs, decision, rows="packed", **attach)


def half(data, seed=1, **select):
    draw = torch.Generator().manual_seed(seed)
    return tiny.select(data, torch.rand(data.layout.labels_BS.shape, generator=draw) < 0.5, **select)


def gated(case, step=1, **settings):
    gate = Gate(GateConfig(warmup_steps=0, cycle_steps=4, dense_steps=1, selection="random", **settings), None)
    return gate.decide(case.layout, torch.tensor([3, 4]), step=step)


def without_visuals(case):
    """The same rows as text alone: placeholders become words, and no pictures come along."""
    ids_BS = case.inputs["input_ids"].clone()
    ids_BS[ids_BS >= families.IMAGE] = 7
    mask_BS = case.inputs["attention_mask"]
    layout = regate.layout_from_labels(torch.where(case.layout.target_BS, ids_BS, -100), mask_BS)
    inputs = {"input_ids": ids_BS, "attention_mask": mask_BS}
    if "mm_token_type_ids" in case.inputs:
        inputs["mm_token_type_ids"] = torch.zeros_like(case.inputs["mm_token_type_ids"])
    return families.Case(case.model, inputs, layout, case.position_dims)


# Equality on text-only decoders.


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(case=MASKS)
def test_packed_equals_algorithm_1_and_padded(family, case):
    data, decision = decided(*case)
    result = packed(model_of(family), data.inputs, decision)
    assert_same(result, run(model_of(family), data.inputs, decision, execution="layerwise"))
    assert_same(result, run(model_of(family), data.inputs, decision))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("align", ["predictor", "union"])
def test_packed_equals_the_untouched_model_with_closed_keys(family, align):
    data = tiny.rows(seed=5)
    decision = half(data, align=align)
    assert decision.elides
    assert_same(
        packed(model_of(family), data.inputs, decision), closed_keys(model_of(family), data, decision)
    )


def test_literal_alignment_is_the_same_as_layer_by_layer():
    data = tiny.rows(seed=6)
    decision = half(data, align="target")
    assert bool((decision.predictor_BS & ~decision.active_BS).any())
    model = model_of("Qwen2")
    assert_same(packed(model, data.inputs, decision), run(model, data.inputs, decision, execution="layerwise"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("align", ["predictor", "union"])
def test_with_layers_recomputed_after_the_context_is_closed(family, reentrant, align):
    model, data = model_of(family), tiny.rows(seed=8)
    decision = half(data, align=align)
    plain = run(model, data.inputs, decision, execution="layerwise")
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    try:
        assert_same(packed(model, data.inputs, decision), plain)
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
    result = packed(model, data.inputs, half(data))
    assert_same(result, run(model, data.inputs, half(data), execution="layerwise"))
    assert result[2]
    assert all("lora" in name for name in result[2])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_gaps_in_the_positions_are_no_borders(batch, masked):
    """transformers would cut the attention at every elided position, were it left to guess the borders."""
    model, data = model_of("Qwen2"), tiny.rows(batch=batch, pad="none")
    inputs = data.inputs if masked else {"input_ids": data.input_ids_BS}
    decision = half(data)
    assert_same(
        packed(model, inputs, decision), run(model, data.inputs, decision, execution="layerwise")
    )


def test_rows_whose_first_position_is_elided_stay_apart():
    """Borders guessed from position 0 would merge two samples."""
    model, data = model_of("Qwen2"), tiny.rows(pad="none")
    active_BS = torch.rand(3, 20, generator=torch.Generator().manual_seed(2)) < 0.6
    active_BS[:, 0] = False
    active_BS[1, :5] = False
    out = []
    for attach in ({"rows": "packed"}, {"execution": "layerwise"}):
        elide = regate.attach(model, **attach)
        with elide.only(active_BS):
            out.append(model.model(**data.inputs).last_hidden_state)
        elide.remove()
    assert (out[0] - out[1])[active_BS].abs().max().item() <= LIMIT
    assert torch.equal(out[0][~active_BS], model.model.embed_tokens(data.input_ids_BS)[~active_BS])


def test_no_sample_sees_another():
    """The gradient of one row's output reaches that row's embeddings only."""
    model, data = model_of("Llama"), tiny.rows(pad="none")
    embeds_BSD = model.model.embed_tokens(data.input_ids_BS).detach().requires_grad_()
    elide = regate.attach(model, rows="packed")
    with elide(half(data)):
        hidden_BSD = model.model(inputs_embeds=embeds_BSD, attention_mask=data.mask_BS).last_hidden_state
    elide.remove()
    hidden_BSD[1].pow(2).sum().backward()
    assert not bool(embeds_BSD.grad[[0, 2]].any())
    assert bool(embeds_BSD.grad[1].any())


@pytest.mark.parametrize("family", ["Mistral", "Qwen2"])
@pytest.mark.parametrize("window", [4, 9, 64])
def test_sliding_windows_are_measured_on_positions(family, window):
    config = {"sliding_window": window}
    if family == "Qwen2":
        config |= {"use_sliding_window": True, "max_window_layers": 1}
    model, data = tiny.lm(family, **config), tiny.rows(length=30)
    decision = half(data)
    assert_same(
        packed(model, data.inputs, decision), run(model, data.inputs, decision, execution="layerwise")
    )


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_rounding_up_changes_nothing(multiple):
    model, data = model_of("Qwen2"), tiny.rows(seed=15)
    decision = half(data)
    seen = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    result = packed(model, data.inputs, decision, multiple=multiple)
    handle.remove()
    assert seen[0] % multiple == 0
    assert_same(result, run(model, data.inputs, decision, execution="layerwise"))


def test_a_batch_without_any_active_position():
    model, data = model_of("Qwen2"), tiny.rows(pad="none")
    elide = regate.attach(model, rows="packed")
    with elide.only(torch.zeros(3, 20, dtype=torch.bool)):
        hidden_BSD = model.model(**data.inputs).last_hidden_state
    elide.remove()
    assert torch.equal(hidden_BSD, model.model.embed_tokens(data.input_ids_BS))


# Equality on multimodal families.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("align", ["predictor", "union", "target"])
def test_families_with_pictures_and_frames(name, align):
    case = case_of(name)
    decision = gated(case, align=align)
    assert decision.elides
    result = packed(case.model, case.inputs, decision)
    assert_same(result, run(case.model, case.inputs, decision, execution="layerwise"))
    assert_same(result, run(case.model, case.inputs, decision))
    assert any("vision" in key or "visual" in key for key in result[2])  # the tower gets its gradient too


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_step_is_packed_too_and_equals_the_untouched_model(name):
    """The baseline runs by the same kernel on the same kind of rows as the gate's steps."""
    case, seen = case_of(name), []
    decision = gated(case, step=0)
    assert not decision.elides
    first = case.model.get_decoder().layers[0]
    handle = first.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    result = packed(case.model, case.inputs, decision)
    dense_gate = regate.DenseGate().decide(case.layout, torch.tensor([3, 4]), step=0)
    assert_same(result, packed(case.model, case.inputs, dense_gate), limit=0.0)
    handle.remove()
    assert seen == [(1, decision.counts.valid)] * 2
    case.model.zero_grad()
    logits_BSV = case.model(**case.inputs, use_cache=False).logits
    loss_N = regate.causal_token_loss(logits_BSV, decision.labels_BS)
    loss_N.sum().backward()
    plain = logits_BSV[decision.predictor_BS].detach(), loss_N.detach(), gradients(case.model)
    assert_same(result, plain)


@pytest.mark.parametrize("name", NAMES)
def test_families_on_text_alone(name):
    case = without_visuals(case_of(name))
    decision = gated(case)
    assert decision.counts.visual == 0
    assert decision.elides
    assert_same(
        packed(case.model, case.inputs, decision), run(case.model, case.inputs, decision, execution="layerwise")
    )


@pytest.mark.parametrize("name", NAMES)
def test_families_with_a_row_without_targets(name):
    case = case_of(name)
    labels_BS = case.layout.labels_BS.clone()
    labels_BS[0] = -100
    layout = regate.layout_from_labels(
        labels_BS, case.inputs["attention_mask"], visual_BS=case.layout.kind_BS == regate.Kind.VISUAL
    )
    decision = gated(families.Case(case.model, case.inputs, layout, case.position_dims))
    assert int(decision.targets_BS[0].sum()) == 0
    assert int(decision.targets_BS[1].sum()) > 0
    assert_same(
        packed(case.model, case.inputs, decision), run(case.model, case.inputs, decision, execution="layerwise")
    )


@pytest.mark.parametrize("name", NAMES)
def test_families_under_lora_with_recomputation(name):
    from peft import LoraConfig, get_peft_model

    case = families.FAMILIES[name]()
    layers = r".*(language_model|text_model).*\.(q_proj|v_proj|down_proj)"
    config = LoraConfig(r=4, target_modules=layers, init_lora_weights=False)
    torch.manual_seed(1)
    model = get_peft_model(case.model, config).double()
    decision = gated(case)
    plain = run(model, case.inputs, decision, execution="layerwise")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    result = packed(model, case.inputs, decision)
    assert_same(result, plain)
    assert result[2]
    assert all("lora" in key for key in result[2])


@pytest.mark.parametrize("axes", [3, 4])
def test_position_ids_of_three_and_four_axes(axes):
    model = case_of("Qwen3-VL").model.model.language_model
    data = tiny.rows(batch=2, pad="none")
    decision = half(data)
    positions = torch.stack([torch.arange(20).expand(2, 20) * (axis + 1) for axis in range(axes)])
    positions[0] = torch.arange(20)
    embeds = torch.randn(2, 20, 32, dtype=torch.float64)
    out = []
    for attach in ({"rows": "packed"}, {"execution": "layerwise"}):
        elide = regate.attach(model, **attach)
        with elide(decision):
            out.append(model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state)
        elide.remove()
    assert (out[0] - out[1])[decision.active_BS].abs().max().item() <= LIMIT


# What the packed rows are, and what is left of them.


def test_the_decoder_computes_no_padding_and_no_elided_position():
    model, data, seen = tiny.lm("Qwen2"), tiny.rows(length=40), []
    decision = half(data)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    packed(model, data.inputs, decision)
    assert seen == [(1, decision.counts.active)] * 3
    assert decision.counts.active < decision.counts.valid < decision.counts.positions


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "attach",
    [
        {}, {"multiple": 8}, {"execution": "loss_only"}, {"execution": "layerwise"}, {"rows": "packed"},
        {"rows": "packed", "multiple": 8}, {"rows": "packed", "execution": "loss_only"},
    ],
    ids=str,
)  # fmt: skip
def test_executed_positions_are_known_beforehand(attach, step):
    case, seen = case_of("InternVL"), []
    decision = gated(case, step=step, execution=attach.get("execution", "compact"))
    norm = case.model.get_decoder().layers[0].input_layernorm
    handle = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2].numel()))
    elide = regate.attach(case.model, **attach)
    with elide(decision), torch.no_grad():
        regate.ScoredLM(case.model)(predictor_BS=decision.predictor_BS, **case.inputs)
    elide.remove()
    handle.remove()
    assert elide.executed(decision) == sum(seen)


def test_packing_is_row_after_row():
    active_BS = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]).bool()
    packing = pack(active_BS)
    assert packing.flat_T.tolist() == [1, 2, 8, 10, 11]
    assert packing.lengths == (2, 3)
    assert packing.cu_seqlens.tolist() == [0, 2, 5]
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.column_1T.tolist() == [[1, 2, 0, 2, 3]]
    values_BS = torch.arange(12).view(3, 4)
    assert packing.gather(values_BS).tolist() == [[1, 2, 8, 10, 11]]
    assert packing.gather(values_BS.expand(3, 3, 4), dim=2).shape == (3, 1, 5)
    assert packing.gather(torch.arange(4)[None]).tolist() == [[1, 2, 0, 2, 3]]
    filled = pack(active_BS, multiple=4)
    assert (filled.lengths, filled.filling) == ((2, 3, 3), 3)
    assert filled.gather(torch.ones(3, 4, dtype=torch.bool)).tolist() == [[True] * 5 + [False] * 3]
    into_BSD = torch.zeros(3, 4, 1)
    assert filled.scatter(torch.ones(1, 8, 1), into_BSD).squeeze(2).bool().equal(active_BS)


def test_the_model_is_the_same_outside_and_after():
    """Evaluation, generation and saving between two steps see an ordinary sdpa model."""
    model, data = tiny.lm("Qwen2", double=False), tiny.rows(seed=3)
    plain = model(**data.inputs).logits
    words = model.generate(data.input_ids_BS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    elide = regate.attach(model, rows="packed")
    with elide(half(data)):
        model(**data.inputs)
    assert elide.kernel == "sdpa"
    assert torch.equal(model(**data.inputs).logits, plain)
    assert torch.equal(
        model.generate(data.input_ids_BS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0), words
    )
    assert NAME not in str(model.config.to_dict())
    elide.remove()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(**data.inputs).logits, plain)


def test_sixty_steps_give_the_losses_of_padded_rows(tmp_path):
    runs = [_sixty_steps(tmp_path / rows, rows) for rows in ("padded", "packed")]
    assert len(runs[0]) == 60
    assert max(abs(one - other) for one, other in zip(*runs, strict=True)) < 1e-5


def _sixty_steps(folder, rows):
    """Losses of a run in single precision, dense and sparse steps, with a difficulty that selects."""
    batches = [tiny.rows(seed=seed) for seed in range(6)]
    config = GateConfig(warmup_steps=4, cycle_steps=6, dense_steps=2)
    reference = tiny.reference_store(folder / "reference", batches)
    difficulty = regate.DifficultyStore.for_gate(folder / "difficulty", config, reference=reference)
    gate = Gate(config, reference, difficulty)
    model = tiny.lm("Qwen2", double=False, initializer_range=0.05)
    student = regate.ScoredLM(model)
    elide = regate.attach(model, rows=rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(60):
        data = batches[step % 6]
        if step % 6 == 0:
            gate.start_epoch(step // 6)
        decision = gate.decide(data.layout, data.sample_ids_B, step=step)
        with elide(decision):
            logits_NV = student(predictor_BS=decision.predictor_BS, **data.inputs)
        loss_N = regate.token_loss(logits_NV, decision.targets_N)
        loss_N.mean().backward()
        gate.observe(decision, loss_N)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_N.mean().item())
    return losses


# The last layer on the positions that are read.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["one", "some", "all", "empty row"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_last_layer_on_read_positions_changes_nothing(family, kind, recompute):
    model = model_of(family)
    data, decision = decided(11, "both", kind)
    plain = run(model, data.inputs, decision, execution="layerwise")
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        assert_same(packed(model, data.inputs, decision, outputs="predictors"), plain)
    finally:
        if recompute:
            assert all(layer.gradient_checkpointing for layer in model.model.layers)
            model.activation_checkpointing_disable()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("align", ["predictor", "target"])
def test_the_last_layer_of_families_on_read_positions(name, align):
    case = case_of(name)
    for step in (0, 1):
        decision = gated(case, step=step, align=align)
        assert_same(
            packed(case.model, case.inputs, decision, outputs="predictors"),
            packed(case.model, case.inputs, decision),
        )


def test_what_the_last_layer_computes_and_leaves():
    model, data, seen = tiny.lm("Qwen2"), tiny.rows(seed=4), {}
    decision = half(data, align="union")
    first, last = model.model.layers[0], model.model.layers[-1]

    def count(name, module):
        def note(module, args):
            seen[name] = args[0].shape[1]

        module.register_forward_pre_hook(note)

    for name, module in (
        ("first", first.mlp), ("mlp", last.mlp.up_proj), ("keys", last.self_attn.k_proj),
    ):  # fmt: skip
        count(name, module)
    elide = regate.attach(model, rows="packed", outputs="predictors")
    for name in ("q_proj", "o_proj"):  # after the hooks that limit them
        count(name, getattr(last.self_attn, name))
    with elide(decision):
        hidden_BSD = model.model(**data.inputs).last_hidden_state
    assert decision.counts.scored < decision.counts.active
    active, scored = decision.counts.active, decision.counts.scored
    assert seen == {"first": active, "keys": active, "mlp": scored, "q_proj": scored, "o_proj": scored}
    embeds_BSD = model.model.embed_tokens(data.input_ids_BS)
    unread_BS = ~decision.predictor_BS
    assert torch.equal(hidden_BSD[unread_BS], embeds_BSD[unread_BS])
    plain = model(**data.inputs).logits  # outside, the layer is whole
    elide.remove()
    assert torch.equal(plain, model(**data.inputs).logits)


def test_a_last_layer_that_cannot_be_limited_is_refused():
    with pytest.raises(ConfigError, match="packed"):
        regate.attach(model_of("Qwen2"), outputs="predictors")
    model = tiny.lm("Qwen3Moe", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, double=False)
    with pytest.raises(UnsupportedModelError, match="no plain `mlp`"):
        regate.attach(model, rows="packed", outputs="predictors")


# What is refused.


def test_attention_that_cannot_be_packed_is_refused():
    with pytest.raises(UnsupportedModelError, match='"eager" does not compute packed rows'):
        regate.attach(tiny.lm("Qwen2", attention="eager"), rows="packed")
    with pytest.raises(ConfigError, match="layerwise"):
        regate.attach(model_of("Qwen2"), rows="packed", execution="layerwise")
    model = tiny.lm("Qwen2")
    model.model.config.is_causal = False
    with pytest.raises(UnsupportedModelError, match="not causal"):
        regate.attach(model, rows="packed")
    model = tiny.lm("Qwen2")
    model.model._supports_attention_backend = False
    with pytest.raises(UnsupportedModelError, match="attention interface"):
        regate.attach(model, rows="packed")


def test_a_kernel_that_is_not_here_is_refused_with_what_it_needs():
    for kernel, words in {"flash_attention_2": "flash-attn", "flash_attention_3": "Hopper", "varlen": "CUDA"}.items():
        if missing(kernel) is None:
            continue
        with pytest.raises(ConfigError, match=words):
            regate.attach(model_of("Qwen2"), rows="packed", kernel=kernel)
    with pytest.raises(ConfigError, match="sdpa, varlen"):
        regate.attach(model_of("Qwen2"), rows="packed", kernel="xformers")


def test_masks_of_the_models_own_are_refused():
    """A mask of four dimensions may be more than causal, as that of families whose pictures see themselves whole."""
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    mask = torch.ones(20, 20, dtype=torch.bool).tril()[None, None]
    for own in (mask, {"full_attention": mask}):
        elide = regate.attach(model, rows="packed")
        with elide(half(data)), pytest.raises(UnsupportedModelError, match="of its own making"):
            model(input_ids=data.input_ids_BS, attention_mask=own)
        elide.remove()


def test_a_mask_that_closes_what_the_layout_calls_valid():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    mask_BS = data.mask_BS.clone()
    mask_BS[1, 2] = 0
    elide = regate.attach(model, rows="packed")
    with elide(half(data)), pytest.raises(LayoutError, match="row 1: the attention mask closes"):
        model(input_ids=data.input_ids_BS, attention_mask=mask_BS)


def test_layers_that_lose_the_bounds_are_noticed():
    model, data = tiny.lm("Qwen2"), tiny.rows(pad="none")
    elide = regate.attach(model, rows="packed")

    def lose(module, args, kwargs):
        return args, {name: value for name, value in kwargs.items() if name != "packed_rows"}

    model.model.layers[1].register_forward_pre_hook(lose, with_kwargs=True)
    with elide(half(data)), pytest.raises(UnsupportedModelError, match="2 of 3 layers"):
        model(**data.inputs)


def test_rows_are_packed_by_one_attach_at_a_time():
    model = tiny.lm("Qwen2")
    first = regate.attach(model, rows="packed")
    with pytest.raises(ConfigError, match="another attach"):
        regate.attach(model, rows="packed")
    first.remove()
    regate.attach(model, rows="packed")


def test_which_kernel_is_chosen():
    cpu, half_precision = torch.device("cpu"), torch.bfloat16
    assert choose_kernel("sdpa", cpu, torch.float32) == "sdpa"
    assert choose_kernel("sdpa", cpu, half_precision) == "sdpa"
    assert choose_kernel("flash_attention_2", cpu, half_precision) == "flash_attention_2"
    assert choose_kernel("flash_attention_4", cpu, half_precision) == "flash_attention_4"
    assert choose_kernel("flex_attention", cpu, half_precision, windowed=True) == "flex_attention"
    with pytest.raises(UnsupportedModelError, match="sliding window"):
        choose_kernel("flash_attention_2", cpu, half_precision, windowed=True)


def test_kernels_of_a_gpu_are_taken_in_order(monkeypatch):
    gpu = torch.device("cuda", 0)
    here = {"varlen"}
    monkeypatch.setattr("regate.attention.missing", lambda kernel: None if kernel in here else "something")
    assert choose_kernel("sdpa", gpu, torch.bfloat16) == "varlen"
    assert choose_kernel("sdpa", gpu, torch.float32) == "sdpa"
    assert choose_kernel("sdpa", gpu, torch.bfloat16, windowed=True) == "sdpa"
    assert choose_kernel("sdpa", gpu, torch.bfloat16, dropout=0.1) == "sdpa"
    here.add("flash_attention_2")
    assert choose_kernel("sdpa", gpu, torch.bfloat16) == "flash_attention_2"
    here.add("flash_attention_3")
    assert choose_kernel("sdpa", gpu, torch.bfloat16) == "flash_attention_3"
