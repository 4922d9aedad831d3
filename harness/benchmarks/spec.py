"""The two kinds of benchmark: one of our own, and one that lmms-eval's task asks. No torch, no lmms-eval."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - an entry is read back from the job file by its types
from dataclasses import asdict, dataclass, field
from string import Formatter
from typing import Any, Final, Literal

from harness.benchmarks.scoring import Scoring

Form = Literal["options", "letter", "sentence", "short"]
"""How an item is answered: the likeliest of the whole answers, a generated letter, a generated answer that is one of
the options, or a generated short answer that is one of those accepted."""


TASK: Final = "task"
"""Value of `PaperBenchmark.by` where each part is a task of lmms-eval."""

Correct = Literal[
    "metric",
    "score",
    "correct",
    "pred == answer",
    "pred_answer == answer",
    "parsed_pred == answer",
    "pred == ground_truth",
    "first letter",
]
"""What of the output of a task's `process_results` says that an item is right, as the task's aggregation counts it.

`metric`: the value under the metric's key itself. `score`, `correct`: that field of it. `a == b`: two fields of it
are the same, for `pred == answer` up to case and spaces. `first letter`: the answer begins with the right option's
letter, which one of the benchmark's `index_files` names."""

PaperTable = Literal["table1_image", "table2_long_video", "table3_short_video"]


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
class PaperCell:
    """Where the paper reports a benchmark.

    Attributes:
        table, column: as `results/paper/tables.yaml` names them.
        place: of the benchmark's number in a cell that holds two.
        prompt: the response format of Table 6 as printed; None where it prints none.
    """

    table: PaperTable
    column: str
    place: int | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class PaperBenchmark:
    """A benchmark of the paper, or one that is asked and judged like them. An empty answer is wrong, and is counted.

    What is right is what the task's own aggregation counts; the fields below say where its output holds it.

    Attributes:
        title: its name in print.
        folder: of its data below paths.data/benchmarks; two entries may share one.
        task: lmms-eval's task; with `parts` from a field named `by`, still one task.
        task_file: of the task below `lmms_eval/tasks`; `{task}` stands for the name where each part is a task.
        parts: number of items of each task, category or type that is combined, by its name; one nameless part where
            there is nothing to combine.
        by: what a part is: a task of lmms-eval of its own (TASK), or the field of a row that names the part.
        only: field and value of the rows that are asked, where not all are.
        metric: key of the score in lmms-eval.
        place: of the score in a metric that is a list.
        factor: lmms-eval's number for the score 1.
        beside: further metrics that are kept with the result.
        correct: where the task's output says that an item is right.
        answer_field: the field of a row that holds the right option. An answer is unparsable where it would be wrong
            with each option as the right one; None where any words are an answer, or where the task guesses.
        options: what the field may hold, the same for every row; for `first letter`, the letters of the options.
        options_column: of each row, the list of its options, where they differ.
        answer_index: the field holds the option's place in that list, not the option.
        split, rows: the split in lmms-eval, and how many rows it has (of all parts together).
        columns: what a row must have, separated by spaces.
        video: path of a row's video below the folder of the videos, with the row's fields in braces.
        video_folders: folder of a part's videos within that folder, where each part has its own.
        index_files: JSON files beside the videos that lmms-eval's task reads, where the rows name an `index` and
            nothing else: lists of `idx`, `question`, `video_name` and `GT`, the right letter. The last one is asked.
        home: where lmms-eval's task looks for the folder of the videos, below HF_HOME.
        scoring: from items to the score.
        unit_column: what names the items that are scored together, where several are.
        unit_separator: ends the name within that column, where it does not fill it.
        aggregate: which items lmms-eval's own score covers: `all` that were asked; `answered`, those with an answer
            that is not empty; `complete`, all of the benchmark or none: a limited evaluation has no such score.
        rounded: decimals of lmms-eval's own score, where it rounds.
        media: what is asked about.
        max_new_tokens: cap of an answer; the task's own where it sets one.
        lead, prompt: fixed words that lmms-eval's task puts before the question and after it, as sent.
        paper: where the paper reports it. None: it is no benchmark of the paper; it has its own table and enters none
            of the paper's tables, claims and averages.
        origin: of the data.
        version: raised when the way of asking or scoring changes; older results are then redone.
    """

    name: str
    title: str
    folder: str
    task: str
    task_file: str
    parts: Mapping[str, int]
    metric: str
    correct: Correct
    split: str
    rows: int
    media: Literal["image", "video"]
    max_new_tokens: int
    prompt: str
    paper: PaperCell | None
    origin: Origin
    columns: str
    answer_field: str | None = None
    options: tuple[str, ...] = ()
    options_column: str | None = None
    answer_index: bool = False
    by: str | None = None
    only: tuple[str, str] | None = None
    place: int | None = None
    factor: float = 1.0
    beside: tuple[str, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)
    unit_column: str | None = None
    unit_separator: str | None = None
    aggregate: Literal["all", "answered", "complete"] = "all"
    rounded: int | None = None
    video: str | None = None
    video_folders: Mapping[str, str] = field(default_factory=dict)
    index_files: tuple[str, ...] = ()
    home: str | None = None
    lead: str = ""
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
    def medium_columns(self) -> list[str]:
        """Columns of a row that name what is shown, where several rows may show the same; empty where none do."""
        if self.video is not None:
            return [column for _, column, _, _ in Formatter().parse(self.video) if column]
        return [self.unit_column] if self.media == "image" and self.unit_column else []

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
        return self.paper is not None and " ".join(self.prompt.split()) != " ".join((self.paper.prompt or "").split())

    def definition(self) -> dict[str, Any]:
        """What a result's `definition` is the digest of.

        For a benchmark of the paper these are the fields of the first results that were kept, so that those stay
        valid; how its items are judged is covered by `version`.
        """
        fields = asdict(self)
        paper = fields.pop("paper")
        if paper is None:
            return fields
        kept = {name: value for name, value in fields.items() if name not in _JUDGING}
        cell = {"table": paper["table"], "column": paper["column"], "column_place": paper["place"]}
        return {**kept, **cell, "paper_prompt": paper["prompt"]}


_JUDGING: Final = frozenset(
    {
        "task_file",
        "correct",
        "answer_field",
        "options",
        "options_column",
        "answer_index",
        "unit_column",
        "unit_separator",
        "aggregate",
        "rounded",
        "index_files",
    }
)
"""Fields that say where a task's output holds what is right; a result of a benchmark of the paper does not repeat
them."""

AnyBenchmark = Benchmark | PaperBenchmark
