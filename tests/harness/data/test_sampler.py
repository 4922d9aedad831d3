"""The order of the samples: a function of seed and step, whatever the ranks and wherever a run resumes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.common.errors import DataError, RecipeError
from harness.data.sampler import Sampler, steps_per_epoch


@st.composite
def _sizes(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """samples, world, micro-batch, accumulation, seed"""
    world, micro, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    samples = draw(st.integers(world * micro * accumulate, 150))
    return samples, world, micro, accumulate, draw(st.integers(0, 2**31))


def _ranks(sizes: tuple[int, int, int, int, int]) -> list[Sampler]:
    samples, world, micro, accumulate, seed = sizes
    batch = world * micro * accumulate
    return [
        Sampler(samples, global_batch=batch, micro_batch=micro, seed=seed, world=world, rank=rank)
        for rank in range(world)
    ]


def _flat(window: list[list[int]]) -> list[int]:
    return [index for row in window for index in row]


@given(_sizes())
def test_every_sample_at_most_once_an_epoch_and_only_a_rest_is_left_out(
    sizes: tuple[int, int, int, int, int],
) -> None:
    ranks = _ranks(sizes)
    for epoch in range(2):
        steps = range(epoch * ranks[0].steps_per_epoch, (epoch + 1) * ranks[0].steps_per_epoch)
        assert {ranks[0].epoch_of(step) for step in steps} == {epoch}
        seen = [index for step in steps for rank in ranks for index in _flat(rank.window(step))]
        assert len(seen) == len(set(seen))
        assert set(seen) <= set(range(sizes[0]))
        assert sizes[0] - len(seen) < ranks[0].global_batch


@given(_sizes())
def test_ranks_partition_the_window_of_one_process(sizes: tuple[int, int, int, int, int]) -> None:
    ranks = _ranks(sizes)
    samples, world, micro, accumulate, seed = sizes
    alone = Sampler(samples, global_batch=world * micro * accumulate, micro_batch=1, seed=seed)
    for step in range(3):
        windows = [rank.window(step) for rank in ranks]
        assert all(len(window) == accumulate and all(len(row) == micro for row in window) for window in windows)
        together = [index for window in windows for index in _flat(window)]
        assert sorted(together) == sorted(_flat(alone.window(step)))


@given(_sizes())
def test_micro_batches_do_not_depend_on_the_number_of_processes(sizes: tuple[int, int, int, int, int]) -> None:
    """With `loss_norm: micro_batch` the objective is a mean over micro-batches: it is the same for any number."""
    ranks = _ranks(sizes)
    samples, world, micro, accumulate, seed = sizes
    alone = Sampler(samples, global_batch=world * micro * accumulate, micro_batch=micro, seed=seed)
    for step in range(3):
        dealt = [rank.window(step)[place] for place in range(accumulate) for rank in ranks]
        assert dealt == alone.window(step)


@given(_sizes(), st.integers(0, 30))
def test_a_resumed_sampler_gives_the_rest(sizes: tuple[int, int, int, int, int], start: int) -> None:
    whole, resumed = _ranks(sizes)[-1], _ranks(sizes)[-1]
    run = [whole.window(step) for step in range(start + 5)]
    assert [resumed.window(step) for step in range(start, start + 5)] == run[start:]


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    one, other = (Sampler(100, global_batch=100, micro_batch=100, seed=seed) for seed in (0, 1))
    orders = [one.window(0)[0], one.window(1)[0], other.window(0)[0], list(range(100))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_the_order_of_a_seed_never_changes() -> None:
    """Resuming with another version of the code must not reorder the data."""
    assert Sampler(10, global_batch=5, micro_batch=5, seed=0).window(0) == [[4, 6, 2, 7, 3]]


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"32 is not a multiple of 3 processes x train\.micro_batch 4"):
        Sampler(100, global_batch=32, micro_batch=4, seed=0, world=3)
    with pytest.raises(DataError, match="31 samples do not fill one global batch of 32"):
        Sampler(31, global_batch=32, micro_batch=4, seed=0)


# --- one medium a step -----------------------------------------------------------------------------------


@st.composite
def _grouped(draw: st.DrawFn) -> tuple[tuple[int, int, int, int, int], np.ndarray]:
    """As `_sizes`, with a medium for each sample; every medium fills a global batch."""
    world, micro, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    batch = world * micro * accumulate
    sizes = draw(st.lists(st.integers(batch, batch * 5), min_size=1, max_size=3))
    groups = np.repeat(np.array([0, 1, 2][: len(sizes)], np.uint8), sizes)
    np.random.default_rng(draw(st.integers(0, 99))).shuffle(groups)
    return (sum(sizes), world, micro, accumulate, draw(st.integers(0, 2**31))), groups


@settings(deadline=None)
@given(_grouped())
def test_a_step_sees_one_medium_on_every_rank_and_every_sample_comes_once(
    case: tuple[tuple[int, int, int, int, int], np.ndarray],
) -> None:
    (samples, world, micro, accumulate, seed), groups = case
    batch = world * micro * accumulate
    ranks = [
        Sampler(samples, global_batch=batch, micro_batch=micro, seed=seed, world=world, rank=rank, groups=groups)
        for rank in range(world)
    ]
    per_epoch = sum(int((groups == group).sum()) // batch for group in np.unique(groups))
    assert ranks[0].steps_per_epoch == per_epoch == steps_per_epoch(np.unique_counts(groups).counts.tolist(), batch)
    for epoch in range(2):
        seen: list[int] = []
        steps = Counter[int]()
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            chosen = [index for rank in ranks for index in _flat(rank.window(step))]
            (group,) = set(groups[chosen].tolist())
            steps[group] += 1
            seen += chosen
        assert len(seen) == len(set(seen))
        assert steps == {int(group): int((groups == group).sum()) // batch for group in np.unique(groups)}


@settings(deadline=None)
@given(_grouped(), st.integers(0, 12))
def test_ranks_and_resuming_change_no_step_of_one_medium(
    case: tuple[tuple[int, int, int, int, int], np.ndarray], start: int
) -> None:
    (samples, world, micro, accumulate, seed), groups = case
    batch = world * micro * accumulate
    alone = Sampler(samples, global_batch=batch, micro_batch=1, seed=seed, groups=groups)
    run = [alone.window(step) for step in range(start + 3)]
    for step in range(start, start + 3):
        windows = [
            Sampler(
                samples, global_batch=batch, micro_batch=micro, seed=seed, world=world, rank=rank, groups=groups
            ).window(step)
            for rank in range(world)
        ]
        assert sorted(i for window in windows for i in _flat(window)) == sorted(_flat(run[step]))


def test_media_are_mixed_over_the_epoch_and_not_one_after_the_other() -> None:
    groups = np.repeat(np.array([1, 2], np.uint8), 400)
    sampler = Sampler(800, global_batch=8, micro_batch=8, seed=0, groups=groups)
    for epoch in range(2):
        order = [int(groups[sampler.window(epoch * 100 + step)[0][0]]) for step in range(100)]
        assert 30 < sum(a != b for a, b in pairwise(order)) < 70


def test_a_medium_that_fills_no_step_is_refused() -> None:
    """It would never be seen, and nobody would know."""
    groups = np.array([1] * 7 + [2] * 100, np.uint8)
    with pytest.raises(
        DataError, match="7 samples, the smallest of 2 media, do not fill one global batch of 8"
    ) as caught:
        Sampler(107, global_batch=8, micro_batch=8, seed=0, groups=groups)
    assert "data.batches=mixed" in (caught.value.hint or "")


# --- by length -------------------------------------------------------------------------------------------


class _Weighed:
    """Lengths by index; every other step computes half of each."""

    def __init__(self, samples: int, seed: int) -> None:
        self.lengths = np.random.default_rng(seed).integers(1, 2000, samples)

    def whole(self, index_N: np.ndarray) -> np.ndarray:
        return self.lengths[index_N]

    def executed(self, index_N: np.ndarray, step: int) -> np.ndarray:
        return self.lengths[index_N] / (1 + step % 2)


@given(_sizes(), st.booleans())
def test_dealing_by_length_changes_nothing_but_who_computes_what(
    sizes: tuple[int, int, int, int, int], level: bool
) -> None:
    """Micro-batches are those of one process, each on one rank, and no rank has more than in turn."""
    samples, world, micro, accumulate, seed = sizes
    batch, weighed = world * micro * accumulate, _Weighed(samples, seed)

    def sampler(world: int, rank: int = 0, **more: object) -> Sampler:
        given = {"global_batch": batch, "micro_batch": micro, "seed": seed, "world": world, "rank": rank}
        return Sampler(samples, **given, **more)  # type: ignore[arg-type]

    alone = sampler(1, sizes=weighed, level=level)
    for step in range(3):
        whole = alone.window(step)
        assert sorted(_flat(whole)) == sorted(_flat(sampler(1).window(step)))
        if not level:
            assert whole == sampler(1).window(step)
        work = []
        seen = set()
        for rank in range(world):
            own = sampler(world, rank, sizes=weighed, level=level)
            window = own.window(step)
            numbers = [own.number(step, place) for place in range(accumulate)]
            assert window == [whole[number] for number in numbers]
            seen |= set(numbers)
            work.append(weighed.executed(np.array(_flat(window)), step).sum())
        assert seen == set(range(world * accumulate))
        in_turn = [weighed.executed(np.array(_flat(whole[rank::world])), step).sum() for rank in range(world)]
        assert max(work) <= max(in_turn) + 1e-9


@given(_sizes())
def test_a_level_cut_has_no_longer_micro_batch_than_the_drawn_one(sizes: tuple[int, int, int, int, int]) -> None:
    samples, world, micro, accumulate, seed = sizes
    given = {"global_batch": world * micro * accumulate, "micro_batch": micro, "seed": seed}
    weighed = _Weighed(samples, seed)
    drawn, level = (Sampler(samples, **given, sizes=weighed, level=cut) for cut in (False, True))  # type: ignore[arg-type]
    for step in range(3):
        longest = [max(weighed.whole(np.array(row)).sum() for row in s.window(step)) for s in (level, drawn)]
        assert longest[0] <= longest[1]


def test_micro_batches_are_numbered_in_the_global_batch_where_they_are_dealt_in_turn() -> None:
    sampler = Sampler(24, global_batch=12, micro_batch=2, seed=0, world=3, rank=1)
    assert [sampler.number(0, place) for place in range(2)] == [1, 4]
