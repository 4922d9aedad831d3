"""The paper's own numbers, from results/paper/tables.yaml: shown beside ours, never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.benchmarks.paper import PUBLISHED
from harness.common.errors import EnvironmentProblem
from harness.config.yaml_positions import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.benchmarks.spec import Published

MODELS: Final = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2", "internvl3_5": "InternVL3.5"}
"""Adapter -> the model's name in the paper."""
GATED: Final = "-ReGATE"
Group = Literal["open_source", "proprietary", "regate"]
GROUPS: Final[tuple[Group, ...]] = ("open_source", "proprietary", "regate")
"""Groups of rows of a table of benchmarks; the last one holds the paper's own runs."""
GPUS: Final = {"VideoLLaMA2": ("H100", 4), "VideoChat2": ("H100", 4), "InternVL3.5": ("H100", 16)}
"""Model -> name and number of the paper's GPUs."""

_FILE: Final = "tables.yaml"


TABLES: Final[dict[str, tuple[Published, ...]]] = {
    table: tuple(one for one in PUBLISHED.values() if one.table == table)
    for table in ("table1_image", "table2_long_video", "table3_short_video")
}
"""The paper's tables of benchmarks, and what is in their columns."""


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
        found: dict[str, Any] = self.content["hyperparameters"]
        return found

    @property
    def prompts(self) -> dict[str, str | None]:
        """Column of a benchmark -> the response format of Table 6."""
        found: dict[str, str | None] = self.content["tables"]["table6_prompts"]
        return found

    @property
    def claims(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.content["claims"]
        return found

    @property
    def inconsistencies(self) -> list[str]:
        found: list[str] = self.content["inconsistencies"]
        return found

    def benchmark_table(self, table: str) -> list[PaperRow]:
        """Every row of one of TABLES, group by group, as printed."""
        content = self.content["tables"][table]
        rows = []
        for group in GROUPS:
            for label, entry in content[group].items():
                values = dict(zip(content["columns"], entry["values"], strict=True))
                scores = {one.name: _score(values[one.column], one) for one in TABLES[table]}
                row = PaperRow(label, group, entry.get("llm"), values.get("frames"), values["tokens"], scores)
                rows.append(row)
        return rows

    def reported(self, label: str, benchmark: str) -> float | None:
        """A row's score on one of our benchmarks, in parts of one or points; None where the paper has none."""
        for table, columns in TABLES.items():
            if any(one.name == benchmark for one in columns):
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
        known = [one for columns in TABLES.values() for one in columns if one.name == benchmark]
        if not names or not known:
            return []
        scale = shown(known[0])
        return [(name, self.reported(name, benchmark), scale) for name in names]


def in_points(one: Published) -> bool:
    """Whether the score is points and not per cent."""
    return one.scoring.scale == "points"


def shown(one: Published) -> float:
    """What the score is multiplied with where people read it."""
    return 1.0 if in_points(one) else 100.0


def load_paper() -> Paper:
    """The transcribed tables: from the installed package data, or from the checkout's results/paper.

    Raises:
        EnvironmentProblem: neither is there.
    """
    try:
        text = resources.files("harness.paper").joinpath(_FILE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        checkout = Path(__file__).resolve().parents[2] / "results" / "paper" / _FILE
        if not checkout.exists():
            raise EnvironmentProblem(
                f"the paper's numbers ({_FILE}) are neither installed nor in the checkout", hint="install again"
            ) from None
        text = checkout.read_text(encoding="utf-8")
    # Not yaml.safe_load: to YAML 1.1, 83.82e6 is a word.
    return Paper(read_yaml(text, _FILE).data)


def _score(value: Any, one: Published) -> float | None:
    """A printed score: per cent become parts of one, as ours are; points stay."""
    if value is None:
        return None
    if one.column_place is not None:
        value = value[one.column_place]
    return float(value) if in_points(one) else round(float(value) / 100, 6)


__all__ = ["GATED", "GPUS", "GROUPS", "MODELS", "TABLES", "Paper", "PaperRow", "in_points", "load_paper", "shown"]
