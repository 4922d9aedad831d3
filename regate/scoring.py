"""The score that ranks a sample's candidates (Eq. 3), and the ablations and controls beside it.

Legend: B rows, S expanded length. Every function returns float32 BS; only candidate positions are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from regate.config import Combine, Selection


@dataclass(frozen=True, slots=True)
class Signals:
    """What a score may read.

    Attributes:
        slot_BS: int64, a candidate's place in its sample's canonical order, -1 elsewhere.
        sample_ids_B: int64.
        reference_BS: float32, l_ref of Eq. 1, or None where the selection does not read it.
        difficulty_BS: float32, m of Eq. 2, or None likewise.
        weight: lambda of Eq. 3.
        combine: how Eq. 3 is read.
        seed, step: of the random control.
    """

    slot_BS: Tensor
    sample_ids_B: Tensor
    reference_BS: Tensor | None
    difficulty_BS: Tensor | None
    weight: float
    combine: Combine
    seed: int
    step: int

    @property
    def reference(self) -> Tensor:
        assert self.reference_BS is not None
        return self.reference_BS

    @property
    def difficulty(self) -> Tensor:
        assert self.difficulty_BS is not None
        return self.difficulty_BS


def sum_of_losses(difficulty: Tensor, reference: Tensor, weight: float) -> Tensor:
    """Eq. 3 as printed: d = m + lambda l_ref."""
    return difficulty + weight * reference


def convex_sum(difficulty: Tensor, reference: Tensor, weight: float) -> Tensor:
    """d = (1 - lambda) m + lambda l_ref: the reading under which lambda = 1 is "reference loss only" (Table 5)."""
    return (1.0 - weight) * difficulty + weight * reference


COMBINE: Mapping[Combine, Callable[[Tensor, Tensor, float], Tensor]] = {
    "sum": sum_of_losses,
    "convex": convex_sum,
}


def by_regate(signals: Signals) -> Tensor:
    """Eq. 3."""
    return COMBINE[signals.combine](signals.difficulty, signals.reference, signals.weight)


def by_reference(signals: Signals) -> Tensor:
    """l_ref alone: the ablation without the student's running loss."""
    return signals.reference


def by_difficulty(signals: Signals) -> Tensor:
    """m alone: the ablation without a teacher (lambda = 0)."""
    return signals.difficulty


def by_loss(signals: Signals) -> Tensor:
    """The student's last loss: a difficulty store with beta = 0 holds it."""
    return signals.difficulty


def by_excess(signals: Signals) -> Tensor:
    """Student loss minus reference loss: the score of RHO-1 (arXiv 2404.07965)."""
    return signals.difficulty - signals.reference


def by_chance(signals: Signals) -> Tensor:
    """A random order for each (seed, step, sample), whatever row or process the sample is in."""
    slot_BS = signals.slot_BS.numpy()
    score_BS = np.zeros(slot_BS.shape, dtype=np.float32)
    for row, sample_id in enumerate(signals.sample_ids_B.tolist()):
        draw = np.random.default_rng([signals.seed, signals.step, sample_id & (2**64 - 1)])
        values = draw.random(int(slot_BS[row].max()) + 1, dtype=np.float32)
        here = slot_BS[row] >= 0
        score_BS[row, here] = values[slot_BS[row, here]]
    return torch.from_numpy(score_BS)


def by_place(signals: Signals) -> Tensor:
    """The first k candidates of the row."""
    length = signals.slot_BS.shape[1]
    return -torch.arange(length, dtype=torch.float32).expand(signals.slot_BS.shape)


SCORES: Mapping[Selection, Callable[[Signals], Tensor]] = {
    "regate": by_regate,
    "reference": by_reference,
    "difficulty": by_difficulty,
    "loss": by_loss,
    "excess": by_excess,
    "random": by_chance,
    "first": by_place,
}
