"""Data sources: from the recipe's `data` section to samples and questions. Imports no torch."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.common.errors import DataError
from harness.config.recipe import LlavaData, ShapesData, VideoChat2Data, digest
from harness.data import shapes
from harness.data.check import Expected, Report, merged, probe, refuse
from harness.data.formats import Bad, Row, read_json, read_llava, read_videochat2
from harness.data.packed import MODALITIES, PackedSamples, Rows
from harness.data.sample import Media, Question, SamplingPolicy
from harness.data.subset import take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from harness.common.progress import Progress
    from harness.config.recipe import Data, Paths
    from harness.data.formats import MediaKind
    from harness.data.loading.frames import FrameRule
    from harness.data.sample import Sample

_JOBS: Final = 2
"""Threads that look at media files; more only where there are more cores."""
_VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_EXPECTED: Final[dict[MediaKind, Expected]] = {"video": Expected("video"), "image": Expected("image")}

ORIGINS: Final = {
    "llava": (
        "VideoInstruct100K: MBZUAI/VideoInstruct-100K on the Hugging Face hub, CC BY-SA 4.0, its videos are "
        "ActivityNet's (YouTube, fetched apart); videochatgpt_llavaimage_tune.json: the fine-tuning mix of "
        "Video-LLaVA (LanguageBind/Video-LLaVA on the hub), LLaVA's part CC BY 4.0 and OpenAI's terms"
    ),
    "videochat2_it": (
        "OpenGVLab/VideoChat2-IT on the Hugging Face hub (access is granted on its page), annotations MIT; the "
        "media are fetched from each source set under its own licence"
    ),
}
"""Where the files of a source come from, and their licences."""


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

    @property
    def media_sizes(self) -> dict[str, int]:
        """Number of samples of each medium, where every optimizer step is to see one; else of all together."""
        if self.modality is None:
            return {"all": len(self.samples)}
        numbers, sizes = np.unique(self.modality, return_counts=True)
        return {MODALITIES[number]: int(size) for number, size in zip(numbers, sizes, strict=True)}


@dataclass(frozen=True, slots=True)
class _Found:
    """Annotations as read, before anybody looked at the media."""

    root: Path
    rows: Rows
    bad: tuple[Bad, ...]
    caches: dict[Path, dict[str, Expected]]
    """Every media file by its name below root, and where is kept what is known of it."""
    questions: tuple[Question, ...] = ()
    subset: str | None = None

    @property
    def files(self) -> int:
        return sum(len(files) for files in self.caches.values())


def make_data(data: Data, paths: Paths, seed: int, progress: Progress | None = None) -> Path:
    """Make the clips of a `shapes` recipe, unless they are there; returns their folder.

    Raises:
        DataError: the source cannot be made, only brought.
    """
    if not isinstance(data, ShapesData):
        raise DataError(f"{data.source} data cannot be made here", hint=f"they come from: {ORIGINS[data.source]}")
    parent = Path(paths.data)
    if progress is None:
        return shapes.make(data, parent, seed)
    total = data.train_clips + data.test_clips + data.stage_clips
    with progress.task("render clips", total) as advance:
        return shapes.make(data, parent, seed, lambda _, done, __: advance(done))


def missing_data(data: Data, paths: Paths, seed: int) -> list[str]:
    """One line for each file or folder that is not there, with where it comes from and its licence.

    Single media files are not looked for: `open_data` and `harness data check` do that.
    """
    if isinstance(data, ShapesData):
        root = shapes.folder(data, Path(paths.data), seed)
        return [] if root.is_dir() else [f"{root}: made by `harness data make` (a few seconds, no download)"]
    base = Path(paths.data)
    origin = f"from {ORIGINS[data.source]}"
    files = [base / name for name, _ in _annotations(data)]
    folders = dict.fromkeys(base / data.media / folder for _, folder in _annotations(data))
    key = "data.media" if isinstance(data, LlavaData) else "data.annotations"
    lines = [f"{file}: named by data.annotations; {origin}" for file in files if not file.is_file()]
    return lines + [f"{folder}: named by {key}; {origin}" for folder in folders if not folder.is_dir()]


def _annotations(data: LlavaData | VideoChat2Data) -> list[tuple[str, str]]:
    """Each annotation file, relative to paths.data, and the folder of its media, relative to data.media."""
    if isinstance(data, LlavaData):
        return [(name, ".") for name in data.annotations]
    return [(annotation.file, annotation.media) for annotation in data.annotations]


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
    found = _find(data, paths, seed)
    report = _probe(found, decode=decode, fresh=False, progress=progress)
    return _assemble(data, found, report)


def check_data(
    data: Data, paths: Paths, seed: int, *, fresh: bool = False, progress: Progress | None = None
) -> Report:
    """Look at every media file, also the known ones if `fresh`; damaged files are in the report, not raised.

    Records that cannot be read are listed among the damaged ones.
    """
    found = _find(data, paths, seed)
    report = _probe(found, decode=True, fresh=fresh, progress=progress)
    bad = tuple((row.key, row.reason) for row in found.bad)
    return Report(report.files, report.read, report.unknown, report.bytes, bad + report.damaged, report.cache)


def _find(data: Data, paths: Paths, seed: int) -> _Found:
    missing = missing_data(data, paths, seed)
    if missing:
        raise DataError("data are missing:\n  " + "\n  ".join(missing))
    if isinstance(data, ShapesData):
        return _find_shapes(data, paths, seed)
    return _find_brought(data, paths)


def _find_shapes(data: ShapesData, paths: Paths, seed: int) -> _Found:
    root = shapes.folder(data, Path(paths.data), seed)
    shapes.verify_texts(root)
    clips = {n: f for n, f in shapes.manifest(root)["files"].items() if n.endswith(".mp4")}
    files = {name: Expected("video", entry["sha256"]) for name, entry in clips.items()}
    questions = tuple(
        Question(
            key=q["key"],
            ability=q["ability"],
            media=(Media("video", root / q["video"], sha256=files[q["video"]].sha256),),
            text=q["question"],
            options=tuple(q["options"]),
            answer=q["answer"],
        )
        for q in read_json(root / "questions.json")["questions"]
    )
    rows = Rows(data.source, {name: str(entry["sha256"]) for name, entry in clips.items()})
    bad = _pack(rows, read_llava(root / "train.json", lambda name: name))
    return _Found(root, rows, tuple(bad), {_cache(paths, root.name): files}, questions)


def _find_brought(data: LlavaData | VideoChat2Data, paths: Paths) -> _Found:
    """One annotation file after the other, each packed before the next is read."""
    base = Path(paths.data)
    root = base / data.media
    find = _VideoNames(root)
    rows, bad = Rows(data.source), list[Bad]()
    for origin, (name, folder) in enumerate(_annotations(data)):
        read = read_llava(base / name, find) if data.source == "llava" else read_videochat2(base / name, folder)
        bad += _pack(rows, read, name, origin)
    subset = None
    if isinstance(data, VideoChat2Data) and data.subset is not None:
        rows, subset = take(rows, data.subset)
    caches: dict[Path, dict[str, Expected]] = {}
    for origin, files in rows.media().items():
        folder = _annotations(data)[origin][1]
        place = data.media if folder == "." else f"{data.media}/{folder}"
        known = caches.setdefault(_cache(paths, f"{data.source}-{digest(place)[:8]}"), {})
        known.update((file, _EXPECTED[kind]) for file, kind in files.items())
    return _Found(root, rows, tuple(bad), caches, subset=subset)


def _pack(rows: Rows, read: Iterable[Row | Bad], annotation: str = "", origin: int = 0) -> list[Bad]:
    """Add what can be used and give back the rest; the file's name keeps keys of different files apart."""
    bad: list[Bad] = []
    for row in read:
        if isinstance(row, Bad):
            bad.append(Bad(f"{annotation}: {row.key}" if annotation else row.key, row.reason))
        else:
            rows.add(replace(row, key=f"{annotation}#{row.key}") if annotation else row, origin)
    return bad


