"""The paper's own numbers, from results/paper/tables.yaml: shown beside ours, never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from harness import render
from harness.errors import EnvironmentProblem
from harness.yamlmarks import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.render import Cell

MODELS: Final = {"videollama2": "VideoLLaMA2", "videochat2": "VideoChat2", "internvl3_5": "InternVL3.5"}
"""Adapter -> the model's name in the paper."""
GATED: Final = "-ReGATE"
Group = Literal["open_source", "proprietary", "regate"]
GROUPS: Final[tuple[Group, ...]] = ("open_source", "proprietary", "regate")
"""Groups of rows of a table of benchmarks; the last one holds the paper's own runs."""
GPUS: Final = {"VideoLLaMA2": ("H100", 4), "VideoChat2": ("H100", 4), "InternVL3.5": ("H100", 16)}
"""Model -> name and number of the paper's GPUs."""

_FILE: Final = "tables.yaml"


@dataclass(frozen=True, slots=True)
class Reported:
    """Where the paper reports a benchmark, and what its task says after the question.

    Attributes:
        name: the benchmark here.
        title: in tables.
        column: in the paper's table.
        place: of the number in a cell that holds two (MME: cognition, perception).
        task_prompt: fixed words of lmms-eval 0.7.3's task around the question, as sent.
    """

    name: str
    title: str
    column: str
    task_prompt: str
    place: int | None = None

    @property
    def points(self) -> bool:
        """Whether the score is points and not per cent."""
        return self.place is not None


_LETTER: Final = "Answer with the option's letter from the given choices directly."
_WORD: Final = "Answer the question using a single word or phrase."
TABLES: Final[dict[str, tuple[Reported, ...]]] = {
    "table1_image": (
        Reported("scienceqa", "ScienceQA", "ScienceQA", f"\n{_LETTER}"),
        Reported("mme_cognition", "MME cognition", "MME", f"\n{_WORD}", 0),
        Reported("mme_perception", "MME perception", "MME", f"\n{_WORD}", 1),
        Reported(
            "vizwiz",
            "VizWiz",
            "VizWiz",
            f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{_WORD}",
        ),
        Reported("pope", "POPE", "POPE", f"\n{_WORD}"),
        Reported("seed_image", "SEED-I", "SEED-I", f"\n{_LETTER}"),
    ),
    "table2_long_video": (
        Reported(
            "videomme",
            "VideoMME",
            "VideoMME",
            "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
            f"Respond with only the letter (A, B, C, or D) of the correct option. ...\n{_LETTER}",
        ),
        Reported("longvideobench", "LongVideoBench", "LongVideoBench", f"\n{_LETTER}\n"),
        Reported("mlvu", "MLVU", "MLVU", "\nOnly give the best option.\nBest option: ("),
        Reported("egoschema", "EgoSchema", "EgoSchema", f"\n{_LETTER}"),
    ),
    "table3_short_video": (
        Reported("mvbench", "MVBench", "MVBench", "Only give the best option.\n"),
        Reported("perceptiontest", "PerceptionTest", "Perception", f"\n{_LETTER}"),
        Reported("vinoground", "Vinoground (video)", "Vinoground", "\nPlease only output one English character."),
        Reported("nextqa", "NExT-QA", "NExT-QA", ""),
    ),
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

    def rows_of(self, adapters: Iterable[str], benchmark: str) -> list[tuple[str, Cell]]:
        """(row of the paper, its score) for these models, where the paper has the benchmark.

        The cell has the three values of an accuracy column; the paper reports no interval.
        """
        names = [MODELS[adapter] + arm for adapter in sorted(set(adapters) & MODELS.keys()) for arm in ("", GATED)]
        known = [one for columns in TABLES.values() for one in columns if one.name == benchmark]
        if not names or not known:
            return []
        scale = 1.0 if known[0].points else 100.0
        return [(name, render.accuracy(None, scale=scale, value=self.reported(name, benchmark))) for name in names]


def load_paper() -> Paper:
    """The transcribed tables: from the installed package data, or from the checkout's results/paper.

    Raises:
        EnvironmentProblem: neither is there.
    """
    try:
        text = resources.files("harness.paper").joinpath(_FILE).read_text(encoding="utf-8")
    except (ModuleNotFoundError, FileNotFoundError):
        checkout = Path(__file__).resolve().parent.parent / "results" / "paper" / _FILE
        if not checkout.exists():
            raise EnvironmentProblem(
                f"the paper's numbers ({_FILE}) are neither installed nor in the checkout", hint="install again"
            ) from None
        text = checkout.read_text(encoding="utf-8")
    # Not yaml.safe_load: to YAML 1.1, 83.82e6 is a word.
    return Paper(read_yaml(text, _FILE).data)


def _score(value: Any, one: Reported) -> float | None:
    """A printed score: per cent become parts of one, as ours are; points stay."""
    if value is None:
        return None
    return float(value[one.place]) if one.place is not None else round(float(value) / 100, 6)


__all__ = ["GATED", "GPUS", "GROUPS", "MODELS", "TABLES", "Paper", "PaperRow", "Reported", "load_paper"]
