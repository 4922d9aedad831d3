"""Eq. 1: the reference losses of a frozen text-only LM.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import pytest
import torch

import regate
from regate import LayoutError, NonFiniteLossError, ReferenceWriter, StoreError
from tests.regate import tiny


def writer_for(path, batches, candidates="targets"):
    ids, counts, checksums = [], [], []
    for data in batches:
        number, checksum = regate.store_keys(data.layout, candidates)
        ids += data.sample_ids_B.tolist()
        counts += number
        checksums += checksum
    return ReferenceWriter.create(path, sample_ids=ids, num_targets=counts, checksums=checksums, fingerprint={})


def score(path, data, **settings):
    writer = writer_for(path, [data], settings.get("candidates", "targets"))
    return regate.score_reference(tiny.lm("Qwen2"), [data], writer, placeholder_id=2, **settings)


def plain_losses(data, mask_BS, ids_BS, position_ids=None):
    """Cross entropy by the model's own forward pass on the whole sequence, one row at a time."""
    model = tiny.lm("Qwen2").eval()
    with torch.no_grad():
        logits_BSV = model(input_ids=ids_BS, attention_mask=mask_BS, position_ids=position_ids).logits
    return regate.causal_token_loss(logits_BSV, data.layout.labels_BS)


def assert_half(one, other):
    """Equal to within the rounding of float16."""
    torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-3)


def stored(store, data):
    return store.losses(data.sample_ids_B, data.layout)[data.layout.target_BS].double()


def test_masked_placeholders_are_never_seen_and_keep_their_places(tmp_path):
    data = tiny.rows(visual=4)
    visual_BS = data.layout.kind_BS == regate.Kind.VISUAL
    mask_BS = data.mask_BS * ~visual_BS
    expected = plain_losses(data, mask_BS, torch.where(visual_BS, 2, data.input_ids_BS), torch.arange(20)[None])
    store = score(tmp_path / "a", data)
    assert_half(stored(store, data), expected)
    other = tiny.Rows(
        data.sample_ids_B, torch.where(visual_BS, 5, data.input_ids_BS), data.mask_BS, data.layout
    )  # what stands there changes nothing
    assert torch.equal(stored(score(tmp_path / "b", other), data), stored(store, data))


def test_masked_placeholders_are_left_out_of_the_compute(tmp_path):
    data, model, lengths = tiny.rows(visual=4, pad="none"), tiny.lm("Qwen2"), []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    regate.score_reference(model, [data], writer_for(tmp_path / "r", [data]), placeholder_id=2)
    assert lengths == [16]
    assert model.training  # left as it was found


def test_compact_placeholders_do_not_depend_on_their_number(tmp_path):
    few, many = tiny.rows(visual=2, pad="none"), tiny.rows(visual=2, pad="none")
    wide_ids = torch.cat([many.input_ids_BS[:, :3], torch.full((3, 5), 2), many.input_ids_BS[:, 3:]], dim=1)
    wide_labels = torch.cat([torch.full((3, 8), -100), many.layout.labels_BS[:, 3:]], dim=1)
    visual_BS = torch.zeros(3, 25, dtype=torch.bool)
    visual_BS[:, 1:8] = True
    mask_BS = torch.ones_like(wide_ids)
    layout = regate.layout_from_labels(wide_labels, mask_BS, visual_BS=visual_BS)
    wide = tiny.Rows(many.sample_ids_B, wide_ids, mask_BS, layout)
    narrow = stored(score(tmp_path / "a", few, placeholders="compact"), few)
    assert torch.equal(narrow, stored(score(tmp_path / "b", wide, placeholders="compact"), wide))
    masked = stored(score(tmp_path / "c", wide, placeholders="masked"), wide)
    assert not torch.equal(narrow, masked)


def test_attended_placeholders_are_read(tmp_path):
    data = tiny.rows(visual=4)
    visual_BS = data.layout.kind_BS == regate.Kind.VISUAL
    expected = plain_losses(data, data.mask_BS, torch.where(visual_BS, 2, data.input_ids_BS))
    store = score(tmp_path / "a", data, placeholders="attended")
    assert_half(stored(store, data), expected)


def test_placeholder_outside_the_teachers_vocabulary(tmp_path):
    data = tiny.rows(visual=4)
    data.input_ids_BS[data.layout.kind_BS == regate.Kind.VISUAL] = 10_000
    writer = writer_for(tmp_path / "r", [data])
    store = regate.score_reference(tiny.lm("Qwen2"), [data], writer, placeholder_id=10_000)
    assert bool(torch.isfinite(stored(store, data)).all())