class _VideoNames:
    """The file of a video id: Video-ChatGPT names videos without their ending. Looks into the folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, str] | None = None

    def __call__(self, video: str) -> str:
        if self._names is None:
            files = sorted((f for f in self._root.iterdir() if f.suffix in _VIDEO_SUFFIXES), reverse=True)
            self._names = {file.stem: file.name for file in files}
        return self._names.get(video, f"{video}.mp4")


def _cache(paths: Paths, name: str) -> Path:
    return Path(paths.data) / ".checked" / f"{name}.json"


def _probe(found: _Found, *, decode: bool, fresh: bool, progress: Progress | None) -> Report:
    """One folder of media after the other, so that what is known of millions of files is never read at once."""
    jobs = max(_JOBS, (os.cpu_count() or 1) // 2)
    reports: list[Report] = []
    bar = progress.task("check media", found.files) if progress is not None else nullcontext(lambda _: None)
    with bar as advance:
        done = 0
        for cache, files in found.caches.items():
            tell = partial(_advance, advance, done)
            reports.append(probe(found.root, files, cache, decode=decode, fresh=fresh, jobs=jobs, advance=tell))
            done += len(files)
            advance(done)
    return merged(reports, next(iter(found.caches), found.root))


def _advance(advance: Callable[[int], None], before: int, done: int) -> None:
    advance(before + done)


def _assemble(data: Data, found: _Found, report: Report) -> DataSet:
    damaged = dict(report.damaged)
    dropped = [(row.key, row.reason) for row in found.bad]
    rows = found.rows
    if damaged:
        reasons = {i: next((n for n in rows.files(i) if n in damaged), None) for i in range(len(rows))}
        dropped += [(rows.key(i), f"{name}: {damaged[name]}") for i, name in reasons.items() if name is not None]
        rows = rows.taken(i for i, name in reasons.items() if name is None)
    _judge(data, found, report, dropped)
    if not len(rows):
        raise DataError(f"{found.root}: no usable sample in the annotations of data.source {data.source}")
    samples = PackedSamples(found.root, rows)
    excluded = tuple(sorted(dropped))
    told = [[q.key, q.text, *q.options, q.answer] for q in found.questions]
    identity: list[Any] = [data.source, samples.digest(), told, [key for key, _ in excluded]]
    if isinstance(data, VideoChat2Data) and data.subset is not None:
        identity.append(data.subset.model_dump(mode="json"))
    one_medium = isinstance(data, VideoChat2Data) and data.batches == "one_medium"
    return DataSet(
        source=data.source,
        root=found.root,
        samples=samples,
        questions=found.questions,
        excluded=excluded,
        fingerprint=digest(identity),
        frames=data.frames,
        blank=data.size if isinstance(data, ShapesData) else 224,
        sampling=_sampling_policy(data),
        modality=samples.modality if one_medium else None,
        subset=found.subset,
    )


def _sampling_policy(data: Data) -> SamplingPolicy:
    if not isinstance(data, VideoChat2Data):
        return SamplingPolicy()
    rule: FrameRule = "random" if data.frame_sampling == "random" else "middle"
    return SamplingPolicy(rule, data.shuffle_turns, augment=data.augment == "official")


def _judge(data: Data, found: _Found, report: Report, dropped: Sequence[tuple[str, str]]) -> None:
    """Refuse damaged data, unless the recipe says that damaged samples are left out."""
    made = isinstance(data, ShapesData)
    again = f"delete {found.root} and run `harness data make`"
    if made and report.damaged:
        trained = {name for files in found.rows.media().values() for name in files}
        if any(name not in trained for name, _ in report.damaged):
            raise refuse(report, "clips are damaged, some of them held out", again)
    if dropped and data.damaged == "refuse":
        hint = again if made else "fetch them again, or leave their samples out with data.damaged=exclude"
        if report.damaged:
            raise refuse(report, f"media files below {found.root} are damaged", hint)
        bad = Report(len(found.rows) + len(found.bad), 0, 0, 0, tuple(dropped), report.cache)
        raise refuse(bad, "records cannot be used", hint.replace("fetch them again", "mend the annotations"))
