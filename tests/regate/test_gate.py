"""The gate: what is active, what is scored, and what each switch changes.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import regate
from regate import ConfigError, DifficultyStore, Gate, GateConfig, LayoutError, NonFiniteLossError, StoreError
from regate.top_k import budget
from tests.regate import tiny

SPARSE = GateConfig(warmup_steps=0, cycle_steps=8, dense_steps=1)


def gate_for(tmp_path, data, config=SPARSE, **settings):
    store = tiny.reference_store(tmp_path / "reference", [data], config.candidates)
    difficulty = None
    if config.needs_difficulty:
        difficulty = DifficultyStore.for_gate(tmp_path / "difficulty", config, reference=store)
    return Gate(config, store, difficulty, **settings), store


def sentence():
    """A, man, is, mixing, red, paint, in, a, bowl, . after a prompt of two: the example of the alignments."""
    labels_BS = torch.tensor([[-100, -100, *range(10, 20)]])
    return regate.layout_from_labels(labels_BS, torch.ones_like(labels_BS))


@pytest.mark.parametrize(
    ("align", "active_words"),
    [
        ("predictor", {"A", "is", "mixing", "red", "a"}),
        ("target", {"man", "mixing", "red", "paint", "bowl"}),
        ("union", {"A", "man", "is", "mixing", "red", "paint", "a", "bowl"}),
    ],
)
def test_alignments_on_the_example(tmp_path, align, active_words):
    words = ["A", "man", "is", "mixing", "red", "paint", "in", "a", "bowl", "."]
    chosen = {"man", "mixing", "red", "paint", "bowl"}
    layout = sentence()
    number, checksum = regate.store_keys(layout)
    writer = regate.ReferenceWriter.create(
        tmp_path / "r", sample_ids=[5], num_targets=number, checksums=checksum, fingerprint={}
    )
    writer.write([5], [torch.tensor([2.0 if word in chosen else 1.0 for word in words])])
    config = replace(SPARSE, align=align, selection="reference")
    decision = Gate(config, writer.finish()).decide(layout, torch.tensor([5]), step=1)
    active = decision.active_BS[0].tolist()
    assert active[:2] == [True, True]  # the prompt stays
    assert {word for word, on in zip(words, active[2:], strict=True) if on} == active_words
    assert {word for word, on in zip(words, decision.targets_BS[0, 2:].tolist(), strict=True) if on} == chosen
    assert decision.counts == regate.TokenCounts(12, 12, 0, 0, 2, 10, 2 + len(active_words), 5)


def test_dense_step_keeps_everything(tmp_path):
    data = tiny.rows()
    gate, _ = gate_for(tmp_path, data)
    decision = gate.decide(data.layout, data.sample_ids_B, step=0)
    assert torch.equal(decision.active_BS, data.layout.valid_BS)
    assert torch.equal(decision.targets_BS, data.layout.target_BS)
    assert not decision.elides
    baseline = regate.DenseGate().decide(data.layout, data.sample_ids_B, step=0)
    assert baseline.counts == decision.counts
    assert torch.equal(baseline.targets_N, decision.targets_N)


@pytest.mark.parametrize("selection", ["regate", "reference", "difficulty", "loss", "excess", "random", "first"])
@pytest.mark.parametrize("align", ["predictor", "target", "union"])
def test_budget_is_exact_and_counts_add_up(tmp_path, selection, align):
    data = tiny.rows(visual=3)
    config = replace(SPARSE, selection=selection, align=align)
    gate, _ = gate_for(tmp_path, data, config)
    decision = gate.decide(data.layout, data.sample_ids_B, step=1)
    target_B = data.layout.target_BS.sum(dim=1)
    assert torch.equal(decision.targets_BS.sum(dim=1), budget(target_B, 0.5))
    stays_BS = data.layout.valid_BS & ~data.layout.target_BS
    assert bool(decision.active_BS[stays_BS].all())
    assert not bool(decision.active_BS[~data.layout.valid_BS].any())
    if align != "target":
        assert bool(decision.active_BS[decision.predictor_BS].all())  # every scored loss is live
    decision.counts.check()


def test_scores_rank_as_equation_3_says(tmp_path):
    data = tiny.rows()
    gate, store = gate_for(tmp_path, data)
    dense = gate.decide(data.layout, data.sample_ids_B, step=0)
    losses = torch.linspace(5, 0, dense.counts.target)
    gate.observe(dense, losses)
    gate.end_epoch()
    decision = gate.decide(data.layout, data.sample_ids_B, step=1)
    m_BS = torch.zeros(data.layout.labels_BS.shape)
    m_BS[dense.targets_BS] = (0.1 * losses.half().float()).half().float()
    score_BS = m_BS + 0.5 * store.losses(data.sample_ids_B, data.layout)
    for row in range(3):
        chosen = score_BS[row][decision.targets_BS[row]]
        left = score_BS[row][data.layout.target_BS[row] & ~decision.targets_BS[row]]
        assert chosen.min() >= left.max()


def test_difficulty_is_not_read_before_the_epoch_ends(tmp_path):
    data = tiny.rows()
    gate, _ = gate_for(tmp_path, data)
    before = gate.decide(data.layout, data.sample_ids_B, step=1)
    gate.observe(before, torch.rand(before.counts.scored) * 100)
    after = gate.decide(data.layout, data.sample_ids_B, step=2)
    assert torch.equal(before.targets_BS, after.targets_BS)


def test_observing_only_dense_steps(tmp_path):
    data = tiny.rows()
    config = replace(SPARSE, ema_init="reference", ema_decay=0.0)
    for observe in ("scored", "all_dense"):
        gate, _ = gate_for(tmp_path / observe, data, replace(config, ema_observe=observe))
        sparse = gate.decide(data.layout, data.sample_ids_B, step=1)
        gate.observe(sparse, torch.zeros(sparse.counts.scored))  # the selected ones turn out easy
        gate.end_epoch()
        after = gate.decide(data.layout, data.sample_ids_B, step=2)
        assert torch.equal(sparse.targets_BS, after.targets_BS) == (observe == "all_dense")
    dense = gate.decide(data.layout, data.sample_ids_B, step=8)
    target_loss = torch.zeros(dense.counts.target)
    target_loss[-1] = 1000.0  # the last target of the last row becomes the hardest
    gate.observe(dense, target_loss)
    gate.end_epoch()
    row, column = dense.targets_BS.nonzero()[-1].tolist()
    assert bool(gate.decide(data.layout, data.sample_ids_B, step=9).targets_BS[row, column])


def test_random_control_depends_on_seed_step_and_sample_only(tmp_path):
    data = tiny.rows(batch=3, pad="none")
    config = replace(SPARSE, selection="random")
    gate, other = Gate(config, None, seed=1), Gate(config, None, seed=2)
    first = gate.decide(data.layout, data.sample_ids_B, step=1).targets_BS
    assert torch.equal(first, gate.decide(data.layout, data.sample_ids_B, step=1).targets_BS)
    assert not torch.equal(first, gate.decide(data.layout, data.sample_ids_B, step=2).targets_BS)
    assert not torch.equal(first, other.decide(data.layout, data.sample_ids_B, step=1).targets_BS)
    order = torch.tensor([2, 0, 1])
    moved = regate.Layout(data.layout.labels_BS[order], data.layout.kind_BS[order], data.layout.ordinal_BS[order])
    assert torch.equal(gate.decide(moved, data.sample_ids_B[order], step=1).targets_BS, first[order])


def test_first_control_takes_the_first_targets(tmp_path):
    decision = Gate(replace(SPARSE, selection="first"), None).decide(sentence(), torch.tensor([1]), step=1)
    assert decision.targets_BS[0].nonzero().squeeze(1).tolist() == [2, 3, 4, 5, 6]


def test_loss_only_computes_everything(tmp_path):
    data = tiny.rows()
    gate, _ = gate_for(tmp_path, data, replace(SPARSE, execution="loss_only"))
    compact, _ = gate_for(tmp_path / "other", data, SPARSE)
    decision = gate.decide(data.layout, data.sample_ids_B, step=1)
    assert not decision.elides
    assert torch.equal(decision.targets_BS, compact.decide(data.layout, data.sample_ids_B, step=1).targets_BS)


@pytest.mark.parametrize("candidates", ["targets", "text"])
def test_rho_1_as_published_selects_by_this_steps_losses(tmp_path, candidates):
    data = tiny.rows()
    config = replace(SPARSE, execution="loss_only", selection="excess", candidates=candidates)
    gate, store = gate_for(tmp_path, data, config)
    decision = gate.decide(data.layout, data.sample_ids_B, step=1)
    assert decision.counts.scored == int(budget(data.layout.target_BS.sum(dim=1), 0.5).sum())
    loss_N = torch.rand(int(decision.losses_BS.sum()), generator=torch.Generator().manual_seed(0)) * 5
    with pytest.raises(ConfigError, match=r"gate\.weights"):
        gate.observe(decision, loss_N)
    weight_N = gate.weights(decision, loss_N)
    gate.observe(decision, loss_N)
    assert int(weight_N.sum()) == decision.counts.scored
    excess_BS = torch.full(data.layout.labels_BS.shape, float("-inf"))
    reference_BS = store.losses(data.sample_ids_B, data.layout, candidates)
    excess_BS[decision.losses_BS] = loss_N - reference_BS[decision.losses_BS]
    weight_BS = torch.zeros_like(excess_BS)
    weight_BS[decision.losses_BS] = weight_N
    for row in range(3):
        k = int(weight_BS[row].sum())
        assert set(excess_BS[row].topk(k).indices.tolist()) == set(weight_BS[row].nonzero().squeeze(1).tolist())


def test_text_candidates_gate_the_prompt_and_do_not_train_on_it(tmp_path):
    data = tiny.rows(visual=2)
    gate, _ = gate_for(tmp_path, data, replace(SPARSE, candidates="text"))
    decision = gate.decide(data.layout, data.sample_ids_B, step=1)
    prompt_BS = data.layout.kind_BS == regate.Kind.PROMPT
    assert not bool(decision.active_BS[prompt_BS].all())
    assert bool(decision.active_BS[data.layout.kind_BS == regate.Kind.VISUAL].all())
    first_B = data.layout.valid_BS.long().argmax(dim=1)
    assert bool(decision.active_BS[torch.arange(3), first_B].all())  # nothing predicts it, so it is no candidate
    loss_N = torch.rand(len(decision.targets_N))
    weight_N = gate.weights(decision, loss_N)
    assert torch.equal(weight_N.bool(), decision.targets_BS[decision.losses_BS])
    assert 0 < decision.counts.scored == int(weight_N.sum()) < len(weight_N)
    assert torch.equal(decision.targets_N, data.input_ids_BS[decision.losses_BS])
    gate.observe(decision, loss_N)
    gate.end_epoch()


def test_text_candidates_need_the_token_ids():
    layout = sentence()
    with pytest.raises(LayoutError, match="tokens_BS"):
        regate.store_keys(layout, "text")


def test_rows_without_targets_and_samples_of_no_store(tmp_path):
    data = tiny.rows()
    gate, _ = gate_for(tmp_path, data)
    labels_BS = data.layout.labels_BS.clone()
    labels_BS[1] = -100
    layout = regate.layout_from_labels(labels_BS, data.mask_BS)
    decision = gate.decide(layout, torch.tensor([17, 999_999, 2017]), step=1)  # a failed sample is not looked up
    assert int(decision.targets_BS[1].sum()) == 0
    assert torch.equal(decision.active_BS[1], layout.valid_BS[1])
    gate.observe(decision, torch.ones(decision.counts.scored))
    with pytest.raises(StoreError, match="sample 999999 is not in"):
        gate.decide(data.layout, torch.tensor([17, 999_999, 2017]), step=1)


def test_all_labels_ignored(tmp_path):
    data = tiny.rows()
    gate, _ = gate_for(tmp_path, data)
    layout = regate.layout_from_labels(torch.full_like(data.layout.labels_BS, -100), data.mask_BS)
    decision = gate.decide(layout, data.sample_ids_B, step=1)
    assert decision.counts.scored == decision.counts.target == 0
    assert not decision.elides
    gate.observe(decision, torch.zeros(0))
    with pytest.raises(LayoutError, match="the step has no targets"):
        regate.count_scored([decision])


def test_losses_that_are_not_finite(tmp_path):
    data = tiny.rows()
    gate, _ = gate_for(tmp_path, data)
    decision = gate.decide(data.layout, data.sample_ids_B, step=0)
    losses = torch.ones(decision.counts.scored)
    losses[-1] = float("nan")
    with pytest.raises(NonFiniteLossError, match="step 0: a loss of sample 2017 is nan"):
        gate.observe(decision, losses)
    assert gate.state_dict()["difficulty"]["offsets"] == {"0": 0}  # nothing of it was noted


def test_missing_and_mismatching_stores(tmp_path):
    data = tiny.rows()
    store = tiny.reference_store(tmp_path / "reference", [data])
    with pytest.raises(ConfigError, match="score the data set first"):
        Gate(SPARSE, None)
    with pytest.raises(ConfigError, match="for_gate"):
        Gate(SPARSE, store)
    difficulty = DifficultyStore.for_gate(tmp_path / "d", replace(SPARSE, ema_decay=0.5), reference=store)
    with pytest.raises(ConfigError, match=r"decay 0\.5"):
        Gate(SPARSE, store, difficulty)


def test_layouts_that_contradict_themselves():
    gate = Gate(replace(SPARSE, selection="first"), None)
    good = sentence()
    orphan = regate.Layout(good.labels_BS, torch.full_like(good.kind_BS, regate.Kind.TARGET), good.ordinal_BS)
    with pytest.raises(LayoutError, match="no position predicts it"):
        gate.decide(orphan, torch.tensor([1]), step=1)
    twice = regate.Layout(good.labels_BS, good.kind_BS, good.ordinal_BS.clamp(max=4))
    with pytest.raises(LayoutError, match="ordinals"):
        gate.decide(twice, torch.tensor([1]), step=1)


def test_measured_reduction_is_the_expected_one(tmp_path):
    data = tiny.rows(batch=6, length=31, prompt=6, pad="none")
    config = GateConfig(keep_ratio=0.3, cycle_steps=10, dense_steps=3, warmup_steps=7, selection="random")
    gate = Gate(config, None)
    steps = 43
    total = sum(
        (gate.decide(data.layout, data.sample_ids_B, step=s).counts for s in range(steps)), regate.TokenCounts()
    )
    total.check()
    expected = gate.schedule.expected_keep(steps)
    rounding = 1 / 25  # floor() of a sample of 25 targets loses less than one of them
    assert expected - rounding < total.scored / total.target <= expected


def test_a_ramp_by_loss_goes_on_from_a_checkpoint():
    data = tiny.rows(pad="none")
    ramp = regate.RampConfig(to=0.1, loss=(4.0, 2.0))
    config = replace(SPARSE, cycle_steps=4, selection="random", ramp=ramp)
    gate, resumed = Gate(config, None), Gate(config, None)

    def ratio(one, step):
        decision = one.decide(data.layout, data.sample_ids_B, step=step)
        count_B = data.layout.target_BS.sum(dim=1)
        assert torch.equal(decision.targets_BS.sum(dim=1), budget(count_B, decision.keep_ratio))
        return decision.keep_ratio

    assert ratio(gate, 1) == 0.5
    for step in range(5):
        gate.note_loss(step, 3.0 if step == 0 else 0.0)
    resumed.load_state_dict(gate.state_dict())
    assert ratio(gate, 5) == ratio(resumed, 5) == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="one goes by the loss"):
        resumed.load_state_dict({"schema": 1, "difficulty": None})
    resumed.start_over()
    with pytest.raises(ConfigError, match="none was noted"):
        resumed.decide(data.layout, data.sample_ids_B, step=5)
