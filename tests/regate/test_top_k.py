"""Section 3.3: top k per sample."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from regate.top_k import budget, top_k


@given(count=st.integers(0, 3000), percent=st.integers(1, 100))
@example(count=100, percent=29)
@example(count=50, percent=58)
def test_budget_is_the_exact_floor(count, percent):
    exact = math.floor(Fraction(percent, 100) * count)
    expected = max(1, exact) if count else 0
    assert budget(torch.tensor([count]), percent / 100).item() == expected


@given(data=st.data(), keep_ratio=st.sampled_from([0.1, 0.25, 0.5, 0.7, 1.0]))
def test_top_k_equals_a_sort_of_each_row(data, keep_ratio):
    batch, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    # Few different values, so that ties are common.
    values = data.draw(st.lists(st.integers(-2, 2), min_size=batch * length, max_size=batch * length))
    candidate = data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    score_BS = torch.tensor(values, dtype=torch.float32).view(batch, length)
    candidate_BS = torch.tensor(candidate).view(batch, length)
    kept_BS = top_k(score_BS, candidate_BS, keep_ratio)
    for row in range(batch):
        places = [place for place in range(length) if candidate_BS[row, place]]
        places.sort(key=lambda place: (-score_BS[row, place].item(), place))
        k = max(1, math.floor(Fraction(str(keep_ratio)) * len(places))) if places else 0
        assert kept_BS[row].nonzero().squeeze(1).tolist() == sorted(places[:k])


def test_scores_outside_the_candidates_are_not_read():
    score_BS = torch.tensor([[float("nan"), 1.0, float("nan"), 0.5, 9.0]])
    candidate_BS = torch.tensor([[False, True, False, True, False]])
    assert top_k(score_BS, candidate_BS, 0.5).tolist() == [[False, True, False, False, False]]


def test_half_precision_ties_are_stable():
    values = torch.from_numpy(np.full(50, 0.1, dtype=np.float16)).float()[None]
    kept = top_k(values, torch.ones(1, 50, dtype=torch.bool), 0.5)[0]
    assert kept.nonzero().squeeze(1).tolist() == list(range(25))
