"""The two kinds of benchmark: one of our own, and one of the paper's. Imports neither torch nor lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - an entry is read back from the job file by its types
from dataclasses import dataclass, field
from typing import Final, Literal

from harness.benchmarks.scoring import Scoring

Form = Literal["options", "letter", "sentence"]
"""How an item is answered: the likeliest of the whole answers, a generated letter, or a generated answer."""


TASK: Final = "task"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark of our own.

    Attributes:
        source: the data source whose held-out questions it asks (`data.source` of the recipe).
        abilities: one task each; a question of another ability is an error.
        left_out: abilities that are scored and shown but do not count in the mean.
        metric: name of the score in lmms-eval; `acc` is the part of items answered rightly.
        scale: the score's range: 0 to 1, or 0 to 100.
        empty: what an empty generated answer is: a failure of the evaluation, or a wrong answer that is counted.
        version: raised when the questions, the prompt or the scoring change; older results are then redone.
    """

    name: str
    source: str
    abilities: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    form: Form = "options"
    metric: str = "acc"
    scale: Literal["fraction", "percent"] = "fraction"
    empty: Literal["refuse", "count"] = "refuse"
    max_new_tokens: int = 32
    version: int = 1

    def task(self, ability: str) -> str:
        """Name of the ability's task in lmms-eval and in the results."""
        return f"{self.name}_{ability}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a benchmark's data come from, and on which terms.

    Attributes:
        repository: the data set on the Hugging Face Hub that lmms-eval 0.7.3 names.
        rows: the files of it that hold the split.
        gigabytes: what has to be fetched, about; None where it is not known.
        access: `open`, or what has to be done before the files can be fetched.
        licence: of the annotations and, where it differs, of the media.
    """

    repository: str
    rows: str
    gigabytes: float | None
    access: str
    licence: str


@dataclass(frozen=True, slots=True)
class Published:
    """A benchmark of the paper. An empty answer is a wrong one, and is counted.

    Attributes:
        title: its name in print.
        folder: of its data below paths.data/benchmarks; two entries may share one.
        task: lmms-eval's task; with `parts` from a field named `by`, still one task.
        parts: number of items of each task, category or type that is combined, by its name; one nameless part where
            there is nothing to combine.
        by: what a part is: a task of lmms-eval of its own, or the field of a row that names the part.
        only: field and value of the rows that are asked, where not all are.
        metric: key of the score in lmms-eval.
        place: of the score in a metric that is a list.
        factor: lmms-eval's number for the score 1.
        beside: further metrics that are kept with the result.
        split, rows: the split in lmms-eval, and how many rows it has (of all parts together).
        columns: what a row must have, separated by spaces.
        video: path of a row's video below the folder of the videos, with the row's fields in braces.
        video_folders: folder of a part's videos within that folder, where each part has its own.
        home: where lmms-eval's task looks for the folder of the videos, below HF_HOME.
        scoring: from items to the score.
        media: what is asked about.
        max_new_tokens: cap of an answer; the task's own where it sets one.
        lead, prompt: fixed words that lmms-eval's task puts before the question and after it, as sent.
        paper_prompt: the response format of Table 6 as printed; None where it prints none.
        table, column, column_place: where the paper reports it; the last one where a cell holds two numbers.
        origin: of the data.
        version: raised when the way of asking or scoring changes; older results are then redone.
    """

    name: str
    title: str
    folder: str
    task: str
    parts: Mapping[str, int]
    metric: str
    split: str
    rows: int
    media: Literal["image", "video"]
    max_new_tokens: int
    prompt: str
    table: Literal["table1_image", "table2_long_video", "table3_short_video"]
    column: str
    origin: Origin
    columns: str
    paper_prompt: str | None = None
    by: str | None = None
    only: tuple[str, str] | None = None
    place: int | None = None
    factor: float = 1.0
    beside: tuple[str, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)
    video: str | None = None
    video_folders: Mapping[str, str] = field(default_factory=dict)
    home: str | None = None
    lead: str = ""
    column_place: int | None = None
    version: int = 1

    @property
    def items(self) -> int:
        """How many items are asked."""
        return sum(self.parts.values())

    @property
    def group(self) -> bool:
        """Whether each part is a task of lmms-eval."""
        return self.by == TASK

    @property
    def lmms_tasks(self) -> tuple[str, ...]:
        """The tasks of lmms-eval that are run."""
        return tuple(f"{self.task}_{part}" for part in self.parts) if self.group else (self.task,)

    def part_task(self, part: str) -> str:
        """The name under which a part's items and score stand in our results."""
        return f"{self.name}_{part}" if part else self.name

    @property
    def paper_differs(self) -> bool:
        """Whether Table 6 asks in other words than lmms-eval's task does; spaces and line ends do not count."""
        return " ".join(self.prompt.split()) != " ".join((self.paper_prompt or "").split())


AnyBenchmark = Benchmark | Published
