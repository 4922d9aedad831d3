"""Data sources: from the recipe's `data` section to samples and questions. Imports no torch.

A source is one module here that implements `source.Source`, and one line in SOURCES.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.data.check import Report, listing, merged, probe, refuse
from harness.data.loading.frames import choose, outside
from harness.data.packed import MODALITIES, PackedSamples
from harness.data.sample import Question, SamplingPolicy
from harness.data.sources import packed_set
from harness.data.sources.internvl import InternVLSource
from harness.data.sources.llava import LlavaSource
from harness.data.sources.shapes import ShapesSource
from harness.data.sources.videochat2_it import VideoChat2Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from harness.common.progress import Progress
    from harness.config.data import Data
    from harness.config.recipe import Paths
    from harness.data.sample import Sample
    from harness.data.sources.packed_set import Kept
    from harness.data.sources.source import Annotations, Source

_JOBS: Final = 2
"""Threads that look at media files; more only where there are more cores."""

SOURCES: Final[Mapping[str, Callable[[Any, Paths, int], Source]]] = {
    "shapes": ShapesSource,
    "llava": LlavaSource,
    "videochat2_it": VideoChat2Source,
    "internvl": InternVLSource,
}
"""By the name that a recipe's `data.source` gives; each takes its own section of the recipe."""


def source_of(data: Data, paths: Paths, seed: int) -> Source:
    """The source of a recipe's data; nothing is opened."""
    return SOURCES[data.source](data, paths, seed)


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a recipe trains on and is asked about.

    Attributes:
        samples: ordered by id; those excluded are not among them.
        questions: held out; empty where the source has none.
        excluded: (key, reason) of the records left out because data.damaged says so.
        fingerprint: hash of the samples' ids, text and media, of the questions, and of what is excluded.
        frames: how many frames of a video the recipe reads.
        blank: width and height of the picture that stands for media unreadable at run time.
        sampling: how samples are shown in training; not part of the fingerprint, since no target depends on it.
        modality: for each sample, an index into `packed.MODALITIES`, where every optimizer step is to see one medium;
            None where the samples are mixed.
        subset: which part of the annotations these are, in words; None for all of them.
        notes: what the annotations and files hold that is not read, one line each.
    """

    source: str
    root: Path
    samples: Sequence[Sample]
    questions: tuple[Question, ...]
    excluded: tuple[tuple[str, str], ...]
    fingerprint: str
    frames: int
    blank: int = 224
    sampling: SamplingPolicy = field(default_factory=SamplingPolicy)
    modality: NDArray[np.uint8] | None = None
    subset: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def media_sizes(self) -> dict[str, int]:
        """Number of samples of each medium, where every optimizer step is to see one; else of all together."""
        if self.modality is None:
            return {"all": len(self.samples)}
        numbers, sizes = np.unique(self.modality, return_counts=True)
        return {MODALITIES[number]: int(size) for number, size in zip(numbers, sizes, strict=True)}


def make_data(data: Data, paths: Paths, seed: int, progress: Progress | None = None) -> Path:
    """Make the files of a recipe's data, unless they are there; returns their folder.

    Raises:
        DataError: the source cannot be made, only brought.
    """
    source = source_of(data, paths, seed)
    if not source.made_here:
        raise DataError(f"{data.source} data cannot be made here", hint=f"they come from: {source.origin}")
    return source.make(progress)


def missing_data(data: Data, paths: Paths, seed: int) -> list[str]:
    """One line for each file or folder that is not there, with where it comes from and its licence.

    Single media files are not looked for: `open_data` and `harness data check` do that.
    """
    return source_of(data, paths, seed).missing()


def open_data(
    data: Data, paths: Paths, seed: int, *, decode: bool = True, progress: Progress | None = None
) -> DataSet:
    """The samples and questions of a recipe's data.

    Args:
        decode: read and decode every media file that is not known to be good; without it, only what is already
            known of the files counts.

    Raises:
        DataError: files are missing, or damaged and `data.damaged` is "refuse"; broken JSON is told with
            file:line:column. Damaged files of a made set are refused in any case where no training sample
            can be left out for them.
    """
    return DataSets().open(data, paths, seed, decode=decode, progress=progress)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A data set; `complete` says that every media file had been looked into. What it was assembled from is kept
    where it may have to be assembled again."""

    data_set: DataSet
    complete: bool
    damaged: tuple[tuple[str, str], ...] = ()
    annotations: Annotations | None = None
    began_ns: int = 0
    """When reading the annotations began, nanoseconds since 1970."""


