"""What a frozen vision tower says of the clips of an evaluation: computed once for all options, questions and
checkpoints that show one, and given to the model in place of pictures.

As in training (`harness.training.stores.tower_cache`) this is done where it changes no bit: with an adapter that
keeps its tower, in float32 on a CPU. The numbers belong to the tower's weights, not to a recipe's word that they
are frozen.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from harness.data.sample import Media
    from harness.models.adapter import KeepsTower


class KeptFeatures:
    """Features of clips by their files, up to a number of bytes; beyond it they are computed for each batch.

    Attributes:
        computed: clips that a tower has read.
    """

    def __init__(self, adapter: KeepsTower, max_bytes: int = 512 * 2**20) -> None:
        self._adapter, self._max_bytes = adapter, max_bytes
        self._bytes = 0
        self._kept: dict[Media, Tensor] = {}
        self._weights = b""
        self.computed = 0

    def show(self, model: nn.Module) -> None:
        """The model that asks from now on; what another tower said is dropped."""
        weights = _digest(model)
        if weights != self._weights:
            self._weights, self._kept, self._bytes = weights, {}, 0

    def of(self, model: nn.Module, clips: Sequence[tuple[Media, Tensor]]) -> Tensor:
        """float32 [clips, ...] of clips, each with its frames, uint8 T3HW; `model` is the one that was shown."""
        absent = {media: frames for media, frames in clips if media not in self._kept}
        fresh: dict[Media, Tensor] = {}
        if absent:
            said = self._adapter.tower_features(model, list(absent.values()))
            self.computed += len(absent)
            fresh = dict(zip(absent, said, strict=True))
        answer = torch.stack([self._kept[media] if media in self._kept else fresh[media] for media, _ in clips])
        for media, features in fresh.items():
            if self._bytes + features.nbytes <= self._max_bytes:
                self._kept[media] = features.clone()
                self._bytes += features.nbytes
        return answer


def _digest(model: nn.Module) -> bytes:
    """Of every tensor below a module that is called `vision_tower`, as `harness.models.adapter` asks for."""
    digest = hashlib.blake2b()
    for name, value in model.state_dict().items():
        if "vision_tower." in name:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()