def test_prompt_tokens_are_scored_for_text_candidates(tmp_path):
    data = tiny.rows(visual=2)
    store = score(tmp_path / "r", data, candidates="text", placeholders="attended")
    losses_BS = store.losses(data.sample_ids_B, data.layout, "text")
    visual_BS = data.layout.kind_BS == regate.Kind.VISUAL
    labels_BS = torch.where(losses_BS.isnan(), -100, data.input_ids_BS)
    model = tiny.lm("Qwen2").eval()
    with torch.no_grad():
        logits_BSV = model(torch.where(visual_BS, 2, data.input_ids_BS), attention_mask=data.mask_BS).logits
    expected = regate.causal_token_loss(logits_BSV, labels_BS)
    assert_half(losses_BS[~losses_BS.isnan()], expected)
    assert int((~losses_BS.isnan()).sum()) > data.layout.target_BS.sum()


def test_target_right_after_a_visual_position(tmp_path):
    labels = torch.tensor([[-100, -100, 5, 6]])
    visual = torch.tensor([[False, True, False, False]])
    layout = regate.layout_from_labels(labels, torch.ones_like(labels), visual_BS=visual)
    data = tiny.Rows(torch.tensor([1]), torch.tensor([[4, 2, 5, 6]]), torch.ones_like(labels), layout)
    with pytest.raises(LayoutError, match="directly follows a visual position"):
        score(tmp_path / "r", data)


def test_done_samples_are_skipped_and_missing_ones_named(tmp_path):
    first, second = tiny.rows(seed=0), tiny.rows(seed=1)
    writer, model, calls, done = writer_for(tmp_path / "r", [first, second]), tiny.lm("Qwen2"), [], []
    model.model.register_forward_pre_hook(lambda *args: calls.append(1))
    with pytest.raises(StoreError, match="3 of 6 samples"):
        regate.score_reference(model, [first], writer, placeholder_id=2, progress=done.append)
    writer = writer_for(tmp_path / "r", [first, second])
    regate.score_reference(model, [first, second], writer, placeholder_id=2, progress=done.append)
    assert len(calls) == 2
    assert done == [3, 3, 3]


def test_a_batch_that_is_half_done_gives_the_same_bits(tmp_path):
    data = tiny.rows(batch=6, visual=3)
    whole = score(tmp_path / "a", data)
    writer = writer_for(tmp_path / "b", [data])
    kept = data.sample_ids_B[:4].tolist()
    writer.write(kept, [torch.full((int(n),), 9.0) for n in data.layout.target_BS.sum(dim=1)[:4]])
    half = regate.score_reference(tiny.lm("Qwen2"), [data], writer, placeholder_id=2)
    ours, theirs = (store.losses(data.sample_ids_B, data.layout) for store in (half, whole))
    assert set(ours[:4][data.layout.target_BS[:4]].tolist()) == {9.0}  # what is done stays as it is
    assert torch.equal(ours[4:].nan_to_num(), theirs[4:].nan_to_num())


def test_batching_does_not_change_the_losses(tmp_path):
    data = tiny.rows(visual=3)
    singles = []
    for row in range(3):
        kept = data.mask_BS[row].bool()
        one = [x[row : row + 1][:, kept] for x in (data.input_ids_BS, data.mask_BS, data.layout.labels_BS)]
        visual_BS = (data.layout.kind_BS[row : row + 1] == regate.Kind.VISUAL)[:, kept]
        layout = regate.layout_from_labels(one[2], one[1], visual_BS=visual_BS)
        singles.append(tiny.Rows(data.sample_ids_B[row : row + 1], one[0], one[1], layout))
    writer = writer_for(tmp_path / "singles", singles)
    store = regate.score_reference(tiny.lm("Qwen2"), singles, writer, placeholder_id=2)
    batched = score(tmp_path / "batch", data)
    assert_half(stored(store, data), stored(batched, data))


def test_a_teacher_with_broken_weights(tmp_path):
    data, model = tiny.rows(), tiny.lm("Qwen2")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NonFiniteLossError, match="reference loss"):
        regate.score_reference(model, [data], writer_for(tmp_path / "r", [data]), placeholder_id=2)


def test_unknown_dtype(tmp_path):
    with pytest.raises(regate.ConfigError, match="bfloat16 or float32"):
        score(tmp_path / "r", tiny.rows(), dtype="float16")


def test_losses_of_another_teacher_are_taken_off(tmp_path):
    """What is stored is the text-only loss less the other one, sign included."""
    data = tiny.rows(visual=4)
    text = stored(score(tmp_path / "text", data), data)
    other_N = torch.linspace(0.0, 12.0, len(text))
    both = stored(score(tmp_path / "both", data, subtract=lambda batch: other_N), data)
    torch.testing.assert_close(both, text - other_N.double(), rtol=0, atol=4e-3)  # both are float16
    assert bool((both < 0).any())
