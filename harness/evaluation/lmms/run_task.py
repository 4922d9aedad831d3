"""One evaluation task through lmms-eval, and its samples as our items, counted."""

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
from harness.evaluation.task import MultipleChoiceTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lmms_eval.api.model import lmms

    from harness.benchmarks import Benchmark
    from harness.data.sample import Question
    from harness.evaluation.lmms.answer_cache import AnswerCollector
    from harness.evaluation.task import EvalTask, LmmsEvalTask

WrittenTask = tuple["EvalTask", list[str], "Path"]
"""An evaluation task, and the names and folder of its tasks in lmms-eval."""


def write_task_files(task: EvalTask, folder: Path) -> WrittenTask:
    """Write the task's files for lmms-eval below `folder`."""
    folder = folder / task.name
    if isinstance(task, MultipleChoiceTask):
        return task, write_tasks(folder, task.benchmark, task.tasks), folder
    official: Any = task
    data = official.data
    names = write_official_tasks(data.benchmark, data.root, folder, official.prompts, data.limit, data.row)
    return task, names, folder


def run_task(
    written: WrittenTask, collector: AnswerCollector, model: lmms
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One checkpoint through lmms-eval: the result without its identity, and the items.

    Raises:
        ShareAnswered: the rest of the answers is other processes' work.
        HarnessError: the items are not those that were asked, or lmms-eval's own score is another.
    """
    task, names, folder = written
    output = simple_evaluate(
        model=model,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=1,  # unused: the model is an object already
        bootstrap_iters=0,
        log_samples=True,
        process_docs_parallel=1,
        cli_args=Namespace(output_path=str(folder / "output"), process_with_media=False, reasoning_tags=None),
        datetime_str=time.strftime("%Y%m%d_%H%M%S", time.gmtime()),
    )
    version = importlib.metadata.version("lmms_eval")
    if isinstance(task, MultipleChoiceTask):
        benchmark: Any = task.benchmark
        items, more = _multiple_choice_items(task, output)
    else:
        benchmark = task.benchmark
        items, more = _lmms_eval_items(task, output)  # type: ignore[arg-type]
    return {
        "prompt_hash": prompt_hash(collector.sent),
        "lmms_eval": version,
        "versions": {"lmms_eval": version, "task": benchmark.version},
        **task.summary(items),
        **more,
    }, items


def _multiple_choice_items(
    task: MultipleChoiceTask, output: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    items = [
        item
        for ability, questions in task.tasks.items()
        for item in task_items(task.benchmark, ability, questions, output["samples"])
    ]
    compare_scores(task.benchmark, task.summary(items), output["results"])
    return items, {}


def _lmms_eval_items(task: LmmsEvalTask, output: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items, and the further numbers that lmms-eval makes of the same answers."""
    benchmark = task.benchmark
    items = items_of(benchmark, output["samples"])
    if task.data.row is not None:
        return items, {}  # a benchmark has no score by one of its items
    check_aggregate(benchmark, items, output["results"])
    (first, *_) = benchmark.lmms_tasks
    beside = {name: output["results"][first][f"{name},none"] for name in benchmark.beside}
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
    item_of = _option_item if benchmark.form == "options" else _text_item
    return [
        {"task": name, "key": question.key, "ability": ability, **item_of(benchmark, question, sample)}
        for question, sample in zip(questions, ordered, strict=True)
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


def compare_scores(benchmark: Benchmark, summary: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Our count against lmms-eval's own score.

    Args:
        summary: ours.
        results: lmms-eval's, by task.

    Raises:
        HarnessError: they differ.
    """
    factor = 100.0 if benchmark.scale == "percent" else 1.0
    for task in summary["tasks"]:
        score = results[task["task"]].get(f"{benchmark.metric},none")
        if not isinstance(score, int | float) or abs(float(score) * factor - task["value"]) > 1e-9 * factor:
            raise HarnessError(
                f"{task['task']}: lmms-eval says {benchmark.metric} {score}, its items say {task['value'] / factor}"
            )
