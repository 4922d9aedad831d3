"""Selection of the targets that stay (section 3.3): per sample, the top k by score.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GUARD = 1e-9  # floor(0.29 * 100) is 28 in floating point; the exact product is 29


def budget(count_B: Tensor, keep_ratio: float) -> Tensor:
    """k = max(1, floor(p N)) for each sample, and 0 where there is no candidate.

    Args:
        count_B: int64, N candidates of each sample.
        keep_ratio: p in (0, 1].

    Returns:
        int64 B.
    """
    k_B = (count_B.double() * keep_ratio + _GUARD).floor().long().clamp(min=1)
    return torch.minimum(k_B, count_B)


def top_k(score_BS: Tensor, candidate_BS: Tensor, keep_ratio: float) -> Tensor:
    """The `budget` candidates of highest score in each row; equal scores go to the earlier position.

    Args:
        score_BS: float, finite at candidates; read nowhere else.
        candidate_BS: bool.
        keep_ratio: p in (0, 1].

    Returns:
        bool BS, on the device of the scores; nothing is read back from it.
    """
    ranked_BS = torch.where(candidate_BS, score_BS, float("-inf"))
    order_BS = ranked_BS.sort(dim=1, descending=True, stable=True).indices
    position_S = torch.arange(score_BS.shape[1], device=score_BS.device)
    rank_BS = torch.empty_like(order_BS).scatter_(1, order_BS, position_S.expand_as(order_BS))
    k_B = budget(candidate_BS.sum(dim=1), keep_ratio)
    return candidate_BS & (rank_BS < k_B[:, None])
