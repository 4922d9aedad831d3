"""Equal numbers, like sums."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.data.dealing import deal, imbalance


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bins, places = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(0, 4000), min_size=bins * places, max_size=bins * places))
    return np.array(sizes), bins


@given(_cases())
def test_everything_once_as_many_for_each_and_never_worse_than_in_turn(case: tuple[np.ndarray, int]) -> None:
    sizes, bins = case
    dealt = deal(sizes, bins)
    assert dealt.shape == (bins, len(sizes) // bins)
    assert sorted(dealt.reshape(-1).tolist()) == list(range(len(sizes)))
    assert np.array_equal(dealt, deal(sizes.copy(), bins))
    in_turn = np.arange(len(sizes)).reshape(-1, bins).T
    assert imbalance(sizes[dealt].sum(axis=1)) <= imbalance(sizes[in_turn].sum(axis=1))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_equal_things_are_dealt_in_turn(bins: int, places: int, size: int) -> None:
    assert deal(np.full(bins * places, size), bins)[0].tolist() == list(range(0, bins * places, bins))


def test_large_and_small_ones_are_paired() -> None:
    sizes = np.array([9, 8, 1, 2, 7, 3])
    dealt = deal(sizes, 2)
    assert sizes[dealt].sum(axis=1).tolist() == [14, 16]  # in turn 17 and 13
    assert imbalance(np.array([15, 15])) == 1.0
    assert imbalance(np.array([20, 10])) == 20 / 15
    assert imbalance(np.array([0, 0])) == 1.0


def test_log_normal_lengths_come_within_two_per_cent() -> None:
    """Eight bins of eight: in turn the largest is a quarter above the mean."""
    rng = np.random.default_rng(0)
    dealt, in_turn = [], []
    for _ in range(50):
        sizes = np.exp(rng.normal(5, 0.6, 64))
        dealt.append(imbalance(sizes[deal(sizes, 8)].sum(axis=1)))
        in_turn.append(imbalance(sizes.reshape(-1, 8).sum(axis=0)))
    assert np.mean(dealt) < 1.02
    assert np.mean(in_turn) > 1.2
