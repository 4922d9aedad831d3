"""The source `llava`: files in the LLaVA / Video-ChatGPT conversation format, and one folder of media."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unicodedata import normalize

from harness.common.hashing import digest
from harness.data.formats import Bad, read_llava
from harness.data.media_folders import MediaFolders, media_roots
from harness.data.packed import Rows
from harness.data.sample import SamplingPolicy
from harness.data.sources.source import EXPECTED, Annotations, cache_file, missing_files, pack

if TYPE_CHECKING:
    from harness.common.progress import Progress
    from harness.config.data import LlavaData
    from harness.config.recipe import Paths

_VIDEO_SUFFIXES: Final = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".3gp", ".gif",
)  # fmt: skip
"""What a video's name may end with, in capitals too; of several files of one name the first of these is taken."""


@dataclass(frozen=True, slots=True)
class LlavaSource:
    """Implements `harness.data.sources.source.Source`."""

    data: LlavaData
    paths: Paths
    seed: int
    made_here: bool = False
    origin: str = (
        "VideoInstruct100K: MBZUAI/VideoInstruct-100K on the Hugging Face hub, CC BY-SA 4.0, its videos are "
        "ActivityNet's (YouTube, fetched apart); videochatgpt_llavaimage_tune.json: the fine-tuning mix of "
        "Video-LLaVA (LanguageBind/Video-LLaVA on the hub), LLaVA's part CC BY 4.0 and OpenAI's terms"
    )
    repositories: tuple[tuple[str, str], ...] = (("MBZUAI/VideoInstruct-100K", "videollava_sft"),)
    asked_subset: str | None = None
    blank: int = 224
    one_modality: bool = False

    @property
    def stated_samples(self) -> int | None:
        return self.data.samples

    @property
    def stated_targets(self) -> float | None:
        return self.data.targets_per_sample

    @property
    def sampling(self) -> SamplingPolicy:
        return SamplingPolicy()

    def identity(self) -> list[Any]:
        return []

    def missing(self) -> list[str]:
        base = Path(self.paths.data)
        files = [base / name for name in self.data.annotations]
        return missing_files(
            files,
            [base / self.data.media],
            folders_key="data.media",
            origin=self.origin,
            roots=self.paths.media_roots,
        )

    def make(self, progress: Progress | None) -> Path:
        raise AssertionError("brought, not made")

    def read(self) -> Annotations:
        """One annotation file after the other, each packed before the next is read."""
        base = Path(self.paths.data)
        root = base / self.data.media
        names, roots = _VideoNames(root), media_roots(self.paths.media_roots)
        folders = MediaFolders(root, roots)
        rows, bad, unread = Rows(self.data.source), list[Bad](), Counter[str]()
        for origin, name in enumerate(self.data.annotations):
            bad += pack(rows, read_llava(base / name, names, unread, folders), name, origin)
        cache = cache_file(self.paths, f"{self.data.source}-{digest(self.data.media)[:8]}")
        files = {
            file: EXPECTED[kind] for by_name in rows.media().values() for file, kind in by_name.items()
        }
        caches = {cache: files} if files else {}
        read = (*(base / name for name in self.data.annotations), root)  # names of videos are looked up in the folder
        return Annotations(root, rows, tuple(bad), caches, unread=unread, roots=roots, files_read=read)


class _VideoNames:
    """The file of a video id: Video-ChatGPT names videos without their ending. Looks into the folder once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, str] | None = None

    def __call__(self, video: str) -> str:
        if self._names is None:
            places = {suffix: place for place, suffix in enumerate(_VIDEO_SUFFIXES)}
            files = [file for file in self._root.iterdir() if file.suffix.lower() in places]
            files.sort(key=lambda file: (places[file.suffix.lower()], file.name), reverse=True)
            self._names = {normalize("NFC", file.stem): file.name for file in files}
        return self._names.get(normalize("NFC", video), f"{video}.mp4")