class DataSets:
    """The data sets of one command. Recipes that train on the same data share one, which is read once."""

    def __init__(self) -> None:
        self._opened: dict[str, _Opened] = {}

    def open(
        self, data: Data, paths: Paths, seed: int, *, decode: bool = True, progress: Progress | None = None
    ) -> DataSet:
        """See `open_data`. A later call gives the same object, unless it decodes media files that an earlier one did
        not and finds damaged ones among them.
        """
        source = source_of(data, paths, seed)
        # Only what is made here depends on the seed; files that a user supplies are the same for every seed.
        own_seed = seed if source.made_here else None
        key = digest([data.model_dump(mode="json"), paths.data, paths.media_roots, own_seed])
        opened = self._opened.get(key)
        if opened is None or (decode and not opened.complete):
            opened = _open(data, paths, source, packed_set.path_of(data, paths, own_seed), opened, decode, progress)
            self._opened[key] = opened
        return opened.data_set


def _open(
    data: Data,
    paths: Paths,
    source: Source,
    path: Path,
    before: _Opened | None,
    decode: bool,
    progress: Progress | None,
) -> _Opened:
    """As it was packed by an earlier command, or read from the annotations and packed."""
    with ExitStack() as stack:
        lock = partial(packed_set.locked, path, wait=decode, progress=progress)
        annotations = None if before is None else before.annotations
        began_ns = time.time_ns() if before is None or annotations is None else before.began_ns
        if annotations is None:
            content, may_pack = _read(source, path, paths, decode, lambda: stack.enter_context(lock()))
            if isinstance(content, packed_set.Kept):
                return _of_kept(data, source, content, before)
            annotations = content
        else:
            may_pack = stack.enter_context(lock())
        opened = replace(_from_annotations(data, source, before, annotations, decode, progress), began_ns=began_ns)
        if not may_pack:
            return opened
        known = before is not None and opened.data_set is before.data_set
        return _packed(path, paths, opened, known, progress)


def _read(
    source: Source, path: Path, paths: Paths, complete: bool, lock: Callable[[], bool]
) -> tuple[Kept | Annotations, bool]:
    """What an earlier command packed; else the annotations, and whether this command may pack them."""
    _require(source)
    kept = packed_set.load(path, paths, complete=complete)
    if kept is not None:
        return kept, False
    may_pack = lock()
    kept = packed_set.load(path, paths, complete=complete)  # another command may have packed them meanwhile
    return (source.read() if kept is None else kept), may_pack


def _from_annotations(
    data: Data,
    source: Source,
    before: _Opened | None,
    annotations: Annotations,
    decode: bool,
    progress: Progress | None,
) -> _Opened:
    report = _probe(annotations, decode=decode, fresh=False, progress=progress, late=True)
    if before is not None and before.annotations is not None and report.damaged == before.damaged:
        data_set = before.data_set
    else:
        data_set = _assemble(data, source, annotations, report)
        if before is not None and data_set.fingerprint == before.data_set.fingerprint:
            data_set = before.data_set
    return _Opened(data_set, not report.unknown, report.damaged, annotations)


