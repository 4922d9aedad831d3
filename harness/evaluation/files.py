"""The data of the published benchmarks below `paths.data`: where they lie, and what is missing. No torch.

Nothing is computed before the data are complete: `open_published` counts the rows, looks for every video and names
what it does not find. `docs/benchmarks.md` describes the layout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.evaluation.rows import (
    ROWS,
    VIDEOS,
    Row,
    choose,
    chosen,
    index_name,
    part_of,
    pictures,
    read_index,
    read_rows,
    row_files,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.benchmarks import PaperBenchmark

FOLDER: Final = "benchmarks"
_SHOWN: Final = 5
_ENDINGS: Final = (".mp4", ".MP4", ".mkv")
"""Endings that lmms-eval's tasks look for in the place of `.mp4`; not each of them takes `.mkv`."""


@dataclass(frozen=True, slots=True)
class PublishedData:
    """The data of a benchmark, checked to be complete.

    Attributes:
        root: the folder that holds the data of all published benchmarks.
        limit: most items of each part, None for all.
        expected: number of items that are asked, by the name of their part's task.
        digest: of the rows without their pictures, of the sizes of the row files, and of the videos' names and sizes.
        row: number of the one row that is asked, where an item is asked alone; its part is the benchmark's only one.
    """

    benchmark: PaperBenchmark
    root: Path
    limit: int | None
    expected: dict[str, int]
    digest: str
    row: int | None = None


@dataclass(frozen=True, slots=True)
class PublishedItem:
    """An item of a benchmark, as its row has it.

    Attributes:
        part: that it counts in.
        number: of its row among those of its task of lmms-eval.
        row: without pictures.
        file, place: the row file, and the number of the row in it.
        video: the file or folder that is shown; None where the row holds pictures.
    """

    part: str
    number: int
    row: Row
    file: Path
    place: int
    video: Path | None


def benchmarks_root(data: str) -> Path:
    """The folder of all published benchmarks' data, of a recipe's `paths.data`."""
    return Path(data) / FOLDER


def open_published(benchmark: PaperBenchmark, root: Path, limit: int | None = None) -> PublishedData:
    """The data of a benchmark.

    Args:
        limit: items of each part; rounded down to whole units where several items are scored as one.

    Raises:
        RecipeError: the limit is less than one unit.
        DataError: files, rows, columns or videos are missing; each is named, with its size, origin and terms.
    """
    expected: dict[str, int] = {}
    asked: list[tuple[str, Row]] = []
    files: list[Path] = []
    everything: list[Any] = []
    row_count = 0
    for source in benchmark.parts if benchmark.group else ("",):
        paths = row_files(benchmark, root, source)
        if not paths:
            raise _absent(benchmark, root, f"no rows of {source}" if source else "no rows")
        rows = [row for path in paths for row in _checked(benchmark, path)]
        row_count += len(rows)
        _count(benchmark, root, source, choose(benchmark, rows, None))
        by_part = choose(benchmark, rows, limit)
        for part, numbers in by_part.items():
            expected[benchmark.part_task(source or part)] = len(numbers)
        asked += [(source, rows[number]) for number in chosen(by_part)]
        files += paths
        everything += [source, rows]
    if row_count != benchmark.rows:
        raise _other(benchmark, root, f"{row_count:,} rows", f"{benchmark.rows:,}")
    sizes = [[path.name, path.stat().st_size] for path in files]
    videos = _videos(benchmark, root, asked)
    ordered = {task: expected[task] for task in map(benchmark.part_task, benchmark.parts)}
    fingerprint = digest([json.loads(json.dumps(everything, default=str)), sizes, videos])
    return PublishedData(benchmark, root, limit, ordered, fingerprint)


def published_item(data: PublishedData, task: str, key: str) -> PublishedItem:
    """An item of complete data.

    Args:
        task: name of its part's task in our results.
        key: its place among the items that its task of lmms-eval asks.

    Raises:
        DataError: no such item, or files are missing.
    """
    benchmark, root = data.benchmark, data.root
    source = next((part for part in benchmark.parts if benchmark.part_task(part) == task), None)
    if source is None or not key.isdigit():
        raise DataError(f"{benchmark.name}: no item {task}/{key}")
    source = source if benchmark.group else ""
    placed = [
        (path, place, row)
        for path in row_files(benchmark, root, source)
        for place, row in enumerate(_checked(benchmark, path))
    ]
    numbers = chosen(choose(benchmark, [row for _, _, row in placed], data.limit))
    if int(key) >= len(numbers):
        raise DataError(f"{benchmark.name}: no item {key} of {task}; {len(numbers):,} are asked")
    number = numbers[int(key)]
    path, place, row = placed[number]
    part = source or part_of(benchmark, row) or ""
    if benchmark.part_task(part) != task:
        raise DataError(f"{benchmark.name}: item {key} is of {benchmark.part_task(part)}, not of {task}")
    video = None
    if benchmark.media == "video":
        folder = root / benchmark.folder / VIDEOS
        (name,) = _names(benchmark, folder, [(source, row)])
        video = _existing(folder / name) or folder / name
    return PublishedItem(part, number, row, path, place, video)


