"""The features of a frozen vision tower, computed once for all runs that start from the same weights and data.

They are kept where that changes no number: a tower that is not trained, the same frames in every epoch without random
crops, float32 on a CPU, where a convolution gives the same bits whatever else is in its batch. And where they are
small: 8 frames of the tiny model are 33 KB a clip, 16 of VideoLLaMA2 some 50 MB. Both arms of a pair read the same
folder, which `prepare` makes.

Legend: M samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from harness.common.hashing import digest
from harness.data.loading.errors import VideoError
from harness.data.loading.tower_features import TowerFeatures, write_features
from harness.data.loading.video import read_frames
from harness.models import MODELS
from harness.models.adapter import KeepsTower
from harness.plan.memory import tower_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from harness.config.recipe import Recipe
    from harness.data.sample import Media
    from harness.data.sources import DataSet
    from harness.models.adapter import Adapter
    from harness.training.run import Prepared

_TOGETHER: Final = 16
"""Clips of one pass of the tower."""


def kept_tower_features(recipe: Recipe, data: DataSet, adapter: Adapter) -> TowerFeatures | None:
    """What `keep_tower_features` made; None where nothing is kept. Every process of a training opens it.

    Raises:
        DataError: it is damaged.
    """
    if not _keeps(recipe, data, adapter):
        return None
    return TowerFeatures.open(*_place(recipe, data, adapter))


def lacks_tower_features(run: Prepared) -> bool:
    """Whether features are to be kept for this run and are not there yet; they pay where its data are seen more than
    once.

    Raises:
        DataError: what is there is damaged.
    """
    recipe, data, adapter = run.recipe, run.data, run.adapter
    keeps = run.plan.epochs > 1 and _keeps(recipe, data, adapter)
    return keeps and kept_tower_features(recipe, data, adapter) is None


def keep_tower_features(run: Prepared) -> None:
    """Compute the features of every clip that a sample shows.

    A clip that cannot be read is left out: its samples are loaded as if nothing was kept.
    """
    recipe, data, adapter = run.recipe, run.data, run.adapter
    assert isinstance(adapter, KeepsTower)
    clips, rows_M = _clips(data)
    folder, made_from = _place(recipe, data, adapter)
    student = adapter.student().eval()
    with run.progress.task(f"keep tower features {recipe.name}", len(clips)) as advance:

        def chunks() -> Iterator[Tensor]:
            for first in range(0, len(clips), _TOGETHER):
                taken = clips[first : first + _TOGETHER]
                decoded = [_decoded(media, data) for media in taken]
                for place, frames in enumerate(decoded, start=first):
                    if frames is None:
                        rows_M[rows_M == place] = -1
                black = next((torch.zeros_like(frames) for frames in decoded if frames is not None), None)
                if black is None:
                    black = torch.zeros((data.frames, 3, data.blank, data.blank), dtype=torch.uint8)
                yield adapter.tower_features(student, [black if frames is None else frames for frames in decoded])
                advance(min(first + _TOGETHER, len(clips)))

        write_features(folder, len(clips), chunks(), rows_M, made_from)


def _keeps(recipe: Recipe, data: DataSet, adapter: Adapter) -> bool:
    """Whether features are kept for this run on this machine."""
    sampling = data.sampling
    same_frames = sampling.rule != "random" and not sampling.augment
    float32 = recipe.train.precision in ("auto", "float32") and not torch.cuda.is_available()
    if not (isinstance(adapter, KeepsTower) and same_frames and float32):
        return False
    size = tower_bytes(MODELS[recipe.model.adapter].footprint(recipe), len(data.samples))
    return size is not None and 0 < size <= recipe.devices.tower_cache_gb * 1e9


def _place(recipe: Recipe, data: DataSet, adapter: Adapter) -> tuple[Path, dict[str, Any]]:
    """The folder, named by all that the numbers depend on, and that."""
    made_from = {
        "data": data.fingerprint,
        "frames": data.frames,
        "rule": data.sampling.rule,
        "weights": adapter.weights_fingerprint,
        "processor": adapter.processor().fingerprint,
        # Other kernels may round otherwise.
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    return Path(recipe.paths.stores) / f"tower-{digest(made_from)[:16]}", made_from


def _clips(data: DataSet) -> tuple[list[Media], np.ndarray[Any, np.dtype[np.int64]]]:
    """The different clips of the samples that show a single one, and for each sample the number of its clip."""
    numbers: dict[Media, int] = {}
    rows_M = np.full(len(data.samples), -1, np.int64)
    for place, sample in enumerate(data.samples):
        if len(sample.media) == 1 and sample.media[0].kind == "video":
            rows_M[place] = numbers.setdefault(sample.media[0], len(numbers))
    return list(numbers), rows_M


def _decoded(media: Media, data: DataSet) -> Tensor | None:
    try:
        return read_frames(media, frames=data.frames, rule=data.sampling.rule)
    except VideoError:
        return None
