"""Batches for training and for the teacher.

Legend: B rows, S expanded length, T frames, H and W pixels.
"""

from __future__ import annotations

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from harness.common.errors import DataError, HarnessError
from harness.common.numbers import percent
from harness.data.check import listing
from harness.data.loading.epoch_view import EpochView, clips, encode, order_of
from harness.data.loading.errors import VideoError
from harness.data.loading.read_ahead import ReadAhead, bytes_ahead
from harness.data.loading.workers import TIMEOUT_S, ignore_stop_requests, loaded, shared
from regate.types import IGNORE, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

    from torch import Tensor

    from harness.data.loading.tower_features import TowerFeatures
    from harness.data.processor import Processor
    from harness.data.sample import Batch, Encoded, Sample
    from harness.data.sampler import Sampler
    from harness.data.sources import DataSet

MAX_FAILED: Final = 0.005
"""Part of the data set that may turn out unreadable at run time before a run stops."""
_WAITS: Final = (0.05, 0.5)
"""Seconds before the second and the third attempt to read a file: a busy network disk recovers, a bad file not."""
_FIRST: Final = EpochView(seed=0, epoch=0)
_SORTED_TOGETHER: Final = 4096
"""Text-only samples that are sorted by length at a time."""


def windows(
    dataset: DataSet,
    processor: Processor,
    sampler: Sampler,
    *,
    start: int,
    stop: int,
    workers: int,
    with_media: bool = True,
    features: TowerFeatures | None = None,
) -> Generator[list[Batch], None, None]:
    """This rank's micro-batches of each optimizer step in start..stop-1, one list a step, in order.

    The batches do not depend on `workers` nor on `start`, and no global random state is touched. A sample whose
    media cannot be read, after two more attempts, keeps its place with every label -100 and is named in
    `Batch.failed`.

    Args:
        workers: loading processes, which work ahead by so many bytes (`harness.data.loading.read_ahead`); 0 loads in
            this process.
        with_media: False gives the text-only encodings of the same rows.
        features: what the frozen tower said of the samples' clips. A batch whose samples all have some holds them as
            `tower_features` in place of pictures.

    Raises:
        DataError: more than 0.5 % of the data set's samples could not be read, or the processor refuses one.
        EnvironmentProblem: shared memory or open files ran out, or nothing was loaded for ten minutes.
    """
    if stop <= start:
        return
    failed: set[int] = set()
    window: list[Batch] = []
    ahead = ReadAhead(workers, bytes_ahead(sampler.world)) if workers else None
    micro_batches = _MicroBatches(dataset, processor, sampler, start, stop, with_media, features, ahead)
    with loaded(_loader(micro_batches, workers)) as items, nullcontext() if ahead is None else closing(ahead):
        for number, item in enumerate(items):
            if ahead is not None:
                ahead.take(number)
            if isinstance(item, HarnessError):
                raise item
            batch: Batch = item
            failed.update(batch.failed)
            _stop_if_many(failed, dataset)
            window.append(batch)
            if len(window) == sampler.micro_batches:
                yield window
                window = []
    assert not window


def _loader(micro_batches: _MicroBatches, workers: int) -> DataLoader[Any]:
    """Of the micro-batches one by one, pinned where there is a GPU.

    It draws a number for its workers' seeds: from a generator of its own, so that the training's random stream is the
    same whether or not the run was stopped and resumed.
    """
    return DataLoader(
        micro_batches,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=max(2, micro_batches.sampler.micro_batches) if workers else None,
        collate_fn=_same,
        generator=torch.Generator().manual_seed(0),
        timeout=TIMEOUT_S if workers else 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_stop_requests,
    )


def text_batches(
    dataset: DataSet,
    processor: Processor,
    *,
    tokens_per_batch: int,
    skip: Collection[int] = frozenset(),
    seen: Callable[[Encoded], None] | None = None,
) -> Iterator[Batch]:
    """Text-only encodings of every sample whose id is not in `skip`, rows of like length together.

    Rows times length stays within `tokens_per_batch` positions, except for a single longer row. The batches
    depend on the data set, the processor and `skip` alone.

    Args:
        seen: is given every row, in the order of the data set.
    """
    rows: list[Encoded] = []
    for sample in dataset.samples:
        if sample.id not in skip:
            rows.append(processor.encode(sample, None))
            if seen is not None:
                seen(rows[-1])
        if len(rows) == _SORTED_TOGETHER:
            yield from _by_length(rows, processor, tokens_per_batch)
            rows = []
    yield from _by_length(rows, processor, tokens_per_batch)


def picture_batches(
    dataset: DataSet, processor: Processor, *, rows: int, media: bool = True
) -> Iterator[Batch]:
    """Every sample with its media, in the order of the data set, turns in the order of the file.

    Args:
        rows: of a batch; the last one may have fewer.
        media: False leaves the media out: the same rows as text alone.

    Raises:
        DataError: the media of a sample cannot be read.
    """
    for first in range(0, len(dataset.samples), rows):
        samples = [dataset.samples[place] for place in range(first, min(first + rows, len(dataset.samples)))]
        yield processor.collate(
            [
                encode_with_media(sample, dataset, processor) if media else processor.encode(sample, None)
                for sample in samples
            ]
        )


def encode_with_media(sample: Sample, dataset: DataSet, processor: Processor) -> Encoded:
    """A sample as the first epoch shows it.

    Raises:
        DataError: its media cannot be read at the third attempt either.
    """
    try:
        return processor.encode(sample, _decoded(sample, dataset, _FIRST))
    except VideoError as error:
        raise DataError(
            f"{sample.key}: {error}",
            hint="gate.reference.pictures reads the media of every sample: `harness data check` names all that are "
            "damaged, data.damaged: exclude leaves them out",
        ) from error


