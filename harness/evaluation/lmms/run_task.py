"""One exam through lmms-eval, and its samples as our items, counted."""

from __future__ import annotations

import importlib.metadata
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from harness.common.errors import HarnessError
from harness.evaluation.items import check_aggregate, items_of
from harness.evaluation.lmms.official_tasks import write_official_tasks
from harness.evaluation.lmms.own_tasks import write_tasks
from harness.evaluation.multiple_choice import parse_answer, prompt_hash
from harness.evaluation.task import Questions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmms_eval.api.model import lmms

    from harness.benchmarks import Benchmark
    from harness.data.sample import Question
    from harness.evaluation.lmms.model import Desk
    from harness.evaluation.task import Exam, Official

Asked = tuple["Exam", list[str], "Path"]
"""An exam, and the names and folder of its tasks in lmms-eval."""


def make_tasks(exam: Exam, folder: Path) -> Asked:
    """The exam's task files below `folder`."""
    folder = folder / exam.name
    if isinstance(exam, Questions):
        return exam, write_tasks(folder, exam.benchmark, exam.tasks), folder
    official: Any = exam
    data = official.data
    return exam, write_official_tasks(data.benchmark, data.root, folder, official.prompts, data.limit), folder


def ask(asked: Asked, desk: Desk, model: lmms) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One checkpoint through lmms-eval: the result without its identity, and the items.

    Raises:
        ShareAnswered: the rest of the answers is other processes' work.
        HarnessError: the items are not those that were asked, or lmms-eval's own score is another.
    """
    exam, names, folder = asked
    found = simple_evaluate(
        model=model,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=1,  # told to nobody: the model is made
        bootstrap_iters=0,
        log_samples=True,
        process_docs_parallel=1,
        cli_args=Namespace(output_path=str(folder / "output"), process_with_media=False, reasoning_tags=None),
        datetime_str=time.strftime("%Y%m%d_%H%M%S", time.gmtime()),
    )
    version = importlib.metadata.version("lmms_eval")
    judged = _own(exam, found) if isinstance(exam, Questions) else _official(exam, found)  # type: ignore[arg-type]
    items, more = judged
    benchmark: Any = exam.benchmark if isinstance(exam, Questions) else exam.data.benchmark  # type: ignore[attr-defined]
    return {
        "prompt_hash": prompt_hash(desk.sent),
        "lmms_eval": version,
        "versions": {"lmms_eval": version, "task": benchmark.version},
        **exam.summary(items),
        **more,
    }, items


def _own(exam: Questions, found: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    items = [
        item
        for ability, questions in exam.tasks.items()
        for item in task_items(exam.benchmark, ability, questions, found["samples"])
    ]
    compare_scores(exam.benchmark, exam.summary(items), found["results"])
    return items, {}


def _official(exam: Official, found: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items, and the further numbers that lmms-eval makes of the same answers."""
    benchmark = exam.data.benchmark
    items = items_of(benchmark, found["samples"])
    check_aggregate(benchmark, items, found["results"])
    (first, *_) = benchmark.lmms_tasks
    beside = {name: found["results"][first][f"{name},none"] for name in benchmark.beside}
    return items, {"beside": beside}


def task_items(
    benchmark: Benchmark, ability: str, questions: Sequence[Question], samples: Mapping[str, Sequence[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """lmms-eval's samples of a task as items, in the order of the questions.

    Raises:
        HarnessError: lmms-eval scored other documents than these, or another number.
    """
    name = benchmark.task(ability)
    ordered = sorted(samples.get(name, ()), key=lambda sample: int(sample["doc_id"]))
    keys = [sample["doc"]["key"] for sample in ordered]
    if keys != [question.key for question in questions]:
        raise HarnessError(f"{name}: lmms-eval scored {len(keys)} items, {len(questions)} other ones were asked")
    make = _option_item if benchmark.form == "options" else _text_item
    head = [{"task": name, "key": q.key, "ability": ability} for q in questions]
    return [
        {**first, **make(benchmark, question, sample)}
        for first, question, sample in zip(head, questions, ordered, strict=True)
    ]


def _option_item(benchmark: Benchmark, question: Question, sample: Mapping[str, Any]) -> dict[str, Any]:
    losses = [float(loss) for loss, _ in sample["filtered_resps"]]
    prediction = losses.index(min(losses))
    return {
        "prediction": prediction,
        "answer": question.answer,
        "correct": int(prediction == question.answer),
        "option_loss": losses,
        "option_tokens": [int(counts["output_tokens"]) for counts in sample["token_counts"]],
    }


def _text_item(benchmark: Benchmark, question: Question, sample: Mapping[str, Any]) -> dict[str, Any]:
    text = str(sample["filtered_resps"][0])
    prediction = parse_answer(benchmark.form, text, question.options)
    return {
        "prediction": prediction,
        "answer": question.answer,
        "correct": int(prediction == question.answer),
        "text": text,
        "empty": not text.strip(),
    }


def compare_scores(benchmark: Benchmark, summary: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Our count against lmms-eval's own score.

    Raises:
        HarnessError: they differ.
    """
    factor = 100.0 if benchmark.scale == "percent" else 1.0
    for task in summary["tasks"]:
        score = theirs[task["task"]].get(f"{benchmark.metric},none")
        if not isinstance(score, int | float) or abs(float(score) * factor - task["value"]) > 1e-9 * factor:
            raise HarnessError(
                f"{task['task']}: lmms-eval says {benchmark.metric} {score}, its items say {task['value'] / factor}"
            )