def missing_published(benchmark: PaperBenchmark, root: Path, limit: int | None = None) -> list[str]:
    """What `plan` prints while data are missing: `file: where it comes from`; empty where nothing is."""
    try:
        open_published(benchmark, root, limit)
    except DataError as error:
        if any(row_files(benchmark, root, part) for part in benchmark.parts):
            return [f"{root / benchmark.folder}: {error}"]
        return [f"{root / benchmark.folder}: {origin_words(benchmark)}"]
    return []


def origin_words(benchmark: PaperBenchmark) -> str:
    """Where the data of a benchmark come from, how large they are, and on which terms."""
    origin = benchmark.origin
    size = "size not known" if origin.gigabytes is None else f"about {origin.gigabytes:g} GB"
    return f"{origin.repository} ({origin.rows}), {size}; access: {origin.access}; licence: {origin.licence}"


def _absent(benchmark: PaperBenchmark, root: Path, what: str) -> DataError:
    folder = root / benchmark.folder
    return DataError(
        f"{benchmark.name}: {what} in {folder / ROWS}; fetch {origin_words(benchmark)}",
        hint="docs/benchmarks.md tells how the files are laid out",
    )


def _other(benchmark: PaperBenchmark, root: Path, actual: str, wanted: str) -> DataError:
    return DataError(
        f"{benchmark.name}: {root / benchmark.folder / ROWS} holds {actual}, the published split has {wanted}",
        hint=f"keep the files of the split {benchmark.split} and no others: {origin_words(benchmark)}",
    )


def _count(benchmark: PaperBenchmark, root: Path, source: str, chosen_by_part: dict[str, list[int]]) -> None:
    parts = {source: benchmark.parts[source]} if source else benchmark.parts
    for part, wanted in parts.items():
        numbers = next(iter(chosen_by_part.values()), []) if source else chosen_by_part.get(part, [])
        if len(numbers) != wanted:
            words = f" of {part}" if part else ""
            raise _other(benchmark, root, f"{len(numbers):,} items{words}", f"{wanted:,}")


def _checked(benchmark: PaperBenchmark, path: Path) -> list[Row]:
    """The rows of a file that has every column."""
    rows, columns = read_rows(path)
    lacking = [name for name in benchmark.columns.split() if name not in columns]
    if lacking:
        raise DataError(
            f"{path}: has no column {', '.join(lacking)}; it has {', '.join(sorted(columns))}",
            hint=f"these are not the rows that lmms-eval's {benchmark.task} reads: {origin_words(benchmark)}",
        )
    if benchmark.media == "image" and not pictures(path):
        raise DataError(
            f"{path}: its column image is not marked as pictures",
            hint="take the parquet files as they are on the Hub; a copy written by other tools loses the mark",
        )
    return rows


def _videos(benchmark: PaperBenchmark, root: Path, asked: Sequence[tuple[str, Row]]) -> list[tuple[str, int]]:
    """Name and size of every video that is asked about, once each.

    Raises:
        DataError: some are missing; the first five are named.
    """
    if benchmark.media == "image":
        return []
    folder = root / benchmark.folder / VIDEOS
    sizes: dict[str, int] = {}
    missing: dict[str, None] = {}
    for name in _names(benchmark, folder, asked):
        path = _existing(folder / name)
        if path is None:
            missing[name] = None
        elif name not in sizes:
            sizes[name] = _size(path)
    if missing:
        first = ", ".join(list(missing)[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{benchmark.name}: {len(missing):,} of {len(missing) + len(sizes):,} videos are missing in {folder}: "
            f"{first}{more}; fetch {origin_words(benchmark)}",
            hint="docs/benchmarks.md tells how the files are laid out",
        )
    return sorted(sizes.items())


def _names(benchmark: PaperBenchmark, folder: Path, asked: Sequence[tuple[str, Row]]) -> Iterator[str]:
    """The video of every row, below the folder of the videos."""
    if benchmark.video is None:
        yield from _indexed(benchmark, folder, [row for _, row in asked])
        return
    for part, row in asked:
        name = benchmark.video.format(**row)
        yield f"{benchmark.video_folders[part]}/{name}" if benchmark.video_folders else name


def _indexed(benchmark: PaperBenchmark, folder: Path, rows: Sequence[Row]) -> Iterator[str]:
    """The videos of rows that name a question only: the last of the index files names its video."""
    entries: dict[str, dict[str, Any]] = {}
    for name in benchmark.index_files:  # the task reads all of them, whichever it asks
        try:
            entries = read_index(folder / name)
        except FileNotFoundError:
            raise DataError(
                f"{benchmark.name}: {folder / name} is missing; fetch {origin_words(benchmark)}"
            ) from None
    for row in rows:
        index = index_name(row)
        if index not in entries:
            raise DataError(f"{benchmark.name}: {folder / benchmark.index_files[-1]} has no entry {index}")
        yield str(entries[index]["video_name"])


def _existing(path: Path) -> Path | None:
    """The video, under one of the endings that lmms-eval's tasks try."""
    tried = [path.with_suffix(ending) for ending in _ENDINGS] if path.suffix == ".mp4" else [path]
    return next((candidate for candidate in tried if candidate.is_file() or candidate.is_dir()), None)


def _size(path: Path) -> int:
    """Bytes of a file, or of the pictures in a folder: some clips are folders of frames."""
    if path.is_dir():
        return sum(picture.stat().st_size for picture in path.iterdir())
    return path.stat().st_size
