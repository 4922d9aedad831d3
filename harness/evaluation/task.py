"""What a checkpoint is asked for one result, and whether the result holds it: a benchmark of this project with its
questions, or a published one with its data. Pure functions of plain values, no torch and no lmms-eval.
"""

from __future__ import annotations

import importlib.metadata
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from pydantic import TypeAdapter

from harness.benchmarks import AnyBenchmark, Benchmark, PaperBenchmark, find
from harness.benchmarks.question_file import QuestionFile
from harness.benchmarks.scoring import Scoring
from harness.common.errors import DataError, HarnessError, RecipeError, StaleError
from harness.common.hashing import digest
from harness.evaluation.files import PublishedData, benchmarks_root, open_published, published_item
from harness.evaluation.items import summarise_published
from harness.evaluation.multiple_choice import (
    expected_prompt_hash,
    own_tasks,
    question_of,
    question_record,
    questions_hash,
    select,
    summarise,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.data.sample import Question
    from harness.data.sources import DataSet
    from harness.evaluation.multiple_choice import Tasks


Prompts = Literal["task", "paper"]
"""How a published benchmark asks: as lmms-eval's task does, or with the paper's response formats."""

ASK_ANEW: Final = "evaluate it again: harness eval"


class EvalTask(Protocol):
    """What is evaluated for one result: a benchmark with the items that are asked."""

    @property
    def name(self) -> str:
        """The benchmark's, in recipes and file names."""
        ...

    @property
    def benchmark(self) -> AnyBenchmark:
        """What is asked."""
        ...

    @property
    def expected(self) -> int:
        """How many items are asked."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a result must hold to be this task's."""
        ...

    def job(self) -> dict[str, Any]:
        """What the child needs to run it, as plain values; `task_of` reads them back."""
        ...

    def summary(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`tasks`, `mean` and `counts` that the items give.

        Raises:
            HarnessError: the items are not those that were asked, or one contradicts itself; it is named.
        """
        ...

    def alone(self, item: Mapping[str, Any]) -> EvalTask:
        """The same task with one of its items as all that is asked.

        Args:
            item: of a result: `task` and `key`.

        Raises:
            DataError: data that it needs are missing; where they come from is said.
            StaleError: its question is not kept, or the data are others than those that were asked.
        """
        ...


@dataclass(frozen=True, slots=True)
class MultipleChoiceTask:
    """A benchmark of this project: held-out questions of its data, with options."""

    benchmark: Benchmark
    tasks: Tasks

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def expected(self) -> int:
        return sum(len(questions) for questions in self.tasks.values())

    def identity(self) -> dict[str, Any]:
        return {
            "questions": questions_hash(self.tasks),
            "prompt_hash": expected_prompt_hash(self.benchmark, self.tasks),
            "definition": digest(asdict(self.benchmark)),
            "scoring": asdict(Scoring()),
            "prompts": "task",
        }

    def job(self) -> dict[str, Any]:
        return {
            "kind": "questions",
            "benchmark": asdict(self.benchmark),
            "questions": [question_record(q) for questions in self.tasks.values() for q in questions],
        }

    def summary(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        benchmark = self.benchmark
        asked = [(benchmark.task(ability), q) for ability, questions in self.tasks.items() for q in questions]
        if len(items) != len(asked):
            raise HarnessError(f"{len(items)} items scored, {len(asked)} asked")
        if [(item["task"], item["key"]) for item in items] != [(task, q.key) for task, q in asked]:
            raise HarnessError("the items are others than those that were asked, or in another order")
        for item, (_, question) in zip(items, asked, strict=True):
            problem = _item_problem(benchmark, item, len(question.options), question.answer)
            if problem:
                raise HarnessError(f"{item['task']} {item['key']}: {problem}")
        summary = summarise(benchmark, items)
        return {**summary, "counts": {"expected": len(asked), **summary["counts"], "guessed": 0, "errors": 0}}

    def question(self, item: Mapping[str, Any]) -> Question | None:
        """The question that an item of a result answers; None where it is none of these."""
        questions = self.tasks.get(item["ability"], ())
        return next((question for question in questions if question.key == item["key"]), None)

    def alone(self, item: Mapping[str, Any]) -> MultipleChoiceTask:
        question = self.question(item)
        if question is None:
            raise StaleError(f"the question of {item['task']}/{item['key']} is not kept", hint=ASK_ANEW)
        benchmark = replace(self.benchmark, abilities=(question.ability,))
        alone = MultipleChoiceTask(benchmark, {question.ability: (question,)})
        require_media([alone])
        return alone


def _item_problem(benchmark: Benchmark, item: Mapping[str, Any], options: int, answer: int) -> str | None:
    if item["answer"] != answer or item["correct"] != int(item["prediction"] == answer):
        return "its answer or verdict is wrong"
    if benchmark.form == "options":
        losses, tokens = item["option_loss"], item["option_tokens"]
        if len(losses) != options or len(tokens) != options or not all(map(math.isfinite, losses)) or min(tokens) < 1:
            return f"not every option has a loss: {losses}, tokens {tokens}"
        if item["prediction"] != losses.index(min(losses)):
            return "its prediction is not the likeliest option"
    elif item["empty"] and benchmark.empty == "refuse":
        return "the answer is empty"
    return None


@dataclass(frozen=True, slots=True)
class LmmsEvalTask:
    """A published benchmark: lmms-eval's own task asks and judges, on data that are all there."""

    data: PublishedData
    prompts: Prompts

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def benchmark(self) -> PaperBenchmark:
        return self.data.benchmark

    @property
    def expected(self) -> int:
        return sum(self.data.expected.values())

    def identity(self) -> dict[str, Any]:
        return {
            "questions": digest([self.data.digest, self.data.limit]),
            "definition": digest(self.benchmark.definition()),
            "scoring": asdict(self.benchmark.scoring),
            "prompts": self.prompts,
            "lmms_eval": importlib.metadata.version("lmms_eval"),
        }

    def job(self) -> dict[str, Any]:
        return {
            "kind": "published",
            "benchmark": asdict(self.benchmark),
            "root": str(self.data.root.absolute()),
            "prompts": self.prompts,
            "limit": self.data.limit,
            "expected": self.data.expected,
            "digest": self.data.digest,
            "row": self.data.row,
        }

    def summary(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        counted: dict[str, int] = dict.fromkeys(self.data.expected, 0)
        seen: set[tuple[str, str]] = set()
        for item in items:
            name = (item["task"], item["key"])
            if item["task"] not in counted or name in seen:
                raise HarnessError(f"{item['task']} {item['key']}: a second time, or of no part of {self.name}")
            if not 0 <= item["correct"] <= 1 or item["empty"] != (not item["text"].strip()):
                raise HarnessError(f"{item['task']} {item['key']}: its verdict is wrong: {item}")
            seen.add(name)
            counted[item["task"]] += 1
        if counted != self.data.expected:
            few = {
                task: f"{counted[task]} of {count}"
                for task, count in self.data.expected.items()
                if counted[task] != count
            }
            raise HarnessError(f"items scored: {', '.join(f'{task} {words}' for task, words in few.items())} asked")
        if items and self.data.row is None and all(item["empty"] for item in items):
            raise HarnessError(f"all {len(items)} answers are empty: the model said nothing")
        summary = summarise_published(self.benchmark, items)
        return {**summary, "counts": {"expected": self.expected, **summary["counts"], "errors": 0}}

    def alone(self, item: Mapping[str, Any]) -> LmmsEvalTask:
        data = open_published(self.benchmark, self.data.root, self.data.limit)
        if data.digest != self.data.digest:
            raise StaleError(
                f"{self.name}: the data in {data.root / self.benchmark.folder} are others than those that were asked",
                hint=ASK_ANEW,
            )
        row = published_item(data, item["task"], str(item["key"]))
        benchmark = replace(self.benchmark, parts={row.part: self.benchmark.parts[row.part]})
        expected = {item["task"]: 1}
        return LmmsEvalTask(replace(data, benchmark=benchmark, expected=expected, row=row.number), self.prompts)


def task_of(job: Mapping[str, Any]) -> EvalTask:
    """The task that `EvalTask.job` wrote down."""
    if job["kind"] == "questions":
        benchmark = TypeAdapter(Benchmark).validate_python(job["benchmark"])
        questions = [question_of(record) for record in job["questions"]]
        tasks = {a: tuple(q for q in questions if q.ability == a) for a in benchmark.abilities}
        return MultipleChoiceTask(benchmark, tasks)
    published = TypeAdapter(PaperBenchmark).validate_python(job["benchmark"])
    data = PublishedData(published, Path(job["root"]), job["limit"], job["expected"], job["digest"], job.get("row"))
    return LmmsEvalTask(data, job["prompts"])


def build_tasks(
    asked: Sequence[str | QuestionFile],
    known: Mapping[str, AnyBenchmark],
    *,
    data: DataSet | None,
    data_folder: str,
    prompts: Prompts,
    limit: int | None,
) -> list[EvalTask]:
    """The evaluation task of each benchmark, in their order, once all of their data are complete.

    Args:
        data: the training's data set, whose held-out questions this project's benchmarks ask; None where nothing is
            trained.
        data_folder: `paths.data`, below which the published benchmarks' data lie.
        prompts: how the published benchmarks ask, `task` or `paper`.
        limit: items of each task.

    Raises:
        RecipeError: an unknown benchmark, or one for other data.
        DataError: media files, rows or questions are missing; they are named.
    """
    tasks = [
        _own_task(entry, limit)
        if isinstance(entry, QuestionFile)
        else _build_task(find(entry, known), data, data_folder, prompts, limit)
        for entry in asked
    ]
    require_media([task for task in tasks if isinstance(task, MultipleChoiceTask)])
    return tasks


def require_media(tasks: Sequence[MultipleChoiceTask]) -> None:
    """Look for every medium of the questions.

    Raises:
        DataError: some are not there; the first five are named.
    """
    questions = [question for task in tasks for group in task.tasks.values() for question in group]
    paths = {media.path for question in questions for media in question.media}
    missing = sorted(str(path) for path in paths if not path.is_file())
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(missing)} media files of the questions are missing: {', '.join(missing[:5])}{more}",
            hint="make or fetch the data again: `harness data check` names what is damaged",
        )


def _own_task(file: QuestionFile, limit: int | None) -> MultipleChoiceTask:
    missing = file.questions.missing_media(file.file)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{len(missing)} media files of {file.name} are missing: {'; '.join(missing[:5])}{more}",
            hint="relative paths of media start at the folder of the question file",
        )
    return MultipleChoiceTask(file.questions.benchmark, own_tasks(file.questions, limit))


def _build_task(
    benchmark: AnyBenchmark, data: DataSet | None, folder: str, prompts: Prompts, limit: int | None
) -> EvalTask:
    if isinstance(benchmark, PaperBenchmark):
        if prompts == "paper" and benchmark.paper is None:
            raise RecipeError(
                f"evaluate.prompts: paper; {benchmark.name} is not of the paper, which prints no prompt for it",
                hint="ask it with evaluate.prompts: task, in an evaluation of its own",
            )
        return LmmsEvalTask(open_published(benchmark, benchmarks_root(folder), limit), prompts)
    if data is None:
        raise RecipeError(
            f"benchmarks: {benchmark.name} asks the held-out questions of data.source {benchmark.source}, and this "
            "evaluation has no data",
            hint="name it in the training recipe's evaluate.benchmarks",
        )
    return MultipleChoiceTask(benchmark, select(benchmark, data.source, data.questions, limit))
