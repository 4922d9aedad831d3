"""The reference store: identity, damage, resuming."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regate
from regate import MismatchError, NonFiniteLossError, ReferenceStore, ReferenceWriter, StoreError
from tests.regate import tiny


def writer_of(path, ids=(30, 10, 20), counts=(2, 3, 0), fingerprint=None):
    return ReferenceWriter.create(
        path,
        sample_ids=list(ids),
        num_targets=list(counts),
        checksums=[7] * len(ids),
        fingerprint={"tokenizer": "aaa", "teacher": "m"} if fingerprint is None else fingerprint,
    )


def full(path):
    writer = writer_of(path)
    writer.write([30, 10, 20], [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), torch.zeros(0)])
    return writer.finish()


def test_values_stand_at_their_targets(tmp_path):
    data = tiny.rows(visual=3)
    store = tiny.reference_store(tmp_path / "r", [data])
    losses_BS = store.losses(data.sample_ids_B, data.layout)
    assert torch.equal(~losses_BS.isnan(), data.layout.target_BS)
    flipped = torch.tensor([2, 1, 0])
    again_BS = store.losses(
        data.sample_ids_B[flipped],
        regate.layout_from_labels(data.layout.labels_BS[flipped], data.mask_BS[flipped]),
    )
    assert torch.equal(again_BS[flipped].nan_to_num(), losses_BS.nan_to_num())


class Counted(np.ndarray):
    """An array that counts the values which are taken out of it."""

    taken = 0

    def __getitem__(self, index):
        value = super().__getitem__(index)
        Counted.taken += np.size(value)
        return value


def test_reading_a_batch_takes_its_values_and_no_others(tmp_path):
    """However large the store is: it is mapped, and what is not asked for stays on the disk."""
    batches = [tiny.rows(seed=seed) for seed in range(8)]
    for seed, batch in enumerate(batches):
        batch.sample_ids_B += 100 * seed
    store = tiny.reference_store(tmp_path / "r", batches)
    assert isinstance(store.values, np.memmap)
    counted = replace(store, values=store.values.view(Counted), checksums_M=store.checksums_M.view(Counted))
    chosen = batches[3]
    losses_BS = counted.losses(chosen.sample_ids_B, chosen.layout)
    assert torch.equal(losses_BS.nan_to_num(), store.losses(chosen.sample_ids_B, chosen.layout).nan_to_num())
    assert Counted.taken == int(chosen.layout.target_BS.sum()) + len(chosen.sample_ids_B)
    assert Counted.taken < store.num_targets_total / 4


def test_canonical_order_survives_shuffled_turns(tmp_path):
    labels = torch.tensor([[-100, 5, 6, -100, 8, 9]])
    shown = torch.tensor([[-100, 8, 9, -100, 5, 6]])
    mask = torch.ones_like(labels)
    number, checksum = regate.store_keys(regate.layout_from_labels(labels, mask))
    writer = ReferenceWriter.create(
        tmp_path / "r", sample_ids=[1], num_targets=number, checksums=checksum, fingerprint={}
    )
    writer.write([1], [torch.tensor([0.5, 1.5, 2.5, 3.5])])
    plain = regate.layout_from_labels(shown, mask)
    layout = regate.Layout(plain.labels_BS, plain.kind_BS, torch.tensor([[-1, 2, 3, -1, 0, 1]]))
    store = writer.finish()
    assert store.losses(torch.tensor([1]), layout)[0, [1, 2, 4, 5]].tolist() == [2.5, 3.5, 0.5, 1.5]
    with pytest.raises(MismatchError):
        store.losses(torch.tensor([1]), plain)


def test_mismatch_names_sample_checksums_and_cause(tmp_path):
    data = tiny.rows()
    store = tiny.reference_store(tmp_path / "r", [data])
    labels_BS = data.layout.labels_BS.clone()
    labels_BS[1, 10] += 1
    layout = regate.layout_from_labels(labels_BS, data.mask_BS)
    here = regate.store_keys(layout)[1][1]
    stored = regate.store_keys(data.layout)[1][1]
    with pytest.raises(MismatchError) as error:
        store.losses(data.sample_ids_B, layout)
    message = str(error.value)
    assert "sample 1017" in message
    assert f"{here:08x}" in message
    assert f"{stored:08x}" in message
    assert "template" in message
    labels_BS[1, 10] = -100
    with pytest.raises(MismatchError, match="sample 1017 has 10 targets here and 11"):
        store.losses(data.sample_ids_B, regate.layout_from_labels(labels_BS, data.mask_BS))


def test_incomplete_store_says_how_much_is_missing(tmp_path):
    writer = writer_of(tmp_path / "r")
    writer.write([10], [torch.ones(3)])
    with pytest.raises(StoreError, match="2 of 3 samples have no reference loss"):
        writer.finish()
    with pytest.raises(StoreError, match="1 of 3 samples are scored"):
        ReferenceStore.open(tmp_path / "r")


def test_resuming_keeps_what_is_done(tmp_path):
    first = writer_of(tmp_path / "r")
    first.write([10], [torch.tensor([1.0, 2.0, 3.0])])
    again = writer_of(tmp_path / "r")
    assert again.done_ids() == {10}
    assert again.share(0, 1) == [10, 20, 30]
    again.write([20, 30], [torch.zeros(0), torch.tensor([4.0, 5.0])])
    assert again.finish().values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_shares_are_disjoint_and_whole(tmp_path):
    ids = list(range(5000))
    writer = writer_of(tmp_path / "r", ids, [1] * 5000)
    shares = [writer.share(rank, 3) for rank in range(3)]
    assert sorted(shares[0] + shares[1] + shares[2]) == ids


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fingerprint": {"tokenizer": "bbb", "teacher": "m"}}, "tokenizer (store 'aaa', here 'bbb')"),
        ({"fingerprint": {"tokenizer": "aaa", "teacher": "other"}}, "teacher (store 'm', here 'other')"),
        ({"ids": (30, 10, 21)}, "other samples or targets"),
        ({"counts": (2, 4, 0)}, "other samples or targets"),
    ],
)
def test_store_of_something_else_is_refused_and_kept(tmp_path, change, says):
    full(tmp_path / "r")
    before = {file.name: file.read_bytes() for file in (tmp_path / "r").iterdir()}
    with pytest.raises(StoreError) as error:
        writer_of(tmp_path / "r", **change)
    assert says in str(error.value)
    assert {file.name: file.read_bytes() for file in (tmp_path / "r").iterdir()} == before


def test_open_checks_the_expected_fingerprint(tmp_path):
    full(tmp_path / "r")
    ReferenceStore.open(tmp_path / "r", {"tokenizer": "aaa", "teacher": "m"})
    with pytest.raises(StoreError, match="teacher"):
        ReferenceStore.open(tmp_path / "r", {"tokenizer": "aaa", "teacher": "n"})


@pytest.mark.parametrize("name", ["losses.npy", "checksums.npy", "ids.npy", "offsets.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_damaged_files_are_found_on_open(tmp_path, name, damage):
    full(tmp_path / "r")
    file = tmp_path / "r" / name
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-3])
    elif damage == "gone":
        file.unlink()
    else:
        content[-1 if name != "manifest.json" else 0] ^= 0x11
        file.write_bytes(content)
    with pytest.raises(StoreError) as error:
        ReferenceStore.open(tmp_path / "r")
    assert str(tmp_path / "r") in str(error.value)


def test_wrong_losses_are_refused(tmp_path):
    writer = writer_of(tmp_path / "r")
    with pytest.raises(StoreError, match="2 losses for 3 targets"):
        writer.write([10], [torch.ones(2)])
    with pytest.raises(NonFiniteLossError, match="sample 10: the reference loss of target 1"):
        writer.write([10], [torch.tensor([1.0, float("inf"), 1.0])])
    with pytest.raises(StoreError, match="sample 11 is not in"):
        writer.write([11], [torch.ones(2)])
    assert writer.done_ids() == set()


def test_bad_indices():
    with pytest.raises(StoreError, match="occurs twice"):
        regate.index.StoreIndex.from_counts([1, 2, 1], [1, 1, 1])
    with pytest.raises(StoreError, match="negative"):
        regate.index.StoreIndex.from_counts([1], [-1])
    with pytest.raises(StoreError, match="none of the 2 samples has a target"):
        regate.index.StoreIndex.from_counts([1, 2], [0, 0])


def test_a_folder_that_is_no_store_is_not_touched(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="not a store"):
        writer_of(tmp_path / "r")
    assert [file.name for file in tmp_path.rglob("*")] == ["r", "thesis.txt"]


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), data=st.data())
def test_any_ragged_set_reads_back(tmp_path_factory, counts, data):
    ids = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(counts), max_size=len(counts), unique=True))
    path = tmp_path_factory.mktemp("store") / "r"
    layouts = {}
    for sample_id, count in zip(ids, counts, strict=True):
        labels = torch.full((1, 12), -100)
        labels[0, 2 : 2 + count] = torch.randint(0, 99, (count,))
        layouts[sample_id] = regate.layout_from_labels(labels, torch.ones_like(labels))
    keys = [regate.store_keys(layouts[sample_id]) for sample_id in ids]
    writer = ReferenceWriter.create(
        path,
        sample_ids=ids,
        num_targets=[number[0] for number, _ in keys],
        checksums=[checksum[0] for _, checksum in keys],
        fingerprint={},
    )
    values = {sample_id: torch.rand(count).half().float() for sample_id, count in zip(ids, counts, strict=True)}
    writer.write(ids, [values[sample_id] for sample_id in ids])
    store = writer.finish()
    for sample_id in ids:
        found = store.losses(torch.tensor([sample_id]), layouts[sample_id])
        assert torch.equal(found[layouts[sample_id].target_BS], values[sample_id])


def test_parquet_export(tmp_path):
    import pyarrow.parquet as pq

    full(tmp_path / "r").to_parquet(tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["sample_id"] for row in rows] == [10, 20, 30]
    assert [row["losses"] for row in rows] == [[3.0, 4.0, 5.0], [], [1.0, 2.0]]


def test_large_losses_are_held_at_the_greatest_half(tmp_path):
    writer = writer_of(tmp_path / "r")
    writer.write([30], [torch.tensor([1e6, 2.0])])
    assert np.isfinite(writer.losses[3:]).all()
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["schema"] == 1
