"""What a data source is to the rest: where its files are, and what is read out of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from harness.data.check import Expected
from harness.data.formats import Bad, Row
from harness.data.media_folders import MediaFolders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.common.progress import Progress
    from harness.config.recipe import Paths
    from harness.data.formats import MediaKind
    from harness.data.packed import Rows
    from harness.data.sample import Question, SamplingPolicy

EXPECTED: Final[dict[MediaKind, Expected]] = {"video": Expected("video"), "image": Expected("image")}
"""What a media file has to be, where nothing more is known of it than its kind."""


@dataclass(frozen=True, slots=True)
class Annotations:
    """Annotations as read, before any media file is opened.

    Attributes:
        root: the folder that the names of the media files start at, unless they begin with the name of a root.
        bad: records that cannot be used, with the reason.
        caches: every media file by its name below root, and the file in which is kept what is known of it.
        questions: held out; empty where the source has none.
        subset: which part of the annotations these are, in words; None for all of them.
        unread: by key that is not read, the number of its records or turns.
        roots: the folders of `paths.media_roots` by name, whole paths.
        files_read: every file and folder that this was read from; where it is empty, the data set is not packed for
            later commands, which read the annotations again.
    """

    root: Path
    rows: Rows
    bad: tuple[Bad, ...]
    caches: dict[Path, dict[str, Expected]]
    questions: tuple[Question, ...] = ()
    subset: str | None = None
    unread: Mapping[str, int] = field(default_factory=dict)
    roots: Mapping[str, Path] = field(default_factory=dict)
    files_read: tuple[Path, ...] = ()

    @property
    def folders(self) -> MediaFolders:
        """Where the media files lie."""
        return MediaFolders(self.root, self.roots)

    @property
    def files(self) -> int:
        """Number of media files."""
        return sum(len(files) for files in self.caches.values())


class Source(Protocol):
    """One kind of `data.source`: made with the recipe's data section, its paths and its seed, it opens nothing."""

    @property
    def made_here(self) -> bool:
        """Whether `make` makes the files. Else the user brings them, and what is read does not depend on the seed."""

    @property
    def origin(self) -> str:
        """Where the files come from, and their licences."""

    @property
    def repositories(self) -> tuple[tuple[str, str], ...]:
        """Data sets of the Hugging Face hub that hold annotations, each with its folder below paths.data."""

    @property
    def blank(self) -> int:
        """Width and height, in pixels, of the picture that stands for media unreadable at run time."""

    @property
    def stated_samples(self) -> int | None:
        """How many samples there are by the recipe, before the files are there."""

    @property
    def stated_targets(self) -> float | None:
        """Mean number of targets of a sample by the recipe; None where it does not say."""

    @property
    def asked_subset(self) -> str | None:
        """Which part of the annotations the recipe asks for, in words; None for all of them."""

    @property
    def sampling(self) -> SamplingPolicy:
        """How the samples are shown in training."""

    @property
    def one_modality(self) -> bool:
        """Whether every optimizer step sees samples of one medium."""

    def identity(self) -> list[Any]:
        """What belongs to the data set's fingerprint beside the samples, the questions and the excluded ones."""

    def missing(self) -> list[str]:
        """One line for each file or folder that is not there, with where it comes from and its licence."""

    def make(self, progress: Progress | None) -> Path:
        """Make the files, unless they are there; returns their folder. Asked only where `made_here`."""

    def read(self) -> Annotations:
        """Read the annotations.

        Raises:
            DataError: a file is no such file; broken JSON is reported with file:line:column.
        """


def pack(rows: Rows, read: Iterable[Row | Bad], annotation: str = "", origin: int = 0) -> list[Bad]:
    """Add what can be used and give back the rest; the file's name keeps keys of different files apart."""
    bad: list[Bad] = []
    for row in read:
        if isinstance(row, Bad):
            bad.append(Bad(f"{annotation}: {row.key}" if annotation else row.key, row.reason))
        else:
            rows.add(replace(row, key=f"{annotation}#{row.key}") if annotation else row, origin)
    return bad


def cache_file(paths: Paths, name: str) -> Path:
    """Where is kept what is known of a folder's media files."""
    return Path(paths.data) / ".checked" / f"{name}.json"


def missing_files(
    files: Sequence[Path],
    folders: Sequence[Path],
    *,
    folders_key: str,
    origin: str,
    roots: Mapping[str, str] | None = None,
) -> list[str]:
    """The lines of `Source.missing` for annotation files and media folders that are brought.

    `roots` are `paths.media_roots`.

    Single media files are not looked for: opening the data and `harness data check` do that.
    """
    lines = [f"{file}: named by data.annotations; from {origin}" for file in files if not file.is_file()]
    lines += [
        f"{folder}: named by {folders_key}; from {origin}" for folder in dict.fromkeys(folders) if not folder.is_dir()
    ]
    named = [(name, folder) for name, folder in (roots or {}).items() if not Path(folder).is_dir()]
    return lines + [f"{folder}: no folder, named by paths.media_roots.{name}" for name, folder in named]
