"""Cells that stay by what they show: the rules equal slow definitions, and the decoder on what they leave equals the
untouched layers, in float64.

Legend: B rows, S expanded length, D hidden size, n cells of a clip, N scored targets, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regate
from regate import GateConfig, Grid, VisualConfig
from regate.config import VisualHow
from regate.content import RULES, chosen, clip_of
from regate.types import Kind
from regate.visual import keep_visual
from regate.wrapping import decoder_of
from tests.regate import families, tiny
from tests.regate.test_equivalence import assert_same, gradients
from tests.regate.test_packed import case_of, packed, run
from tests.regate.test_visual import BY_CONTENT, CUBE, decide, layout_of, with_grids


def cosine(one, other):
    return float(one @ other / (one.norm() * other.norm()))


def slow_diverse(cells, apart, shape, keep):
    """The greedy choice, cell by cell."""
    picked = [n for n in range(len(cells)) if apart[n]]
    numbers = range(len(cells))
    # Of two cells always the same way round: the last bit of a dot product depends on it.
    distance = [[1 - cosine(cells[min(n, m)], cells[max(n, m)]) for m in numbers] for n in numbers]
    while len(picked) < ceil(keep * len(cells)):
        rest = [n for n in range(len(cells)) if n not in picked]
        others = {n: picked or [m for m in range(len(cells)) if m != n] for n in rest}
        picked.append(max(rest, key=lambda n: min((distance[n][m] for m in others[n]), default=0.0)))
    return [n if n in picked else -1 for n in range(len(cells))]


def slow_merge(cells, apart, shape, keep):
    """Tokens as lists of cells, merged in rounds."""
    tokens = {n: [n] for n in range(len(cells)) if not apart[n]}
    left = max(ceil(keep * len(cells)) - sum(apart), 1 if tokens else 0)
    while len(tokens) > left:
        names = sorted(tokens)
        sources, into = names[::2], names[1::2]
        means = {name: torch.stack([cells[n] for n in tokens[name]]).mean(0) for name in names}
        best = {s: max(into, key=lambda d, s=s: cosine(means[s], means[d])) for s in sources}
        order = sorted(sources, key=lambda s: -cosine(means[s], means[best[s]]))
        for source in order[: min(len(tokens) - left, len(names) // 2)]:
            tokens[best[source]] += tokens.pop(source)
    owner = {n: name for name, members in tokens.items() for n in members}
    return [owner.get(n, n) for n in range(len(cells))]


def slow_temporal(cells, apart, shape, keep):
    """Frame by frame."""
    size = shape[1] * shape[2]
    changing = round((4 * keep - 1) / 3 * size)
    owner = list(range(len(cells)))
    for frame in range(shape[0]):
        if frame % 4 == 0:
            continue
        before = {1: frame - 1, 2: frame - 2, 3: frame - 1}[frame % 4]
        own = range(frame * size, (frame + 1) * size)
        alike = {n: -9.0 if apart[n] else cosine(cells[n], cells[n - (frame - before) * size]) for n in own}
        kept = sorted(own, key=alike.get)[: max(changing, sum(apart[n] for n in own))]
        for n in own:
            owner[n] = n if n in kept else -1
    return owner


SLOW = {"diverse": slow_diverse, "merge": slow_merge, "temporal": slow_temporal}


def test_every_rule_is_a_choice_of_the_settings():
    assert sorted(RULES) == sorted(BY_CONTENT) == sorted(SLOW)
    assert set(RULES) < set(VisualHow.__args__)


@pytest.mark.parametrize("how", BY_CONTENT)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    keep=st.sampled_from([0.25, 0.3, 0.5, 0.75]),
    apart=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_rules_equal_their_slow_definitions(how, shape, keep, apart, seed):
    draw = torch.Generator().manual_seed(seed)
    cells = shape[0] * shape[1] * shape[2]
    value_nD = torch.randn(cells, 5, dtype=torch.float64, generator=draw)
    apart_n = torch.zeros(cells, dtype=torch.bool)
    apart_n[torch.randperm(cells, generator=draw)[:apart]] = True
    clip = clip_of(how, keep, shape, torch.arange(cells), apart_n)
    owner_n = RULES[how](value_nD, clip, keep)
    assert owner_n.tolist() == SLOW[how](list(value_nD), apart_n.tolist(), shape, keep)
    stays_n = owner_n == torch.arange(cells)
    assert int(stays_n.sum()) == clip.kept >= 1
    assert bool(stays_n[apart_n].all())


@pytest.mark.parametrize(("shape", "seed"), [((2, 2, 2), 79), ((3, 3, 3), 567), ((3, 3, 3), 1088)])
def test_of_two_cells_that_are_each_others_nearest_the_first_is_taken(shape, seed):
    """Both are equally far from their nearest neighbour, whatever the last bits of a kernel say."""
    cells = shape[0] * shape[1] * shape[2]
    value_nD = torch.randn(cells, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    none_n = torch.zeros(cells, dtype=torch.bool)
    clip = clip_of("diverse", 0.25, shape, torch.arange(cells), none_n)
    assert RULES["diverse"](value_nD, clip, 0.25).tolist() == slow_diverse(value_nD, none_n.tolist(), shape, 0.25)


def test_rules_by_hand():
    """Cells on a circle: 0, 1, 180 and 90 degrees; then a frame that changes in one cell."""
    angle_n = torch.tensor([0.0, 1.0, 180.0, 90.0]).deg2rad().double()
    value_nD = torch.stack([angle_n.cos(), angle_n.sin()], dim=1)
    none_n, place_n = torch.zeros(4, dtype=torch.bool), torch.arange(4)
    # 180 and 90 are both a right angle from their neighbour, the first of them is taken; then 0, which is opposite.
    clip = clip_of("diverse", 0.5, (1, 2, 2), place_n, none_n)
    assert RULES["diverse"](value_nD, clip, 0.5).tolist() == [0, -1, 2, -1]
    # Sources 0 and 2, destinations 1 and 3: 0 goes into 1, and 2 into 3.
    clip = clip_of("merge", 0.75, (1, 2, 2), place_n, none_n)
    assert RULES["merge"](value_nD, clip, 0.75).tolist() == [1, 1, 2, 3]
    clip = clip_of("merge", 0.5, (1, 2, 2), place_n, none_n)
    assert RULES["merge"](value_nD, clip, 0.5).tolist() == [1, 1, 3, 3]
    clip = clip_of("temporal", 0.625, (2, 1, 2), place_n, none_n)
    assert RULES["temporal"](value_nD, clip, 0.625).tolist() == [0, 1, 2, -1]


def test_what_stays_is_known_before_and_settled_by_the_embeddings():
    """Rows of several clips: as many cells of each as was said, in their own clip; the choice follows the values."""
    layout = layout_of((CUBE, Grid(5, 1, 2), Grid(1, 1, 1, elidable=False)), (Grid(1, 3, 3),))
    draw = torch.Generator().manual_seed(4)
    for how in BY_CONTENT:
        before = keep_visual(layout, VisualConfig(0.4, how), step=1, seed=0)
        settled = []
        for _ in range(3):
            embeds_BSD = torch.randn(*layout.kind_BS.shape, 6, generator=draw)
            after = chosen(before, embeds_BSD)
            assert after.choice is None
            for clip in before.choice.clips:
                for kept_BS in (before.kept_BS, after.kept_BS):
                    assert int(kept_BS.flatten()[clip.place_n].sum()) == clip.kept
            assert torch.equal(after.kept_BS.sum(1), before.kept_BS.sum(1))
            assert bool(after.kept_BS[0, 19])  # the line break
            assert not bool((after.kept_BS & (layout.kind_BS != Kind.VISUAL)).any())
            settled.append(after.kept_BS)
        assert not all(torch.equal(settled[0], other) for other in settled[1:])


def slow(case, layout, decision, how, keep):
    """Logits, losses and gradients: the slow rule on the embeddings that enter the decoder, then row by row through
    the untouched layers. For a decoder without three axes or features that are added later."""
    decoder = decoder_of(case.model)
    taken = {}

    def take(module, args, kwargs):
        taken["embeds"] = kwargs["inputs_embeds"]
        raise InterruptedError

    handle = decoder.register_forward_pre_hook(take, with_kwargs=True)
    case.model.zero_grad()
    with pytest.raises(InterruptedError):
        case.model(**case.inputs)
    handle.remove()
    rows = []
    for row, (kind_S, grids) in enumerate(zip(layout.kind_BS, layout.grids, strict=True)):
        states = list(taken["embeds"][row])
        gone, place = set(), (kind_S == Kind.VISUAL).nonzero().squeeze(1).tolist()
        for grid in grids:
            own, place = place[: grid.cells], place[grid.cells :]
            if not grid.elidable:
                continue
            cells = [states[n].detach() for n in own]
            owner = SLOW[how](cells, [False] * len(own), grid.shape, keep)
            for n, name in zip(own, owner, strict=True):
                if n != own[name] or name < 0:
                    gone.add(n)
            for name in {name for name in owner if owner.count(name) > 1 and name >= 0}:
                members = [own[m] for m, other in enumerate(owner) if other == name]
                states[own[name]] = sum(taken["embeds"][row, m] for m in members) / len(members)
        text = decision.active_BS[row] & (kind_S != Kind.VISUAL)
        active = [s for s, kind in enumerate(kind_S.tolist()) if text[s] or (kind == Kind.VISUAL and s not in gone)]
        mask = torch.ones(1, 1, len(active), len(active), dtype=torch.bool).tril()
        hidden_1KD = decoder(
            inputs_embeds=torch.stack([states[s] for s in active])[None],
            position_ids=torch.tensor([active]),
            attention_mask=mask,
        ).last_hidden_state
        rows.append(hidden_1KD[0, decision.predictor_BS[row, active]])
    logits_NV = case.model.get_output_embeddings()(torch.cat(rows))
    loss_N = regate.token_loss(logits_NV, decision.targets_N)
    loss_N.sum().backward()
    return logits_NV.detach(), loss_N.detach(), gradients(case.model)


@pytest.mark.parametrize("how", BY_CONTENT)
@pytest.mark.parametrize("name", ["InternVL", "LLaVA-OneVision", "SmolVLM"])
def test_the_decoder_gets_what_the_rule_leaves(name, how):
    case = case_of(name)
    layout = with_grids(case)
    decision = decide(layout, visual=VisualConfig(0.5, how), keep_ratio=0.5)
    expected = slow(case, layout, decision, how, 0.5)
    assert_same(packed(case.model, case.inputs, decision, outputs="predictors"), expected)
    assert_same(run(case.model, case.inputs, decision), expected)


@pytest.mark.parametrize("how", BY_CONTENT)
def test_under_lora_with_recomputation(how):
    from peft import LoraConfig, get_peft_model

    case = families.FAMILIES["InternVL"]()
    layers = r".*language_model.*\.(q_proj|v_proj|o_proj|down_proj)"
    torch.manual_seed(1)
    model = get_peft_model(case.model, LoraConfig(r=4, target_modules=layers, init_lora_weights=False)).double()
    decision = decide(with_grids(case), visual=VisualConfig(0.5, how), keep_ratio=0.5)
    plain = run(model, case.inputs, decision, execution="layerwise")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    result = packed(model, case.inputs, decision, outputs="predictors")
    assert_same(result, plain)
    assert result[2]
    assert all("lora" in key for key in result[2])


@pytest.mark.parametrize("how", BY_CONTENT)
@pytest.mark.parametrize("settings", [{"from_layer": 2}, {"deep": 2}, {"keep_below": (regate.KeepBelow(1, 0.75),)}])
def test_it_combines_with_what_elides_by_layer(how, settings):
    """As the same cells do when they are chosen beforehand."""
    case = case_of("InternVL")
    decision = decide(with_grids(case), visual=VisualConfig(0.5, how), keep_ratio=0.5, **settings)
    seen = {}

    def note(module, args, kwargs):
        seen.setdefault("embeds", kwargs["inputs_embeds"].detach())

    handle = decoder_of(case.model).register_forward_pre_hook(note, with_kwargs=True, prepend=True)
    combined = packed(case.model, case.inputs, decision)
    handle.remove()
    settled = chosen(decision.visual, seen["embeds"])
    cells_BS = decision.layout.kind_BS == Kind.VISUAL

    def known(mask_BS):
        return mask_BS & ~cells_BS | settled.kept_BS

    levels = tuple(replace(level, active_BS=known(level.active_BS)) for level in decision.levels)
    beforehand = replace(decision, visual=settled, active_BS=known(decision.active_BS), levels=levels)
    assert_same(combined, packed(case.model, case.inputs, beforehand), limit=0.0)
    if "deep" not in settings:
        assert_same(combined, run(case.model, case.inputs, decision, execution="layerwise"))


def test_all_cells_kept_is_none_elided():
    layout = with_grids(case_of("InternVL"))
    for how in BY_CONTENT:
        assert decide(layout, visual=VisualConfig(1.0, how)).visual is None
        assert decide(layout, step=4, visual=VisualConfig(0.5, how)).visual is None  # a dense step


def test_counts_and_lengths_are_those_that_were_said():
    """`executed` and the counts are made before the forward pass; the decoder computes as many positions."""
    data = tiny.rows(visual=4, pad="right", seed=5)
    layout = replace(data.layout, grids=((Grid(4, 1, 1),),) * 3)
    model, seen = tiny.lm(), []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    for how in BY_CONTENT:
        gate = regate.Gate(
            GateConfig(keep_ratio=1.0, selection="random", warmup_steps=0, visual=VisualConfig(0.5, how)), None
        )
        decision = gate.decide(layout, data.sample_ids_B, step=100)
        elide = regate.attach(model, rows="packed")
        with elide(decision):
            regate.ScoredLM(model)(predictor_BS=decision.predictor_BS, **data.inputs)
        assert seen[-1] == elide.executed(decision) == decision.counts.active
        elide.remove()
