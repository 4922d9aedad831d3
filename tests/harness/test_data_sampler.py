"""The order of the samples: a function of seed and step, whatever the ranks and wherever a run resumes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.sampler import Sampler
from harness.errors import DataError, RecipeError


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
