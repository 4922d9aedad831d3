"""Samples that a model's processor refuses: all of them named at once, counted as damaged, and never forgotten.

Whether a conversation can be converted is known only with the model's tokenizer, so it is found when a run is
prepared (or by `harness data check`, once the tokenizer is there). What is found is kept beside what is known of the
media, so that every later command refuses or leaves out the same samples without a tokenizer. Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.common.errors import DataError
from harness.common.files import read_json, write_json
from harness.common.hashing import digest
from harness.data.check import listing
from harness.data.packed import PackedSamples

if TYPE_CHECKING:

    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.processor import Processor
    from harness.data.sources import DataSet

SCHEMA: Final = 1
Refusals = tuple[tuple[str, str], ...]
"""(key, reason) of each sample that cannot be converted."""


class RefusedSamples(DataError):
    """Some samples cannot be converted; `refusals` has all of them."""

    def __init__(self, refusals: Refusals, total: int, *, known_from: Path | None = None) -> None:
        hint = "mend the annotations, or leave their samples out with data.damaged=exclude"
        if known_from is not None:
            hint += f" (known from {known_from}; remove it to check again)"
        super().__init__(listing(f"{len(refusals)} of {total} records cannot be used", refusals), hint=hint)
        self.refusals = refusals


def check(name: str, data: DataSet, processor: Processor, progress: Progress) -> Refusals:
    """What the processor refuses of all samples, whose media are not decoded.

    Args:
        name: the recipe's, for the progress.
    """
    refused = []
    with progress.task(f"check conversations {name}", len(data.samples)) as advance:
        for done, sample in enumerate(data.samples, start=1):
            try:
                processor.encode(sample, None)
            except DataError as error:
                refused.append((sample.key, reason(sample.key, error)))
            if done % 1000 == 0 or done == len(data.samples):
                advance(done)
    return tuple(refused)


def reason(key: str, error: DataError) -> str:
    """The error's message without the sample that it begins with."""
    return str(error).removeprefix(f"sample {key}: ")


def remember(recipe: Recipe, data: DataSet, refused: Refusals) -> None:
    """Keep what is refused of `data`, as it was opened, by the model of the recipe; nothing refused is forgotten."""
    if not refused:
        _file(recipe, data).unlink(missing_ok=True)
        return
    write_json(_file(recipe, data), {"schema": SCHEMA, "refused": [list(line) for line in refused]})


def usable(recipe: Recipe, data: DataSet) -> DataSet:
    """The data set without the samples that are known to be refused, or the same object where none is.

    Raises:
        RefusedSamples: there are some, and the recipe's data.damaged is "refuse".
    """
    path = _file(recipe, data)
    if not path.is_file():
        return data
    content = read_json(path, "samples that cannot be converted")
    refused = tuple((str(key), str(why)) for key, why in content["refused"])
    if recipe.data.damaged == "refuse":
        raise RefusedSamples(refused, len(data.samples), known_from=path)
    return usable(recipe, left_out(data, refused))  # a toy's tokenizer is another one for other samples


def left_out(data: DataSet, refused: Refusals) -> DataSet:
    """The data set without these samples; its fingerprint says which."""
    keys = {key for key, _ in refused}
    kept = [place for place, sample in enumerate(data.samples) if sample.key not in keys]
    if not kept:
        raise RefusedSamples(refused, len(data.samples))
    assert isinstance(data.samples, PackedSamples)
    places = np.array(kept)
    return replace(
        data,
        samples=data.samples.taken(kept),
        excluded=tuple(sorted([*data.excluded, *refused])),
        fingerprint=digest([data.fingerprint, "refused", sorted(keys)]),
        modality=None if data.modality is None else data.modality[places],
    )


def _file(recipe: Recipe, data: DataSet) -> Path:
    key = digest([data.fingerprint, recipe.model.model_dump(mode="json")])
    return Path(recipe.paths.data) / ".checked" / f"refused-{key[:16]}.json"
