"""Visual elision in sparse steps: which cells stay, and that the decoder on them equals slow definitions in float64.

Legend: B rows, S expanded length, D hidden size, N scored targets, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regate
from regate import (
    ConfigError,
    Gate,
    GateConfig,
    Grid,
    KeepBelow,
    LayoutError,
    RampConfig,
    UnsupportedModelError,
    VisualConfig,
)
from regate.candidates import candidates_of
from regate.types import Kind, Layout
from regate.visual import averaged, keep_visual
from regate.wrapping import decoder_of
from tests.regate import families, tiny
from tests.regate.test_equivalence import assert_same
from tests.regate.test_packed import case_of, packed, run

NAMES = sorted(families.FAMILIES)
HOWS = ["pool", "pattern", "random", "frames"]
BY_CONTENT = ["diverse", "merge", "temporal"]
CUBE = Grid(2, 2, 2)


def layout_of(*rows: tuple[Grid, ...]) -> Layout:
    """Rows of a word, the cells of the grids, two words and two targets."""
    cells = [sum(grid.cells for grid in grids) for grids in rows]
    length = max(cells) + 5
    labels_BS = torch.full((len(rows), length), -100)
    visual_BS, mask_BS = torch.zeros(2, len(rows), length, dtype=torch.bool)
    for row, count in enumerate(cells):
        visual_BS[row, 1 : 1 + count] = True
        labels_BS[row, count + 3 : count + 5] = 7
        mask_BS[row, : count + 5] = True
    return regate.layout_from_labels(labels_BS, mask_BS.long(), visual_BS=visual_BS, grids=rows)


def with_grids(case: families.Case) -> Layout:
    """Two frames of 2 x 2 cells in each row, and what is left as cells that always stay."""
    counts = [int((row == Kind.VISUAL).sum()) for row in case.layout.kind_BS]
    grids = tuple((CUBE, *[Grid(1, 1, 1, elidable=False)] * (count - CUBE.cells)) for count in counts)
    return replace(case.layout, grids=grids)


def decide(layout: Layout, step: int = 1, **config):
    schedule = {"keep_ratio": 1.0, "warmup_steps": 0, "cycle_steps": 4, "dense_steps": 1}
    config = {**schedule, "selection": "random", **config}
    return Gate(GateConfig(**config), None).decide(layout, torch.arange(len(layout.kind_BS)) + 3, step=step)


GRIDS = st.builds(Grid, *[st.integers(1, 5)] * 3)


@given(
    grids=st.lists(GRIDS, min_size=1, max_size=3),
    how=st.sampled_from(HOWS),
    keep=st.sampled_from([1.0, 0.5, 0.25, 0.125]),
    step=st.integers(0, 10_000),
    seed=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_cells_that_stay_on_any_grid(grids, how, keep, step, seed):
    """Of every clip at least one, by the definition of each rule; the same ones each time it is asked."""
    layout, config = layout_of(tuple(grids), (grids[0],)), VisualConfig(keep, how)
    kept = keep_visual(layout, config, step=step, seed=seed)
    again = keep_visual(layout, config, step=step, seed=seed)
    assert torch.equal(kept.kept_BS, again.kept_BS)
    assert not (kept.kept_BS & (layout.kind_BS != Kind.VISUAL)).any()
    assert kept.kept_v.tolist() == kept.kept_BS[layout.kind_BS == Kind.VISUAL].nonzero().squeeze(1).tolist()
    begin = 1
    for grid in grids:
        kept_n = kept.kept_BS[0, begin : begin + grid.cells].view(grid.shape)
        begin += grid.cells
        assert kept_n.any()
        assert keep < 1.0 or kept_n.all()
        if how == "pool":
            block = {1.0: (1, 1, 1), 0.5: (2, 1, 1), 0.25: (1, 2, 2), 0.125: (2, 2, 2)}[keep]
            first_n = torch.zeros_like(kept_n)
            first_n[:: block[0], :: block[1], :: block[2]] = True
            assert torch.equal(kept_n, first_n)
        elif how == "random":
            assert int(kept_n.sum()) == ceil(keep * grid.cells)
        elif how == "frames":
            by_frame = kept_n.flatten(1)
            assert torch.equal(by_frame.any(1), by_frame.all(1))
            assert int(by_frame.all(1).sum()) == ceil(keep * grid.frames)
        elif keep < 1.0:
            size = round(1 / keep)
            times, rows, columns = {2: (1, 1, 2), 4: (1, 2, 2), 8: (2, 2, 2)}[size]
            for t in range(0, grid.frames - times + 1, times):
                for r in range(0, grid.rows - rows + 1, rows):
                    for c in range(0, grid.columns - columns + 1, columns):
                        assert int(kept_n[t : t + times, r : r + rows, c : c + columns].sum()) == 1


def test_a_pattern_shows_every_cell_in_turn():
    seen = torch.zeros(13, dtype=torch.int64)
    for step in range(8):
        seen += keep_visual(layout_of((CUBE,)), VisualConfig(0.125, "pattern"), step=step, seed=0).kept_BS[0]
    assert seen[1:9].tolist() == [1] * 8


def test_means_of_blocks_by_hand():
    """An odd grid: blocks at its edges have what is left. Sums in float32 where the embeddings are bfloat16."""
    layout = layout_of((Grid(1, 3, 3),), ())
    embeds_BSD = torch.randn(2, 14, 5, dtype=torch.float64, requires_grad=True)
    kept = keep_visual(layout, VisualConfig(0.25, "pool"), step=1, seed=0)
    pooled_BSD = averaged(embeds_BSD, kept.blocks)
    expected_BSD = embeds_BSD.detach().clone()
    for rows in ((0, 1), (2,)):
        for columns in ((0, 1), (2,)):
            cells = [1 + 3 * row + column for row in rows for column in columns]
            expected_BSD[0, cells[0]] = sum(embeds_BSD.detach()[0, cell] for cell in cells) / len(cells)
    torch.testing.assert_close(pooled_BSD, expected_BSD, rtol=0, atol=1e-15)
    assert torch.equal(pooled_BSD[1], embeds_BSD[1])
    half_BSD = embeds_BSD.detach().bfloat16()
    mean_D = half_BSD[0, [1, 2, 4, 5]].float().mean(0).bfloat16()
    assert torch.equal(averaged(half_BSD, kept.blocks)[0, 1], mean_D)


def slow(case: families.Case, decision: regate.Decision):
    """Row by row: the embeddings that enter the decoder, averaged by hand, without what is elided, through the
    untouched layers. For a decoder without three axes or features that are added later."""
    decoder, kept = decoder_of(case.model), decision.visual
    taken = {}

    def take(module, args, kwargs):
        taken["embeds"] = kwargs["inputs_embeds"]
        raise InterruptedError

    handle = decoder.register_forward_pre_hook(take, with_kwargs=True)
    with pytest.raises(InterruptedError):
        case.model(**case.inputs)
    handle.remove()
    flat = list(taken["embeds"].flatten(0, 1))
    if kept.blocks is not None:
        for block, first in enumerate(kept.blocks.first_b.tolist()):
            members = kept.blocks.member_m[kept.blocks.block_m == block].tolist()
            flat[first] = sum(taken["embeds"].flatten(0, 1)[member] for member in members) / len(members)
    embeds_BSD = torch.stack(flat).view_as(taken["embeds"])
    rows = []
    for row, active_S in enumerate(decision.active_BS):
        place_1K = active_S.nonzero().T
        length = place_1K.shape[1]
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        hidden_1KD = decoder(
            inputs_embeds=embeds_BSD[row : row + 1, active_S], position_ids=place_1K, attention_mask=mask
        ).last_hidden_state
        rows.append(hidden_1KD[0, decision.predictor_BS[row, active_S]])
    return case.model.get_output_embeddings()(torch.cat(rows))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["InternVL", "LLaVA-OneVision"])
def test_the_decoder_gets_the_cells_that_stay(name, how):
    case = case_of(name)
    decision = decide(with_grids(case), visual=VisualConfig(0.5, how), keep_ratio=0.5)
    logits_NV, _, grads = packed(case.model, case.inputs, decision)
    case.model.zero_grad()
    expected_NV = slow(case, decision)
    torch.testing.assert_close(logits_NV, expected_NV.detach(), rtol=0, atol=1e-10)
    regate.token_loss(expected_NV, decision.targets_N).sum().backward()
    for parameter_name, parameter in case.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[parameter_name], parameter.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", HOWS + BY_CONTENT)
@pytest.mark.parametrize("name", NAMES)
def test_families_equal_algorithm_1(name, how):
    case = case_of(name)
    decision = decide(with_grids(case), visual=VisualConfig(0.5, how), keep_ratio=0.5)
    assert decision.counts.active < decision.counts.valid
    if how in ("pool", "merge") and name == "Qwen3-VL":
        with pytest.raises(UnsupportedModelError, match="cells cannot be averaged"):
            packed(case.model, case.inputs, decision)
        return
    expected = run(case.model, case.inputs, decision, execution="layerwise")
    assert_same(run(case.model, case.inputs, decision), expected)
    assert_same(packed(case.model, case.inputs, decision), expected)
    assert_same(packed(case.model, case.inputs, decision, outputs="predictors", multiple=8), expected)


def put_back(case, decision):
    """Algorithm 1 with a mask for each layer, whose deep layers put back the state of every position that is not
    read."""
    read_BS1 = decision.predictor_BS[:, :, None]
    layers = decoder_of(case.model).layers
    deep = len(layers) if decision.deep is None else decision.deep

    def keep(module, args, kwargs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        kept = torch.where(read_BS1, hidden, args[0] if args else kwargs["hidden_states"])
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers[deep:]]
    try:
        return run(case.model, case.inputs, replace(decision, deep=None), execution="layerwise")
    finally:
        for handle in handles:
            handle.remove()


BELOW = (KeepBelow(1, 0.75),)


@pytest.mark.parametrize(
    "settings",
    [
        {"from_layer": 1},
        {"deep": 1},
        {"from_layer": 0, "deep": 2},
        {"from_layer": 1, "deep": 2},
        {"keep_below": BELOW},
        {"keep_below": BELOW, "deep": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["InternVL", "Qwen2.5-VL"])
def test_it_combines_with_what_elides_by_layer(name, settings):
    """Elided cells are in no layer; the deep layers and those below them get what is left."""
    case = case_of(name)
    decision = decide(with_grids(case), visual=VisualConfig(0.25, "pattern"), keep_ratio=0.5, **settings)
    gone_BS = (case.layout.kind_BS == Kind.VISUAL) & ~decision.visual.kept_BS
    for mask_BS in (decision.active_BS, *(level.active_BS for level in decision.levels)):
        assert not (mask_BS & gone_BS).any()
    expected = put_back(case, decision)
    assert_same(packed(case.model, case.inputs, decision), expected)
    assert_same(packed(case.model, case.inputs, decision, outputs="predictors", multiple=8), expected)


@pytest.mark.parametrize("how", [*HOWS, *BY_CONTENT])
def test_on_a_ramp_it_is_the_step_of_its_keep_ratio(how):
    """Half of the way from one half to one quarter."""
    layout, pictures = with_grids(case_of("InternVL")), VisualConfig(0.5, how)
    for by_layer in ({}, {"from_layer": 1}, {"deep": 2}):
        ramp = decide(layout, step=5, keep_ratio=0.5, visual=pictures, ramp=RampConfig(to=0.25, steps=10), **by_layer)
        there = decide(layout, step=5, keep_ratio=0.375, visual=pictures, **by_layer)
        assert ramp.keep_ratio == there.keep_ratio == 0.375
        for name in ("active_BS", "targets_BS"):
            assert torch.equal(getattr(ramp, name), getattr(there, name))
        assert torch.equal(ramp.visual.kept_BS, there.visual.kept_BS)
        assert ramp.deep == there.deep
        for one, other in zip(ramp.levels, there.levels, strict=True):
            assert torch.equal(one.active_BS, other.active_BS)


def test_all_cells_kept_is_none_elided_and_dense_steps_see_everything():
    case = case_of("InternVL")
    layout = with_grids(case)
    without = decide(layout, keep_ratio=0.5)
    for how in HOWS:
        whole = decide(layout, keep_ratio=0.5, visual=VisualConfig(1.0, how))
        assert whole.visual is None
        assert torch.equal(whole.active_BS, without.active_BS)
        dense = decide(layout, step=4, visual=VisualConfig(0.25, how))
        assert not dense.sparse
        assert torch.equal(dense.active_BS, layout.valid_BS)
    sparse = decide(layout, visual=VisualConfig(0.25, "random"))
    assert sparse.sparse
    assert torch.equal(sparse.targets_BS, layout.target_BS)


@pytest.mark.parametrize("name", NAMES)
def test_a_blind_step_sees_no_cell(name):
    case = case_of(name)
    layout = with_grids(case)
    blind = [decide(layout, visual=VisualConfig(0.0, how)) for how in HOWS + BY_CONTENT]
    cells_BS = layout.kind_BS == Kind.VISUAL
    line_breaks = sum(not grid.elidable for grids in layout.grids for grid in grids)
    for decision in blind:
        assert int((decision.active_BS & cells_BS).sum()) == line_breaks
        assert torch.equal(decision.active_BS | cells_BS, layout.valid_BS)
    assert_same(
        packed(case.model, case.inputs, blind[0]), run(case.model, case.inputs, blind[0], execution="layerwise")
    )


def test_an_elided_cell_has_no_gradient():
    data = tiny.rows(visual=4, pad="right", seed=5)
    layout = replace(data.layout, grids=((Grid(1, 2, 2),),) * 3)
    decision = decide(layout, visual=VisualConfig(0.25, "random"))
    model = tiny.lm()
    embeds_BSD = model.get_input_embeddings()(data.input_ids_BS).detach().requires_grad_()
    with regate.attach(model, rows="packed")(decision):
        logits_NV = regate.ScoredLM(model)(
            predictor_BS=decision.predictor_BS, inputs_embeds=embeds_BSD, attention_mask=data.mask_BS
        )
    regate.token_loss(logits_NV, decision.targets_N).sum().backward()
    gone_BS = (layout.kind_BS == Kind.VISUAL) & ~decision.visual.kept_BS
    assert int(gone_BS.sum()) == 9
    assert float(embeds_BSD.grad[gone_BS].abs().max()) == 0.0
    assert float(embeds_BSD.grad[decision.visual.kept_BS].abs().min()) > 0.0


def test_a_cell_that_predicts_a_target_stays():
    """Where an answer follows the picture with nothing in between."""
    labels_BS = torch.tensor([[-100] * 9 + [5, 6]])
    visual_BS = torch.tensor([[False] + [True] * 8 + [False] * 2])
    layout = regate.layout_from_labels(
        labels_BS, torch.ones(1, 11, dtype=torch.int64), visual_BS=visual_BS, grids=((CUBE,),)
    )
    for how in (*HOWS, "diverse", "merge"):
        kept = keep_visual(layout, VisualConfig(0.125, how), step=0, seed=0)
        assert bool(kept.kept_BS[0, 8])


def test_what_is_refused():
    with pytest.raises(LayoutError, match="needs the grids of the clips"):
        decide(replace(layout_of((CUBE,)), grids=None), visual=VisualConfig())
    with pytest.raises(LayoutError, match="row 0 has 8 visual positions, and its grids have 4 cells"):
        decide(replace(layout_of((CUBE,)), grids=((Grid(1, 2, 2),),)), visual=VisualConfig())
    with pytest.raises(ConfigError, match=r"visual.how pool keeps 1, 0.5, 0.25, 0.125 or 0 of the cells, not 0.3"):
        VisualConfig(0.3, "pool")
    with pytest.raises(ConfigError, match=r"visual.keep must be in \[0, 1\], got -0.1"):
        VisualConfig(-0.1, "random")
    with pytest.raises(ConfigError, match=r"at least 0\.25 of the cells, not 0\.2"):
        VisualConfig(0.2, "temporal")
    with pytest.raises(ConfigError, match="loss_only elides nothing"):
        GateConfig(visual=VisualConfig(), execution="loss_only")


def test_running_losses_of_dense_steps_alone(tmp_path):
    """`ema_observe: all_dense` leaves out the losses of steps that elide cells, though every target is scored."""
    data = tiny.rows(visual=4, pad="right", seed=5)
    layout = replace(data.layout, grids=((Grid(1, 2, 2),),) * 3)
    reference = tiny.reference_store(tmp_path / "reference", [data])
    for observe, noted in (("all_dense", False), ("scored", True)):
        schedule = {"keep_ratio": 1.0, "warmup_steps": 0, "cycle_steps": 4, "dense_steps": 1}
        config = GateConfig(visual=VisualConfig(0.25, "random"), ema_observe=observe, **schedule)
        store = regate.DifficultyStore.for_gate(tmp_path / observe, config, reference=reference)
        gate = Gate(config, reference, store)
        decision = gate.decide(layout, data.sample_ids_B, step=1)
        gate.observe(decision, torch.ones(decision.counts.scored))
        gate.end_epoch()
        values_BS = store.values(candidates_of(layout), data.sample_ids_B)
        assert bool((values_BS[layout.target_BS] > 0).any()) == noted
