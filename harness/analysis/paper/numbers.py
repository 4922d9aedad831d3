"""The paper's own numbers, from results/paper/tables.yaml: shown beside ours, never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from harness.benchmarks import BENCHMARKS, PaperBenchmark
from harness.benchmarks.spec import PaperTable
from harness.config.paper import read_paper

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.benchmarks import PaperCell

MODELS: Final = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2", "internvl3_5": "InternVL3.5"}
"""Adapter -> the model's name in the paper."""
GATED: Final = "-ReGATE"
Group = Literal["open_source", "proprietary", "regate"]
GROUPS: Final[tuple[Group, ...]] = ("open_source", "proprietary", "regate")
"""Groups of rows of a table of benchmarks; the last one holds the paper's own runs."""
GPUS: Final = {"VideoLLaMA2": ("H100", 4), "VideoChat2": ("H100", 4), "InternVL3.5": ("H100", 16)}
"""Model -> name and number of the paper's GPUs."""

TABLES: Final[dict[str, tuple[PaperBenchmark, ...]]] = {
    table: tuple(
        benchmark
        for benchmark in BENCHMARKS.values()
        if isinstance(benchmark, PaperBenchmark) and benchmark.paper is not None and benchmark.paper.table == table
    )
    for table in get_args(PaperTable)
}
"""The paper's tables of benchmarks, and what is in their columns. A benchmark outside the paper is in none."""
PAPER_NAMES: Final = frozenset(benchmark.name for columns in TABLES.values() for benchmark in columns)
"""Names of the benchmarks that the paper reports."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of a table of benchmarks as the paper prints it.

    Attributes:
        scores: by our name of the benchmark: parts of one, or points.
    """

    label: str
    group: Group
    llm: str | None
    frames: str | int | None
    tokens: float | None
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Paper:
    """The transcribed paper: the content of tables.yaml."""

    content: dict[str, Any]

    @property
    def hyperparameters(self) -> dict[str, Any]:
        hyperparameters: dict[str, Any] = self.content["hyperparameters"]
        return hyperparameters

    @property
    def prompts(self) -> dict[str, str | None]:
        """Column of a benchmark -> the response format of Table 6."""
        prompts: dict[str, str | None] = self.content["tables"]["table6_prompts"]
        return prompts

    @property
    def claims(self) -> list[dict[str, Any]]:
        claims: list[dict[str, Any]] = self.content["claims"]
        return claims

    @property
    def inconsistencies(self) -> list[str]:
        sentences: list[str] = self.content["inconsistencies"]
        return sentences

    def benchmark_table(self, table: str) -> list[PaperRow]:
        """Every row of one of TABLES, group by group, as printed."""
        content = self.content["tables"][table]
        rows = []
        for group in GROUPS:
            for label, entry in content[group].items():
                values = dict(zip(content["columns"], entry["values"], strict=True))
                scores = {
                    benchmark.name: _score(values[cell_of(benchmark).column], benchmark)
                    for benchmark in TABLES[table]
                }
                row = PaperRow(label, group, entry.get("llm"), values.get("frames"), values["tokens"], scores)
                rows.append(row)
        return rows

    def reported(self, label: str, benchmark: str) -> float | None:
        """A row's score on one of our benchmarks, in parts of one or points; None where the paper has none."""
        for table, columns in TABLES.items():
            if any(column.name == benchmark for column in columns):
                return {row.label: row.scores[benchmark] for row in self.benchmark_table(table)}.get(label)
        return None

    def costs(self, table: str) -> dict[str, dict[str, Any]]:
        """label -> column -> number of a table of costs; the first column of a list is its label."""
        content = self.content["tables"][table]
        columns = content["columns"]
        if isinstance(content["rows"], list):
            return {str(row[0]): dict(zip(columns, row, strict=True)) for row in content["rows"]}
        return {label: dict(zip(columns, row, strict=True)) for label, row in content["rows"].items()}

    def rows_of(self, adapters: Iterable[str], benchmark: str) -> list[tuple[str, float | None, float]]:
        """(row of the paper, its score) for these models, where the paper has the benchmark.

        The cell has the three values of an accuracy column; the paper reports no interval.
        """
        names = [MODELS[adapter] + arm for adapter in sorted(set(adapters) & MODELS.keys()) for arm in ("", GATED)]
        known = [column for columns in TABLES.values() for column in columns if column.name == benchmark]
        if not names or not known:
            return []
        scale = shown(known[0])
        return [(name, self.reported(name, benchmark), scale) for name in names]


def cell_of(benchmark: PaperBenchmark) -> PaperCell:
    """Where the paper reports a benchmark of TABLES."""
    assert benchmark.paper is not None, benchmark.name
    return benchmark.paper


def in_points(benchmark: PaperBenchmark) -> bool:
    """Whether the score is points and not per cent."""
    return benchmark.scoring.scale == "points"


def shown(benchmark: PaperBenchmark) -> float:
    """What the score is multiplied with where people read it."""
    return 1.0 if in_points(benchmark) else 100.0


def load_paper() -> Paper:
    """The transcribed tables.

    Raises:
        EnvironmentProblem: they are neither installed nor in the checkout.
    """
    return Paper(read_paper())


def _score(value: Any, benchmark: PaperBenchmark) -> float | None:
    """A printed score: per cent become parts of one, as ours are; points stay."""
    if value is None:
        return None
    place = cell_of(benchmark).place
    if place is not None:
        value = value[place]
    return float(value) if in_points(benchmark) else round(float(value) / 100, 6)


__all__ = [
    "GATED",
    "GPUS",
    "GROUPS",
    "MODELS",
    "PAPER_NAMES",
    "TABLES",
    "Paper",
    "PaperRow",
    "cell_of",
    "in_points",
    "load_paper",
    "shown",
]
