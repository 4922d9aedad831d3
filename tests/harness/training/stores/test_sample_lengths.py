"""Lengths of samples: counted by one pass, from whichever rows are there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import regate
from harness.common.progress import Progress
from harness.config.load import load_recipe
from harness.pipeline import prepare
from harness.training.stores.sample_lengths import (
    SampleLengths,
    lengths_path,
    needs_lengths,
    sample_lengths,
    step_sizes,
)
from harness.training.stores.target_index import index_targets
from tests.harness.worlds.tiny import tiny_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from harness.training.run import Prepared

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tiny_recipe(tmp_path_factory.mktemp("lengths")), QUIET)


def test_lengths_are_those_of_the_rows_whichever_pass_counted_them(
    run: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = run.adapter.processor()
    rows = [processor.encode(sample, None) for sample in run.data.samples]
    own, beside = tmp_path / "own", tmp_path / "beside"
    for folder in (own, beside):
        folder.mkdir()
    lengths = sample_lengths(run.data, processor, own, QUIET)
    assert lengths.positions_M.tolist() == [len(row.kind_S) for row in rows]
    assert lengths.targets_M.tolist() == [int((row.labels_S >= 0).sum()) for row in rows]
    assert lengths.visual_M.tolist() == [int((row.kind_S == regate.Kind.VISUAL).sum()) for row in rows]
    index = index_targets(run.data, processor, "targets", beside, QUIET, keep_rows=True)
    # Whichever came first, the other encodes nothing again.
    monkeypatch.setattr(type(processor), "encode", lambda *_: pytest.fail("encoded again"))
    again = sample_lengths(run.data, processor, beside, QUIET)
    assert all(np.array_equal(getattr(lengths, name), getattr(again, name)) for name in SampleLengths.__slots__)
    counted = index_targets(run.data, processor, "targets", own, QUIET)
    assert counted.num_targets.tolist() == index.num_targets.tolist()


def test_a_damaged_file_is_counted_again(run: Prepared, tmp_path: Path) -> None:
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    processor = run.adapter.processor()
    lengths = sample_lengths(run.data, processor, tmp_path, progress)
    path = lengths_path(tmp_path, run.data, processor)
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(sample_lengths(run.data, processor, tmp_path, progress).positions_M, lengths.positions_M)
    assert [line for line in said if "damaged" in line]


def test_what_a_step_computes_follows_the_gate() -> None:
    lengths = SampleLengths(*(np.array(values) for values in ([100, 60], [80, 0], [10, 40])))
    recipe = load_recipe("tiny_baseline", ())
    both = np.array([1, 0])
    assert step_sizes(recipe, lengths).executed(both, 500).tolist() == [60, 100]
    config = regate.GateConfig(keep_ratio=0.5, warmup_steps=2, dense_steps=1, cycle_steps=4, selection="random")
    gated = recipe.model_copy(update={"gate": config})
    sizes = step_sizes(gated, lengths)
    assert sizes.whole(both).tolist() == [60, 100]
    assert [sizes.executed(both, step).tolist() for step in (1, 2, 4)] == [[60, 100], [40, 95], [60, 100]]
    visual = replace(config, visual=regate.VisualConfig(0.25, "random"))
    assert step_sizes(recipe.model_copy(update={"gate": visual}), lengths).executed(both, 2).tolist() == [40, 35]
    loss_only = replace(config, execution="loss_only")
    assert step_sizes(recipe.model_copy(update={"gate": loss_only}), lengths).executed(both, 2).tolist() == [60, 100]


def test_lengths_are_needed_where_micro_batches_are_dealt_or_cut_by_them() -> None:
    def recipe(*overrides: str):  # type: ignore[no-untyped-def]
        return load_recipe("tiny_baseline", ("train.global_batch=8", "train.micro_batch=2", *overrides))

    assert not needs_lengths(recipe(), 1)
    assert needs_lengths(recipe(), 2)
    assert not needs_lengths(recipe(), 4), "one for each"
    assert not needs_lengths(recipe("devices.balance=false"), 2)
    assert not needs_lengths(recipe("train.loss_norm=square"), 2)
    assert needs_lengths(recipe("train.cut=level"), 1)
