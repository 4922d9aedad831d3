"""The answer of `data check`: every fault of a recipe's data that a run would meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.common.errors import DataError
from harness.data import conversion
from harness.data.conversion import RefusedSamples
from harness.data.records import short
from harness.data.sources import check_data, open_data

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.recipe import Recipe
    from harness.data.conversion import Refusals


def check(recipe: Recipe, progress: Progress) -> tuple[list[str], int]:
    """The lines of the answer, and how many files and records are damaged.

    Every media file is read anew by the reader of training, every part of a clip is held against the clip's length,
    and every conversation is converted by the model's own processor where the model's files are there.
    """
    report = check_data(recipe.data, recipe.paths, recipe.seed, fresh=True, progress=progress)
    remarks = list(report.remarks)
    refused: Refusals = ()
    try:
        refused = _refused(recipe, progress)
    except _NotChecked as error:
        remarks.append(f"conversations are not checked: {error}")
    damaged = [*report.damaged, *refused]
    lines = [f"{recipe.name}: {report.files:,} media files, {report.bytes:,} bytes, {len(damaged)} damaged"]
    lines += [f"  {short(name)}: {reason}" for name, reason in damaged]
    return lines + [f"  {remark}" for remark in remarks], len(damaged)


class _NotChecked(Exception):
    """The conversations cannot be checked; says why."""


def _refused(recipe: Recipe, progress: Progress) -> Refusals:
    """What the model's processor refuses; it is remembered for every later command."""
    from harness.models import adapter_for
    from harness.models.pretrained import PretrainedAdapter, check_lengths

    left = recipe.data.model_copy(update={"damaged": "exclude"})
    try:
        data = open_data(left, recipe.paths, recipe.seed)
    except DataError as error:
        raise _NotChecked(f"no sample is left ({error})") from None
    adapter = adapter_for(recipe, data)
    if adapter.missing():
        raise _NotChecked("the model's files are not there; `harness prepare` checks them once they are")
    refused: Refusals = ()
    if isinstance(adapter, PretrainedAdapter):
        try:
            check_lengths(recipe.name, data, adapter.processor(), progress)
        except RefusedSamples as error:
            refused = error.refusals
    else:
        refused = conversion.check(recipe.name, data, adapter.processor(), progress)
    conversion.remember(recipe, data, refused)
    return refused