def _decoded(sample: Sample, dataset: DataSet, view: EpochView) -> list[Tensor]:
    """The sample's clips; files on a network may come at the second or third attempt.

    Raises:
        VideoError: of the last attempt.
    """
    for wait in _WAITS:
        try:
            return clips(sample, dataset.sampling, view, frames=dataset.frames, size=dataset.blank)
        except VideoError:
            time.sleep(wait)
    return clips(sample, dataset.sampling, view, frames=dataset.frames, size=dataset.blank)


def load(
    sample: Sample, dataset: DataSet, processor: Processor, view: EpochView = _FIRST, *, with_media: bool = True
) -> Encoded:
    """Decode a sample's media and encode it; after three failed attempts a row without targets.

    Args:
        view: in which pass over the data, where the data set shows its samples differently in each.
        with_media: False gives the text-only encoding of the same row.

    Raises:
        HarnessError: the processor refuses the sample.
    """
    order = order_of(sample, dataset.sampling, view)
    if not with_media:
        return encode(sample, order, processor, None)
    try:
        pictures = _decoded(sample, dataset, view)
    except VideoError:
        return _blank(sample, dataset, processor)
    return encode(sample, order, processor, pictures)


def _by_length(rows: list[Encoded], processor: Processor, tokens_per_batch: int) -> Iterator[Batch]:
    ids, lengths = [row.sample_id for row in rows], [len(row.input_ids_S) for row in rows]
    for batch in cut_into_batches(ids, lengths, tokens_per_batch):
        yield processor.collate([rows[place] for place in batch])


def cut_into_batches(ids: Sequence[int], lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """The places of the rows of each batch of `text_batches`, from the rows' ids and lengths alone."""
    for begin in range(0, len(ids), _SORTED_TOGETHER):
        places = range(begin, min(begin + _SORTED_TOGETHER, len(ids)))
        batch: list[int] = []
        for place in sorted(places, key=lambda place: (lengths[place], ids[place])):
            if batch and (len(batch) + 1) * int(lengths[place]) > tokens_per_batch:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch


def _blank(sample: Sample, dataset: DataSet, processor: Processor) -> Encoded:
    """The sample's row with black pictures and nothing supervised: zero weight in the loss."""
    black = [_black(1 if media.kind == "image" else dataset.frames, dataset.blank) for media in sample.media]
    row = processor.encode(sample, black)
    kind_S = torch.where(row.kind_S == Kind.TARGET, torch.tensor(int(Kind.PROMPT), dtype=torch.uint8), row.kind_S)
    return replace(
        row,
        labels_S=torch.full_like(row.labels_S, IGNORE),
        kind_S=kind_S,
        ordinal_S=torch.full_like(row.ordinal_S, -1),
        failed=True,
    )


def _black(frames: int, size: int) -> Tensor:
    return torch.zeros((frames, 3, size, size), dtype=torch.uint8)


def _stop_if_many(failed: set[int], dataset: DataSet) -> None:
    total = len(dataset.samples)
    if len(failed) > MAX_FAILED * total:
        head = f"the media of {len(failed)} of {total} samples cannot be read, more than {percent(MAX_FAILED, 1)}"
        lines = [(sample.key, _reason(sample, dataset)) for sample in dataset.samples if sample.id in failed]
        raise DataError(
            listing(head, lines),
            hint="the files were good when they were checked: they changed, or the disk failed to give them",
        )


def _reason(sample: Sample, dataset: DataSet) -> str:
    """Why the sample's media cannot be read now."""
    try:
        clips(sample, dataset.sampling, _FIRST, frames=dataset.frames, size=dataset.blank)
    except VideoError as error:
        return str(error)
    return "it can be read now, and could not before"


def _same(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class _MicroBatches(Dataset[Any]):
    """Item i is the i-th micro-batch of the steps start..stop-1, or the error that making it raised.

    An error travels as a value: torch would wrap one that is raised in a worker into a page of traceback.
    """

    dataset: DataSet
    processor: Processor
    sampler: Sampler
    start: int
    stop: int
    with_media: bool
    features: TowerFeatures | None
    ahead: ReadAhead | None

    def __len__(self) -> int:
        return (self.stop - self.start) * self.sampler.micro_batches

    def __getitem__(self, index: int) -> Batch | HarnessError:
        worker = get_worker_info()
        if self.ahead is None or worker is None:
            return self._made(index)
        self.ahead.wait(worker.id)
        batch = self._made(index)
        self.ahead.add(batch)
        return batch

    def _made(self, index: int) -> Batch | HarnessError:
        within, place = divmod(index, self.sampler.micro_batches)
        step = self.start + within
        view = EpochView(self.sampler.seed, self.sampler.epoch_of(step))
        try:
            places = self.sampler.window(step)[place]
            features = None if self.features is None else self.features.of(places)
            with_media = self.with_media and features is None
            samples = [self.dataset.samples[i] for i in places]
            rows = [load(sample, self.dataset, self.processor, view, with_media=with_media) for sample in samples]
            batch = self.processor.collate(rows)
            if features is not None:
                batch.inputs["tower_features"] = features
            kept = tuple(row.sample_id for row in rows if row.unshuffled)
            complete: Batch = shared(replace(batch, unshuffled=kept) if kept else batch)
        except HarnessError as error:
            return error
        return complete