def _packed(path: Path, paths: Paths, opened: _Opened, known: bool, progress: Progress | None) -> _Opened:
    """Packed for later commands, and from here on mapped from that file; as it was where that cannot be, or where the
    object is `known` to others."""
    data, annotations = opened.data_set, opened.annotations
    assert annotations is not None
    assert isinstance(data.samples, PackedSamples)
    kept = packed_set.Kept(
        root=data.root,
        samples=data.samples,
        questions=data.questions,
        excluded=data.excluded,
        fingerprint=data.fingerprint,
        subset=data.subset,
        notes=data.notes,
        complete=opened.complete,
    )
    try:
        saved = packed_set.save(path, kept, annotations, paths, opened.began_ns)
    except OSError as error:
        if progress is not None:
            progress.say(f"{path}: the data cannot be packed ({error.strerror}); every command reads them anew")
        saved = False
    if saved and not known and (samples := PackedSamples.from_file(annotations.folders, path)) is not None:
        modality = None if data.modality is None else samples.modality
        opened = replace(opened, data_set=replace(data, samples=samples, modality=modality))
    return replace(opened, annotations=None) if opened.complete else opened


def _of_kept(data: Data, source: Source, kept: Kept, before: _Opened | None) -> _Opened:
    if before is not None and before.data_set.fingerprint == kept.fingerprint:
        return _Opened(before.data_set, kept.complete)
    data_set = DataSet(
        source=data.source,
        root=kept.root,
        samples=kept.samples,
        questions=kept.questions,
        excluded=kept.excluded,
        fingerprint=kept.fingerprint,
        frames=data.frames,
        blank=source.blank,
        sampling=source.sampling,
        modality=kept.samples.modality if source.one_modality else None,
        subset=kept.subset,
        notes=kept.notes,
    )
    return _Opened(data_set, kept.complete)


def check_data(
    data: Data, paths: Paths, seed: int, *, fresh: bool = False, progress: Progress | None = None
) -> Report:
    """Look at every media file, also the known ones if `fresh`; damaged files are in the report, not raised.

    Records that cannot be read, and those that ask for a part that their clip has not, are listed among the damaged
    ones; keys that are not read, among the notes.
    """
    source = source_of(data, paths, seed)
    _require(source)
    annotations = source.read()
    report = _probe(annotations, decode=True, fresh=fresh, progress=progress)
    rows = annotations.rows
    bad = tuple((row.key, row.reason) for row in annotations.bad)
    wrong = _outside(data, source, annotations, report)
    parts = tuple((rows.key(place), reason) for place, reason in sorted(wrong.items()))
    if not len(rows) and not bad:  # a run refuses such data, too
        bad = ((str(annotations.root), f"no usable sample in the annotations of data.source {data.source}"),)
    return replace(report, damaged=bad + parts + report.damaged, remarks=notes(annotations, report))


def notes(annotations: Annotations, report: Report) -> tuple[str, ...]:
    """What is not read, one line each."""
    keys = sorted(annotations.unread.items())
    lines = [f"key {key} is not read, in {_times(count, 'record')}" for key, count in keys]
    return (*lines, *(_plural(count, note) for note, count in sorted(report.notes.items())))


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _plural(count: int, note: str) -> str:
    """`note` is of one picture: "carries ..."."""
    if count == 1:
        return f"1 picture {note}"
    verb, _, rest = note.partition(" ")
    verb = {"carries": "carry", "has": "have"}[verb]
    return f"{count:,} pictures {verb} {rest.replace(' and is ', ' and are ')}"


def _outside(data: Data, source: Source, annotations: Annotations, report: Report) -> dict[int, str]:
    """By place, what is wrong with the rows whose part holds no frame of their clip."""
    rule = "middle" if source.sampling.rule == "random" else source.sampling.rule
    wrong = {}
    for place, files in annotations.rows.parts.items():
        for file in files:
            if file.name not in report.lengths:
                continue
            total, fps = report.lengths[file.name]
            if not choose(rule, data.frames, total=total, fps=fps, start=file.start, end=file.end):
                wrong[place] = f"{file.name}: {outside(file.start, file.end, total, fps)}"
    return wrong


