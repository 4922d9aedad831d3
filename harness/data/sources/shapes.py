"""The source `shapes`: rendered clips with conversations and held-out questions, made on the spot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import shapes
from harness.data.check import Expected
from harness.data.formats import read_llava
from harness.data.packed import Rows
from harness.data.records import read_json
from harness.data.sample import Media, Question, SamplingPolicy
from harness.data.sources.source import Annotations, cache_file, pack

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.data import ShapesData
    from harness.config.recipe import Paths


@dataclass(frozen=True, slots=True)
class ShapesSource:
    """Implements `harness.data.sources.source.Source`."""

    data: ShapesData
    paths: Paths
    seed: int
    made_here: bool = True
    origin: str = "made by `harness data make`"
    repositories: tuple[tuple[str, str], ...] = ()
    asked_subset: str | None = None
    stated_targets: float | None = None
    one_modality: bool = False

    @property
    def root(self) -> Path:
        return shapes.folder(self.data, Path(self.paths.data), self.seed)

    @property
    def blank(self) -> int:
        return self.data.size

    @property
    def stated_samples(self) -> int | None:
        return self.data.train_clips * shapes.CONVERSATIONS

    @property
    def sampling(self) -> SamplingPolicy:
        return SamplingPolicy()

    def identity(self) -> list[Any]:
        return []

    def missing(self) -> list[str]:
        if self.root.is_dir():
            return []
        return [f"{self.root}: made by `harness data make` (a few seconds, no download)"]

    def make(self, progress: Progress | None) -> Path:
        parent = Path(self.paths.data)
        if progress is None:
            return shapes.make(self.data, parent, self.seed)
        total = self.data.train_clips + self.data.test_clips + self.data.stage_clips
        with progress.task("render clips", total) as advance:
            return shapes.make(self.data, parent, self.seed, lambda _, done, __: advance(done))

    def read(self) -> Annotations:
        root = self.root
        shapes.verify_texts(root)
        manifest = shapes.manifest(root)["files"]
        clips = {name: entry for name, entry in manifest.items() if name.endswith(".mp4")}
        files = {name: Expected("video", entry["sha256"]) for name, entry in clips.items()}
        questions = tuple(
            Question(
                key=question["key"],
                ability=question["ability"],
                media=(Media("video", root / question["video"], sha256=files[question["video"]].sha256),),
                text=question["question"],
                options=tuple(question["options"]),
                answer=question["answer"],
            )
            for question in read_json(root / "questions.json")["questions"]
        )
        rows = Rows(self.data.source, {name: str(entry["sha256"]) for name, entry in clips.items()})
        bad = pack(rows, read_llava(root / "train.json", lambda name: name))
        read = (root / "manifest.json", *(root / name for name in manifest if name.endswith(".json")))
        caches = {cache_file(self.paths, root.name): files}
        return Annotations(root, rows, tuple(bad), caches, questions, files_read=read)
