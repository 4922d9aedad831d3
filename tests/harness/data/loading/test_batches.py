"""Windows of batches: the same for any number of loading processes and from any step, with failures in the open."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from harness.common.errors import DataError
from harness.config.data import ShapesData
from harness.config.recipe import Paths
from harness.data.loading import batches, epoch_view, read_ahead
from harness.data.loading.batches import load, text_batches, windows
from harness.data.loading.errors import VideoError
from harness.data.loading.video import read_frames
from harness.data.sampler import Sampler
from harness.data.sources import DataSet, make_data, open_data
from harness.models.tiny.processor import TinyProcessor, train_tokenizer
from regate.types import IGNORE, Kind

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.sample import Batch, Media

DATA = ShapesData(source="shapes", train_clips=200, test_clips=1, stage_clips=1, size=32)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_data(DATA, Paths(data=str(folder)), 0)
    return folder


@pytest.fixture(scope="module")
def dataset(pristine: Path) -> DataSet:
    return open_data(DATA, Paths(data=str(pristine)), 0)


@pytest.fixture(scope="module")
def processor(dataset: DataSet) -> TinyProcessor:
    tokenizer = train_tokenizer(turn.text for sample in dataset.samples for turn in sample.turns)
    return TinyProcessor(tokenizer, frames=8, size=32, visual_tokens=4)


@pytest.fixture(scope="module")
def sampler(dataset: DataSet) -> Sampler:
    return Sampler(len(dataset.samples), global_batch=8, micro_batch=4, seed=0)


def _same(one: list[list[Batch]], other: list[list[Batch]]) -> bool:
    pairs = [(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
    return all(
        torch.equal(a.sample_ids_B, b.sample_ids_B)
        and a.inputs.keys() == b.inputs.keys()
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        and torch.equal(a.layout.labels_BS, b.layout.labels_BS)
        and torch.equal(a.layout.kind_BS, b.layout.kind_BS)
        and torch.equal(a.layout.ordinal_BS, b.layout.ordinal_BS)
        for a, b in pairs
    )


@pytest.fixture(scope="module")
def expected(dataset: DataSet, processor: TinyProcessor, sampler: Sampler) -> list[list[Batch]]:
    return list(windows(dataset, processor, sampler, start=0, stop=80, workers=0))


def test_windows_hold_what_the_sampler_says(expected: list[list[Batch]], dataset: DataSet, sampler: Sampler) -> None:
    assert len(expected) == 80  # past the end of the first epoch
    for step, window in enumerate(expected):
        ids = [[dataset.samples[i].id for i in row] for row in sampler.window(step)]
        assert [batch.sample_ids_B.tolist() for batch in window] == ids
        assert all(batch.inputs["pixel_values"].shape == (4, 8, 3, 32, 32) for batch in window)


@pytest.mark.parametrize(("workers", "room"), [(0, 0), (1, 1 << 20), (2, 1)])
def test_workers_and_resuming_change_nothing_and_no_random_number_is_drawn(
    workers: int,
    room: int,
    expected: list[list[Batch]],
    dataset: DataSet,
    processor: TinyProcessor,
    sampler: Sampler,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither when the loading processes may hold no more ready than what is waited for."""
    monkeypatch.setattr(read_ahead, "MOST_BYTES", room)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    resumed = list(windows(dataset, processor, sampler, start=70, stop=80, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert _same(resumed, expected[70:])


def test_nothing_left_to_do(dataset: DataSet, processor: TinyProcessor, sampler: Sampler) -> None:
    assert list(windows(dataset, processor, sampler, start=3, stop=3, workers=2)) == []


def test_pixels_are_those_of_the_clip(dataset: DataSet, processor: TinyProcessor) -> None:
    sample = dataset.samples[5]
    pixels = load(sample, dataset, processor).pixels
    assert pixels is not None
    assert torch.equal(pixels, read_frames(sample.media[0], frames=8))


# --- failures --------------------------------------------------------------------------------------------


@pytest.fixture
def broken(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """The data set, and a clip (three samples of six hundred) that went away after it was opened."""
    monkeypatch.setattr(batches, "_WAITS", (0.0, 0.0))
    shutil.copytree(pristine, tmp_path / "data")
    opened = open_data(DATA, Paths(data=str(tmp_path / "data")), 0)
    (opened.root / "clips/train/000007.mp4").unlink()
    return opened


def test_an_unreadable_sample_keeps_its_place_without_targets(
    broken: DataSet, expected: list[list[Batch]], processor: TinyProcessor, sampler: Sampler
) -> None:
    gone = {sample.id for sample in broken.samples if sample.key.startswith("000007/")}
    found = list(windows(broken, processor, sampler, start=0, stop=75, workers=0))
    failed = [number for window in found for batch in window for number in batch.failed]
    assert set(failed) == gone
    for window, good in zip(found, expected[:75], strict=True):
        for batch, before in zip(window, good, strict=True):
            assert torch.equal(batch.sample_ids_B, before.sample_ids_B)
            assert torch.equal(batch.input_ids_BS, before.input_ids_BS)
            lost_B = torch.tensor([number in gone for number in batch.sample_ids_B.tolist()])
            assert bool((batch.layout.labels_BS[lost_B] == IGNORE).all())
            assert not bool((batch.layout.kind_BS[lost_B] == Kind.TARGET).any())
            assert bool((batch.layout.ordinal_BS[lost_B] == -1).all())
            assert torch.equal(batch.layout.labels_BS[~lost_B], before.layout.labels_BS[~lost_B])
            assert torch.equal(batch.layout.kind_BS != Kind.PAD, before.layout.kind_BS != Kind.PAD)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_failures_stop_the_run(
    workers: int, broken: DataSet, processor: TinyProcessor, sampler: Sampler
) -> None:
    (broken.root / "clips/train/000008.mp4").write_bytes(b"x")
    words = r"of 600 samples cannot be read, more than 0.5 %:\n  00000[78]/.*(not there|cannot be)"
    with pytest.raises(DataError, match=words) as caught:
        list(windows(broken, processor, sampler, start=0, stop=75, workers=workers))
    assert "Traceback" not in str(caught.value)


def test_a_file_is_tried_three_times(
    dataset: DataSet, processor: TinyProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_WAITS", (0.0, 0.0))
    calls: list[Media] = []

    def flaky(media: Media, *, frames: int, **settings: Any) -> torch.Tensor:
        calls.append(media)
        if len(calls) < 3:
            raise VideoError("busy")
        return read_frames(media, frames=frames, **settings)

    monkeypatch.setattr(epoch_view, "read_frames", flaky)
    assert not load(dataset.samples[0], dataset, processor).failed
    assert len(calls) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_processor_refuses_is_raised_as_it_is(
    workers: int, dataset: DataSet, processor: TinyProcessor, sampler: Sampler
) -> None:
    short = replace(processor, max_length=8)
    with pytest.raises(DataError) as caught:
        list(windows(dataset, short, sampler, start=0, stop=1, workers=workers))
    assert "more than 8" in str(caught.value)
    assert "Traceback" not in str(caught.value)


# --- text for the teacher --------------------------------------------------------------------------------


def test_text_batches_hold_every_sample_once_within_the_budget(dataset: DataSet, processor: TinyProcessor) -> None:
    skip = {sample.id for sample in dataset.samples[10:20]}
    seen: list[int] = []
    for batch in text_batches(dataset, processor, tokens_per_batch=500, skip=skip):
        assert "pixel_values" not in batch.inputs
        assert batch.input_ids_BS.numel() <= 500 or len(batch.sample_ids_B) == 1
        seen += batch.sample_ids_B.tolist()
    assert len(seen) == len(set(seen))
    assert set(seen) == {sample.id for sample in dataset.samples} - skip


def test_text_batches_have_the_targets_that_training_has(
    dataset: DataSet, processor: TinyProcessor, expected: list[list[Batch]]
) -> None:
    targets = {}
    for batch in text_batches(dataset, processor, tokens_per_batch=2000):
        for row, number in enumerate(batch.sample_ids_B.tolist()):
            targets[number] = batch.layout.labels_BS[row][batch.layout.target_BS[row]].tolist()
    for batch in expected[0]:
        for row, number in enumerate(batch.sample_ids_B.tolist()):
            assert targets[number] == batch.layout.labels_BS[row][batch.layout.target_BS[row]].tolist()


def test_windows_without_media_are_the_same_rows(
    expected: list[list[Batch]], dataset: DataSet, processor: TinyProcessor, sampler: Sampler
) -> None:
    (window,) = windows(dataset, processor, sampler, start=0, stop=1, workers=0, with_media=False)
    for text, full in zip(window, expected[0], strict=True):
        assert torch.equal(text.input_ids_BS, full.input_ids_BS)
        assert "pixel_values" not in text.inputs
