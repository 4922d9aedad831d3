"""Eq. 2 on disk: journals, folding, resuming.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import regate
from regate import ConfigError, DifficultyStore, StoreError, journal
from regate.candidates import candidates_of
from tests.regate import tiny

COUNTS = {11: 3, 5: 0, 8: 4}


def layout_of(sample_id):
    labels = torch.full((1, 8), -100)
    labels[0, 2 : 2 + COUNTS[sample_id]] = 1
    return regate.layout_from_labels(labels, torch.ones_like(labels))


def create(path, **settings):
    return DifficultyStore.create(path, sample_ids=list(COUNTS), num_targets=list(COUNTS.values()), **settings)


def observe(store, step, sample_id, seen, losses):
    found = candidates_of(layout_of(sample_id))
    slots = store.index.slots(found, torch.tensor([sample_id]), store.path)
    store.append(step, slots, np.array(seen, dtype=bool), np.array(losses, dtype=np.float32))


def values(store, sample_id):
    layout = layout_of(sample_id)
    return store.values(candidates_of(layout), torch.tensor([sample_id]))[layout.target_BS].tolist()


def test_equation_2(tmp_path):
    store = create(tmp_path / "d", decay=0.75)
    observe(store, 0, 8, [1, 0, 1, 1], [4.0, 8.0, 2.0])
    assert values(store, 8) == [0, 0, 0, 0]  # read only after the fold
    store.fold()
    assert values(store, 8) == [1.0, 0.0, 2.0, 0.5]
    assert values(store, 11) == [0, 0, 0]
    observe(store, 1, 8, [1, 1, 0, 0], [4.0, 4.0])
    store.fold()
    assert values(store, 8) == [1.75, 1.0, 2.0, 0.5]  # an elided target keeps its difficulty


def test_first_loss_is_taken_whole(tmp_path):
    store = create(tmp_path / "d", decay=0.75, init="first_loss")
    assert values(store, 11) == [0, 0, 0]
    observe(store, 0, 11, [1, 1, 0], [4.0, 0.5])
    store.fold()
    assert values(store, 11) == [4.0, 0.5, 0.0]
    observe(store, 1, 11, [1, 0, 1], [8.0, 3.0])
    store.fold()
    assert values(store, 11) == [5.0, 0.5, 3.0]


def test_start_at_the_reference_loss(tmp_path):
    data = tiny.rows()
    reference = tiny.reference_store(tmp_path / "r", [data])
    config = regate.GateConfig(ema_init="reference")
    store = DifficultyStore.for_gate(tmp_path / "d", config, reference=reference)
    found = candidates_of(data.layout)
    assert torch.equal(
        store.values(found, data.sample_ids_B).nan_to_num(),
        reference.losses(data.sample_ids_B, data.layout).nan_to_num(),
    )
    with pytest.raises(ConfigError, match="needs the reference store"):
        create(tmp_path / "e", init="reference")
    with pytest.raises(StoreError, match="other samples"):
        create(tmp_path / "f", init="reference", reference=reference)


def test_a_sample_counts_once_an_epoch(tmp_path):
    store = create(tmp_path / "d", decay=0.5)
    observe(store, 3, 11, [1, 1, 1], [2.0, 2.0, 2.0])
    observe(store, 3, 11, [1, 1, 1], [8.0, 8.0, 8.0])
    observe(store, 4, 11, [1, 1, 1], [8.0, 8.0, 8.0])
    store.fold()
    assert values(store, 11) == [1.0, 1.0, 1.0]


def test_the_earliest_visit_counts_whatever_process_made_it(tmp_path):
    store = create(tmp_path / "d", decay=0.5)
    observe(store, 9, 11, [1, 1, 1], [8.0, 8.0, 8.0])
    store.state()
    other = create(tmp_path / "e", decay=0.5)
    observe(other, 2, 11, [1, 1, 1], [2.0, 2.0, 2.0])
    other.state()
    (tmp_path / "e" / "journal.e0.rank0").rename(tmp_path / "d" / "journal.e0.rank1")
    store.fold()
    assert values(store, 11) == [1.0, 1.0, 1.0]


def test_resume_forgets_what_came_after_the_checkpoint(tmp_path):
    store = create(tmp_path / "d", decay=0.5)
    observe(store, 0, 11, [1, 1, 1], [2.0, 2.0, 2.0])
    state = store.state()
    observe(store, 1, 8, [1, 1, 1, 1], [6.0] * 4)
    store.state()
    store.fold()
    observe(store, 2, 8, [1, 1, 1, 1], [6.0] * 4)
    store.state()

    again = DifficultyStore.open(tmp_path / "d")
    with pytest.raises(StoreError, match="load the checkpoint's gate state"):
        observe(again, 1, 8, [1, 1, 1, 1], [6.0] * 4)
    again.rewind(state)
    assert again.epoch == 0
    assert sorted(file.name for file in (tmp_path / "d").glob("*.e*")) == ["journal.e0.rank0", "m.e0.npy"]
    observe(again, 1, 8, [1, 1, 1, 1], [4.0] * 4)
    assert again.state()["step"] == 2
    again.fold()
    assert values(again, 11) == [1.0, 1.0, 1.0]
    assert values(again, 8) == [2.0] * 4


def test_journals_of_processes_that_are_gone_are_cut_too(tmp_path):
    store = create(tmp_path / "d")
    observe(store, 0, 11, [1, 1, 1], [2.0, 2.0, 2.0])
    state = store.state()
    observe(store, 1, 8, [1, 1, 1, 1], [6.0] * 4)
    store.state()
    own, gone = (tmp_path / "d" / f"journal.e0.rank{rank}" for rank in (0, 5))
    gone.write_bytes(own.read_bytes())
    DifficultyStore.open(tmp_path / "d").rewind(state)
    assert own.stat().st_size == gone.stat().st_size == state["offsets"]["0"]


def test_journals_of_processes_that_are_gone_belong_to_the_next_checkpoint_too(tmp_path):
    store = create(tmp_path / "d")
    observe(store, 0, 11, [1, 1, 1], [2.0, 2.0, 2.0])
    store.state()
    own, gone = (tmp_path / "d" / f"journal.e0.rank{rank}" for rank in (0, 5))
    gone.write_bytes(own.read_bytes())
    state = store.state()
    assert state["offsets"]["5"] == gone.stat().st_size
    gone.unlink()
    with pytest.raises(StoreError, match=r"journal\.e0\.rank5 has 0 whole bytes"):
        DifficultyStore.open(tmp_path / "d").rewind(state)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400), stop=st.integers(0, 5))
def test_a_record_cut_short_is_found(tmp_path_factory, cut, stop):
    folder = tmp_path_factory.mktemp("journal")
    store = create(folder / "d")
    lengths = []
    for step in range(5):
        observe(store, step, 8, [1, 0, step % 2, 1], [1.0] * (2 + step % 2))
        lengths.append(store.state()["offsets"]["0"])
    file = folder / "d" / "journal.e0.rank0"
    content = file.read_bytes()
    file.write_bytes(content[: max(0, len(content) - cut)])
    whole = sum(length <= len(content) - cut for length in lengths)
    if stop <= whole:
        assert journal.cut(file, stop, ([0, *lengths])[stop]) == ([0, *lengths])[stop]
        assert sum(1 for _ in journal.records(file)) == stop
    else:
        with pytest.raises(StoreError, match="the journal is damaged"):
            journal.cut(file, stop, ([0, *lengths])[stop])


def test_a_flipped_byte_is_found_at_the_fold(tmp_path):
    store = create(tmp_path / "d")
    observe(store, 0, 8, [1, 1, 1, 1], [1.0] * 4)
    store.state()
    file = tmp_path / "d" / "journal.e0.rank0"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="damaged after byte 0"):
        store.fold()


def test_arrays_stay_while_a_checkpoint_may_need_them(tmp_path):
    store = create(tmp_path / "d")

    def epochs():
        return sorted(int(file.name[3:-4]) for file in (tmp_path / "d").glob("m.e*.npy"))

    store.fold()
    store.fold()
    assert epochs() == [0, 1, 2]  # no checkpoint yet: the run may start again
    old = store.state()
    store.fold()
    new = store.state()
    store.fold()
    store.fold()
    assert epochs() == [2, 3, 4, 5]  # the last checkpoint may be incomplete: the one before is kept too
    DifficultyStore.open(tmp_path / "d").rewind(old)
    assert epochs() == [2]
    with pytest.raises(StoreError, match=r"the checkpoint is of epoch 3, the store has epochs \[2\]"):
        DifficultyStore.open(tmp_path / "d").rewind(new)


def test_a_used_store_is_not_started_again_in_silence(tmp_path):
    store = create(tmp_path / "d")
    create(tmp_path / "d")  # another process of the same start
    observe(store, 0, 8, [1, 1, 1, 1], [1.0] * 4)
    store.state()
    with pytest.raises(StoreError, match="observations of an earlier run"):
        create(tmp_path / "d")
    with pytest.raises(StoreError, match="another difficulty store"):
        create(tmp_path / "d", decay=0.3)


@pytest.mark.parametrize("name", ["m.e0.npy", "ids.npy", "offsets.npy", "manifest.json"])
def test_truncated_files_are_found_on_open(tmp_path, name):
    create(tmp_path / "d")
    file = tmp_path / "d" / name
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(StoreError) as error:
        DifficultyStore.open(tmp_path / "d")
    assert str(tmp_path / "d") in str(error.value)
