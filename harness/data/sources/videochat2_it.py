"""The source `videochat2_it`: an annotation file for each set of VideoChat2-IT, and the folders of their media."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.hashing import digest
from harness.data.formats import Bad, read_videochat2
from harness.data.media_folders import MediaFolders, media_roots
from harness.data.packed import Rows
from harness.data.sample import SamplingPolicy
from harness.data.sources.source import EXPECTED, Annotations, cache_file, missing_files, pack
from harness.data.subset import take

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.data import VideoChat2Data
    from harness.config.recipe import Paths
    from harness.data.check import Expected
    from harness.data.loading.frames import FrameRule


@dataclass(frozen=True, slots=True)
class VideoChat2Source:
    """Implements `harness.data.sources.source.Source`."""

    data: VideoChat2Data
    paths: Paths
    seed: int
    made_here: bool = False
    origin: str = (
        "OpenGVLab/VideoChat2-IT on the Hugging Face hub (access is granted on its page), annotations MIT; the "
        "media are fetched from each source set under its own licence"
    )
    repositories: tuple[tuple[str, str], ...] = (("OpenGVLab/VideoChat2-IT", "VideoChat2-IT"),)
    blank: int = 224

    @property
    def stated_samples(self) -> int | None:
        return self.data.samples

    @property
    def stated_targets(self) -> float | None:
        return self.data.targets_per_sample

    @property
    def asked_subset(self) -> str | None:
        subset = self.data.subset
        return None if subset is None else f"{subset.size:,} {subset.unit}, drawn by seed {subset.seed}"

    @property
    def sampling(self) -> SamplingPolicy:
        rule: FrameRule = "random" if self.data.frame_sampling == "random" else "middle"
        return SamplingPolicy(rule, self.data.shuffle_turns, augment=self.data.augment == "official")

    @property
    def one_modality(self) -> bool:
        return self.data.batches == "one_medium"

    def identity(self) -> list[Any]:
        return [] if self.data.subset is None else [self.data.subset.model_dump(mode="json")]

    def missing(self) -> list[str]:
        base = Path(self.paths.data)
        files = [base / annotation.file for annotation in self.data.annotations]
        folders = [base / self.data.media / annotation.media for annotation in self.data.annotations]
        return missing_files(
            files, folders, folders_key="data.annotations", origin=self.origin, roots=self.paths.media_roots
        )

    def make(self, progress: Progress | None) -> Path:
        raise AssertionError("brought, not made")

    def read(self) -> Annotations:
        """One annotation file after the other, each packed before the next is read."""
        base = Path(self.paths.data)
        roots = media_roots(self.paths.media_roots)
        folders = MediaFolders(base / self.data.media, roots)
        rows, bad, unread = Rows(self.data.source), list[Bad](), Counter[str]()
        for origin, annotation in enumerate(self.data.annotations):
            read = read_videochat2(base / annotation.file, annotation.media, unread, folders)
            bad += pack(rows, read, annotation.file, origin)
        subset = None
        if self.data.subset is not None:
            rows, subset = take(rows, self.data.subset)
        caches: dict[Path, dict[str, Expected]] = {}
        for origin, files in rows.media().items():
            folder = self.data.annotations[origin].media
            place = self.data.media if folder == "." else f"{self.data.media}/{folder}"
            known = caches.setdefault(cache_file(self.paths, f"{self.data.source}-{digest(place)[:8]}"), {})
            known.update((file, EXPECTED[kind]) for file, kind in files.items())
        return Annotations(
            folders.root,
            rows,
            tuple(bad),
            caches,
            subset=subset,
            unread=unread,
            roots=roots,
            files_read=tuple(base / annotation.file for annotation in self.data.annotations),
        )
