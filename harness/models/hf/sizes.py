"""Floating-point operations of a vision side, from its weights and the pixels that it reads. No torch.

A multiply-add counts two. Norms and element-wise work are left out, as in the usual counts. Attention is counted over
a whole picture; towers that attend in windows do less.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisionSizes:
    """What a vision side is made of.

    Attributes:
        tower_weights: of the tower's matrices that every patch meets.
        tower_hidden, tower_layers: of its attention.
        projector_weights: (weights, patches that share a row) of each matrix behind the tower.
    """

    tower_weights: int
    tower_hidden: int
    tower_layers: int
    projector_weights: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class VisionFlops:
    """Forward pass of a sample's pictures."""

    tower: float
    projector: float

    @property
    def forward(self) -> float:
        return self.tower + self.projector

    def backward_ratio(self, *, tower: bool, projector: bool) -> float:
        """Backward FLOPs over forward ones; both gradients where a part is trained, none below the lowest one."""
        work = (2 * self.tower if tower else 0.0) + (2 * self.projector if tower or projector else 0.0)
        return work / self.forward


def vision_flops(sizes: VisionSizes, patches: int, pictures: int) -> VisionFlops:
    """Forward pass over the patches of a sample.

    Args:
        pictures: among which attention is apart: frames, tiles.
    """
    linear = 2.0 * sizes.tower_weights * patches
    attention = 4.0 * sizes.tower_layers * sizes.tower_hidden * patches * (patches / max(1, pictures))
    projector = sum(2.0 * weights * patches / shared for weights, shared in sizes.projector_weights)
    return VisionFlops(linear + attention, projector)
