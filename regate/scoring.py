"""The score of a batch's candidates: the signals that the selection method reads, handed to its function.

Legend: B rows, S expanded length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from regate.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from regate.config import GateConfig
    from regate.selection import SelectionMethod


def score(
    config: GateConfig,
    slot_BS: Tensor,
    sample_ids_B: Tensor,
    *,
    student_BS: Tensor | None,
    reference_BS: Tensor | None,
    seed: int,
    step: int,
) -> Tensor:
    """The score of every candidate; the highest stay.

    Args:
        slot_BS: int64, a candidate's place in its sample's canonical order, -1 elsewhere.
        sample_ids_B: int64.
        student_BS: float32, the student's losses, running or last as the method reads them; None where it reads none.
        reference_BS: float32, l_ref of Eq. 1; None where the method reads none.
        seed, step: of the random control.

    Returns:
        float32 BS on the device of the losses; only candidate positions are meant.

    Raises:
        ConfigError: the method reads losses that are not given, or a score of the caller's own raises, or gives
            something else than that.
    """
    method = config.method
    if not method.reads_reference(config.reference_weight):
        reference_BS = None
    elif reference_BS is None:
        raise ConfigError(f"selection: {config.selection_name} reads the reference losses, and none are given")
    if method.reads_student_loss and student_BS is None:
        raise ConfigError(f"selection: {config.selection_name} reads the student's losses, and none are given")
    device = slot_BS.device if student_BS is None else student_BS.device
    values: Mapping[str, Callable[[], Tensor | float | str | None]] = {
        "difficulty_BS": lambda: student_BS,
        "loss_BS": lambda: student_BS,
        "reference_BS": lambda: reference_BS,
        "weight": lambda: config.reference_weight,
        "combine": lambda: config.combine,
        "random_BS": lambda: random_values(slot_BS, sample_ids_B, seed, step).to(device),
        "position_BS": lambda: _positions(slot_BS).to(device),
    }
    signals = {name: values[name]() for name in method.signals}
    return method.score(**signals) if method.origin is None else _own_score(method, signals, slot_BS)


def _own_score(method: SelectionMethod, signals: Mapping[str, Any], slot_BS: Tensor) -> Tensor:
    """The score by a function of the caller's own: what it gives is checked before anything ranks by it."""
    try:
        score_BS: Any = method.score(**signals)
    except Exception as error:
        raise ConfigError(f"selection {method.origin} raised {type(error).__name__}: {error}") from error
    wanted = f"a float32 tensor of shape {tuple(slot_BS.shape)} is wanted"
    if not isinstance(score_BS, Tensor):
        raise ConfigError(f"selection {method.origin} gives {type(score_BS).__name__}; {wanted}")
    if score_BS.shape != slot_BS.shape or score_BS.dtype != torch.float32:
        raise ConfigError(
            f"selection {method.origin} gives {str(score_BS.dtype).removeprefix('torch.')} of shape "
            f"{tuple(score_BS.shape)}; {wanted}"
        )
    of_candidates = score_BS.detach()[slot_BS.to(score_BS.device) >= 0]
    finite = torch.isfinite(of_candidates)
    if not bool(finite.all()):
        raise ConfigError(
            f"selection {method.origin} gives {float(of_candidates[~finite][0])} for {int((~finite).sum())} of "
            f"{finite.numel()} candidates; every candidate needs a finite score"
        )
    return score_BS.detach()


def random_values(slot_BS: Tensor, sample_ids_B: Tensor, seed: int, step: int) -> Tensor:
    """Uniform in [0, 1) for each candidate, from (seed, step, sample), whatever row or process the sample is in."""
    slots_BS = slot_BS.numpy()
    values_BS = np.zeros(slots_BS.shape, dtype=np.float32)
    for row, sample_id in enumerate(sample_ids_B.tolist()):
        rng = np.random.default_rng([seed, step, sample_id & (2**64 - 1)])
        values = rng.random(int(slots_BS[row].max()) + 1, dtype=np.float32)
        candidate_S = slots_BS[row] >= 0
        values_BS[row, candidate_S] = values[slots_BS[row, candidate_S]]
    return torch.from_numpy(values_BS)


def _positions(slot_BS: Tensor) -> Tensor:
    return torch.arange(slot_BS.shape[1], dtype=torch.float32).expand(slot_BS.shape)
