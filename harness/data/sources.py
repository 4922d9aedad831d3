"""Data sources: from the recipe's `data` section to samples and questions. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.data import shapes
from harness.data.check import Expected, Report, probe, refuse
from harness.data.formats import Bad, Row, read_json, read_llava, read_videochat2
from harness.data.packed import PackedSamples
from harness.data.sample import Media, Question, sample_id
from harness.errors import DataError
from harness.recipe import ShapesData, digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.data.sample import Sample
    from harness.progress import Progress
    from harness.recipe import Data, LlavaData, Paths, VideoChat2Data

_JOBS: Final = 2
"""Threads that look at media files; more only where there are more cores."""
_VIDEO_SUFFIXES: Final = (".mp4", ".mkv", ".webm", ".avi", ".mov")

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
    """

    source: str
    root: Path
    samples: Sequence[Sample]
    questions: tuple[Question, ...]
    excluded: tuple[tuple[str, str], ...]
    fingerprint: str
    frames: int
    blank: int = 224


@dataclass(frozen=True, slots=True)
class _Found:
    """Annotations as read, before anybody looked at the media."""

    root: Path
    cache: Path
    rows: tuple[Row, ...]
    bad: tuple[Bad, ...]
    files: dict[str, Expected]
    """Every media file, by its name below root."""
    questions: tuple[Question, ...] = ()

    def hashes(self) -> dict[str, str]:
        return {name: e.sha256 for name, e in self.files.items() if e.sha256 is not None}


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
    lines = [
        f"{base / name}: named by data.annotations; from {ORIGINS[data.source]}"
        for name in data.annotations
        if not (base / name).is_file()
    ]
    if not (base / data.media).is_dir():
        lines.append(f"{base / data.media}: named by data.media; from {ORIGINS[data.source]}")
    return lines


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
    rows = read_llava(root / "train.json", lambda name: name)
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
    good, bad = _split(rows)
    return _Found(root, _cache(paths, root.name), good, bad, files, questions)


def _find_brought(data: LlavaData | VideoChat2Data, paths: Paths) -> _Found:
    base = Path(paths.data)
    root = base / data.media
    find = _VideoNames(root)
    rows: list[Row | Bad] = []
    for name in data.annotations:
        read = read_llava(base / name, find) if data.source == "llava" else read_videochat2(base / name)
        rows += [_prefix(name, row) for row in read]
    good, bad = _split(rows)
    files = {m.name: Expected(m.kind) for row in good for m in row.media}
    return _Found(root, _cache(paths, f"{data.source}-{digest(data.media)[:8]}"), good, bad, files)


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


def _prefix(annotation: str, row: Row | Bad) -> Row | Bad:
    """Keys of different files never meet."""
    if isinstance(row, Bad):
        return Bad(f"{annotation}: {row.key}", row.reason)
    return Row(f"{annotation}#{row.key}", row.media, row.turns, row.spans)


def _split(rows: Sequence[Row | Bad]) -> tuple[tuple[Row, ...], tuple[Bad, ...]]:
    good = tuple(row for row in rows if isinstance(row, Row))
    return good, tuple(row for row in rows if isinstance(row, Bad))


def _cache(paths: Paths, name: str) -> Path:
    return Path(paths.data) / ".checked" / f"{name}.json"


def _probe(found: _Found, *, decode: bool, fresh: bool, progress: Progress | None) -> Report:
    jobs = max(_JOBS, (os.cpu_count() or 1) // 2)
    if progress is None:
        return probe(found.root, found.files, found.cache, decode=decode, fresh=fresh, jobs=jobs)
    with progress.task("check media", len(found.files)) as advance:
        report = probe(found.root, found.files, found.cache, decode=decode, fresh=fresh, jobs=jobs, advance=advance)
        advance(len(found.files))
    return report


def _assemble(data: Data, found: _Found, report: Report) -> DataSet:
    damaged = dict(report.damaged)
    dropped = [(row.key, row.reason) for row in found.bad]
    kept: list[tuple[int, Row]] = []
    for row in found.rows:
        reason = next((f"{m.name}: {damaged[m.name]}" for m in row.media if m.name in damaged), None)
        if reason is None:
            kept.append((sample_id(data.source, row.key), row))
        else:
            dropped.append((row.key, reason))
    _judge(data, found, report, dropped)
    if not kept:
        raise DataError(f"{found.root}: no usable sample in the annotations of data.source {data.source}")
    samples = PackedSamples(found.root, kept, found.hashes())
    excluded = tuple(sorted(dropped))
    told = [[q.key, q.text, *q.options, q.answer] for q in found.questions]
    identity = [data.source, samples.digest(), told, [key for key, _ in excluded]]
    return DataSet(
        source=data.source,
        root=found.root,
        samples=samples,
        questions=found.questions,
        excluded=excluded,
        fingerprint=digest(identity),
        frames=data.frames,
        blank=data.size if isinstance(data, ShapesData) else 224,
    )


def _judge(data: Data, found: _Found, report: Report, dropped: Sequence[tuple[str, str]]) -> None:
    """Refuse damaged data, unless the recipe says that damaged samples are left out."""
    made = isinstance(data, ShapesData)
    again = f"delete {found.root} and run `harness data make`"
    trained = {m.name for row in found.rows for m in row.media}
    if made and any(name not in trained for name, _ in report.damaged):
        raise refuse(report, "clips are damaged, some of them held out", again)
    if dropped and data.damaged == "refuse":
        hint = again if made else "fetch them again, or leave their samples out with data.damaged=exclude"
        if report.damaged:
            raise refuse(report, f"media files below {found.root} are damaged", hint)
        bad = Report(len(found.rows) + len(found.bad), 0, 0, 0, tuple(dropped), report.cache)
        raise refuse(bad, "records cannot be used", hint.replace("fetch them again", "mend the annotations"))
