"""The rows of a published benchmark: which are asked, and what is scored together. Plain values, no torch.

The parent reads the row files without their pictures, to count and to name what is missing; the child chooses the
same rows of the loaded data set. Both by the functions here.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import re
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError, RecipeError
from harness.common.files import check_kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from harness.benchmarks import PaperBenchmark

Row = dict[str, Any]
ROWS: Final = "rows"
"""Folder of the row files, in the folder of a benchmark."""
VIDEOS: Final = "videos"
BUILDERS: Final = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
"""Ending of a row file -> the loader of `datasets` that reads it."""
_UNIT: Final = 2
"""Items of every unit of several: MME asks two questions an image, Vinoground shows a pair of videos."""


def row_files(benchmark: PaperBenchmark, root: Path, part: str) -> list[Path]:
    """The files that hold the rows of a part, of one kind and in the order of their names.

    Where a part is a task of its own these are `rows/<part>.*` or all in `rows/<part>/`, else all in `rows/`.

    Raises:
        DataError: they are of several kinds.
    """
    folder = root / benchmark.folder / ROWS
    if benchmark.group:
        candidates = [*folder.glob(f"{part}.*"), *(folder / part).rglob("*")]
    else:
        candidates = list(folder.rglob("*"))
    files = sorted(path for path in candidates if path.suffix in BUILDERS and path.is_file())
    kinds = sorted({path.suffix for path in files})
    if len(kinds) > 1:
        raise DataError(f"{folder}: holds files of several kinds ({', '.join(kinds)}); keep those of one kind")
    return files


def read_rows(path: Path) -> tuple[list[Row], set[str]]:
    """The rows of a file without their pictures, and the names of all its columns.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return _parquet(path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file)) if path.suffix == ".csv" else _json(file.read())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return rows, set().union(*(row.keys() for row in rows))


def _parquet(path: Path) -> tuple[list[Row], set[str]]:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    light = [field.name for field in schema if not _holds_bytes(field.type)]
    rows: list[Row] = pq.read_table(path, columns=light).to_pylist()
    return rows, set(schema.names)


def _holds_bytes(kind: Any) -> bool:
    """Whether a column holds pictures: bytes, or a structure or list with them."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def pictures(path: Path) -> bool:
    """Whether the column `image` of a row file is marked as pictures, so that `datasets` opens them as such."""
    if path.suffix != ".parquet":
        return False
    import pyarrow.parquet as pq

    metadata = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    feature = json.loads(metadata).get("info", {}).get("features", {}).get("image", {})
    return "Image" in json.dumps(feature)


def _json(text: str) -> list[Row]:
    """One array, or one object a line."""
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is no list of objects")
    return list(rows)


def part_of(benchmark: PaperBenchmark, row: Mapping[str, Any]) -> str | None:
    """The part that a row belongs to, where the rows tell; None for a row that is not asked."""
    if benchmark.only is not None:
        name, pattern = benchmark.only
        return next(iter(benchmark.parts)) if fnmatch.fnmatchcase(str(row[name]), pattern) else None
    if benchmark.by is None or benchmark.group:
        return next(iter(benchmark.parts))
    part = str(row[benchmark.by])
    return part if part in benchmark.parts else None


def unit_of(benchmark: PaperBenchmark, row: Mapping[str, Any]) -> str | None:
    """What a row is scored together with; None where it stands alone."""
    if benchmark.unit_column is None:
        return None
    name = str(row[benchmark.unit_column])
    return name if benchmark.unit_separator is None else name.split(benchmark.unit_separator, maxsplit=1)[0]


def index_name(row: Mapping[str, Any]) -> str:
    """The row's `idx` in the benchmark's `index_files`: its `index` without the last part, the kind of question."""
    return str(row["index"]).rpartition("_")[0]


def read_index(path: Path) -> dict[str, dict[str, Any]]:
    """One of a benchmark's `index_files`: `idx` -> its entry.

    Raises:
        FileNotFoundError: it is not there.
        DataError: it cannot be read.
    """
    check_kind(path)
    try:
        return {str(entry["idx"]): entry for entry in json.loads(path.read_text())}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def unit_columns(benchmark: PaperBenchmark) -> set[str]:
    """The columns that `part_of` and `unit_of` read."""
    names = set() if benchmark.unit_column is None else {benchmark.unit_column}
    by = set() if benchmark.by is None or benchmark.group else {benchmark.by}
    return names | by | ({benchmark.only[0]} if benchmark.only else set())


def choose(benchmark: PaperBenchmark, rows: Iterable[Mapping[str, Any]], limit: int | None) -> dict[str, list[int]]:
    """Which rows are asked: their numbers by part, in their order.

    A limit takes the first units of each part that are not more items than it.

    Raises:
        DataError: items that are scored together are not complete; the first such is named.
        RecipeError: the limit is less than one unit.
    """
    units: dict[str, dict[str, list[int]]] = {}
    for number, row in enumerate(rows):
        part = part_of(benchmark, row)
        if part is not None:
            name = unit_of(benchmark, row)
            units.setdefault(part, {}).setdefault(str(number) if name is None else name, []).append(number)
    size = 1 if benchmark.scoring.unit == "item" else _UNIT
    for part, numbers_by_unit in units.items():
        for name, numbers in numbers_by_unit.items():
            if len(numbers) != size:
                where = f" of {part}" if part else ""
                raise DataError(
                    f"{benchmark.name}: {len(numbers)} items{where} for {name}, where {size} are scored together"
                )
    if limit is not None and limit < size:
        raise RecipeError(
            f"evaluate.limit: {limit} is less than the {size} items that {benchmark.name} scores as one"
        )
    keep = None if limit is None else limit // size
    return {
        part: sorted(number for numbers in list(numbers_by_unit.values())[:keep] for number in numbers)
        for part, numbers_by_unit in units.items()
    }


def chosen(by_part: Mapping[str, Sequence[int]]) -> list[int]:
    """All numbers of `choose`, in the order of the rows."""
    return sorted(number for numbers in by_part.values() for number in numbers)


_OPTION_COLUMN: Final = re.compile(r"options?|option\d+|choices|choice_[a-z]|candidates|a\d+")
"""Columns that hold a row's options in one data set or another."""
_OPTION_LINE: Final = re.compile(r"^\s*\(?[A-Z][).:]\s*(\S.*?)\s*$", re.MULTILINE)
"""An option in a question that lists them."""


def options_of(benchmark: PaperBenchmark, row: Mapping[str, Any]) -> list[str]:
    """The texts of a row's options: of columns that hold them, of the lines of a question that lists them and, of
    benchmarks that have the same for every row, those. Empty for a benchmark that any words answer."""
    texts = list(benchmark.options)
    for name, value in row.items():
        if _OPTION_COLUMN.fullmatch(name):
            texts += [str(entry) for entry in value] if isinstance(value, list | tuple) else [str(value)]
    question = row.get("question")
    return [*texts, *_OPTION_LINE.findall(question)] if texts and isinstance(question, str) else texts