def _require(source: Source) -> None:
    missing = source.missing()
    if missing:
        raise DataError("data are missing:\n  " + "\n  ".join(missing))


def _probe(
    annotations: Annotations, *, decode: bool, fresh: bool, progress: Progress | None, late: bool = False
) -> Report:
    """One folder of media after the other, so that what is known of millions of files is never read at once."""
    jobs = max(_JOBS, (os.cpu_count() or 1) // 2)
    reports: list[Report] = []
    parts_of = {file.name for files in annotations.rows.parts.values() for file in files}
    silent = nullcontext(lambda _: None)
    with silent if progress is None else progress.task("check media", annotations.files, late=late) as advance:
        done = 0
        for cache, files in annotations.caches.items():
            tell = partial(_advance, advance, done)
            look = partial(probe, decode=decode, fresh=fresh, jobs=jobs, advance=tell, parts_of=parts_of)
            reports.append(look(annotations.folders, files, cache))
            done += len(files)
            advance(done)
    return merged(reports, next(iter(annotations.caches), annotations.root))


def _advance(advance: Callable[[int], None], before: int, done: int) -> None:
    advance(before + done)


def _assemble(data: Data, source: Source, annotations: Annotations, report: Report) -> DataSet:
    damaged = dict(report.damaged)
    dropped = [(row.key, row.reason) for row in annotations.bad]
    rows = annotations.rows
    reasons = _outside(data, source, annotations, report)
    if damaged:
        for place in range(len(rows)):
            name = next((name for name in rows.files(place) if name in damaged), None)
            if name is not None:
                reasons[place] = f"{name}: {damaged[name]}"
    if reasons:
        dropped += [(rows.key(place), reason) for place, reason in sorted(reasons.items())]
        rows = rows.taken(place for place in range(len(rows)) if place not in reasons)
    _judge(data, source, annotations, report, dropped)
    if not len(rows):
        raise DataError(f"{annotations.root}: no usable sample in the annotations of data.source {data.source}")
    samples = PackedSamples(annotations.folders, rows)
    excluded = tuple(sorted(dropped))
    asked = [[q.key, q.text, *q.options, q.answer] for q in annotations.questions]
    identity: list[Any] = [data.source, samples.digest(), asked, [key for key, _ in excluded], *source.identity()]
    return DataSet(
        source=data.source,
        root=annotations.root,
        samples=samples,
        questions=annotations.questions,
        excluded=excluded,
        fingerprint=digest(identity),
        frames=data.frames,
        blank=source.blank,
        sampling=source.sampling,
        modality=samples.modality if source.one_modality else None,
        subset=annotations.subset,
        notes=notes(annotations, report),
    )


def _judge(
    data: Data, source: Source, annotations: Annotations, report: Report, dropped: Sequence[tuple[str, str]]
) -> None:
    """Refuse damaged data, unless the recipe says that damaged samples are left out."""
    again = f"delete {annotations.root} and run `harness data make`"
    if source.made_here and report.damaged:
        trained = {name for files in annotations.rows.media().values() for name in files}
        if any(name not in trained for name, _ in report.damaged):
            raise refuse(report, "clips are damaged, some of them held out", again)
    if not dropped or data.damaged != "refuse":
        return
    damaged = dict(report.damaged)
    records = [(key, why) for key, why in dropped if why.partition(": ")[0] not in damaged]
    total = len(annotations.rows) + len(annotations.bad)
    parts = []
    if report.damaged:
        what = f"media files below {annotations.root} are damaged"
        parts.append(listing(f"{len(report.damaged)} of {report.files} {what}", report.damaged))
    if records:
        parts.append(listing(f"{len(records)} of {total} records cannot be used", records))
    mend = "fetch them again" if report.damaged else "mend the annotations"
    hint = again if source.made_here else f"{mend}, or leave their samples out with data.damaged=exclude"
    raise DataError("\n".join(parts), hint=hint)
