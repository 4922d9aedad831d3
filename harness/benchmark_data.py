"""The data of the published benchmarks below `paths.data`: where they lie, and what is missing. No torch.

Nothing is computed before all of it is there: `open_published` counts the rows, looks for every video and names what
it does not find. `docs/benchmarks.md` describes the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from harness.benchmarks import Published

FOLDER: Final = "benchmarks"


@dataclass(frozen=True, slots=True)
class PublishedData:
    """The data of a benchmark, all there.

    Attributes:
        root: the folder that holds the data of all published benchmarks.
        limit: most items of each part, None for all.
        expected: number of items that are asked, by the name of their part's task.
        digest: of the rows without their pictures, of the sizes of the row files, and of the videos' names and sizes.
    """

    benchmark: Published
    root: Path
    limit: int | None
    expected: dict[str, int]
    digest: str


def benchmarks_root(data: str) -> Path:
    """The folder of all published benchmarks' data, of a recipe's `paths.data`."""
    return Path(data) / FOLDER


def open_published(benchmark: Published, root: Path, limit: int | None = None) -> PublishedData:
    """The data of a benchmark.

    Args:
        limit: items of each part; rounded down to whole units where several items are scored as one.

    Raises:
        RecipeError: the limit is less than one unit.
        DataError: files, rows, columns or videos are missing; each is named, with its size, origin and terms.
    """
    raise NotImplementedError


def missing_published(benchmark: Published, root: Path) -> list[str]:
    """What `plan` prints while data are not there: `file: where it comes from`; empty where all of it is there."""
    raise NotImplementedError
