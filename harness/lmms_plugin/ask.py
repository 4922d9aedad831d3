"""One checkpoint through lmms-eval, and its samples as our items, counted."""

from __future__ import annotations

import importlib.metadata
import time
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from harness.errors import HarnessError
from harness.lmms_plugin.model import model_class
from harness.questions import parse_answer, prompt_hash, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from harness.benchmarks import Benchmark
    from harness.data.sample import Question
    from harness.lmms_plugin.score import Scorer
    from harness.lmms_plugin.tasks import Asked


def ask(
    asked: Asked, scorer: Scorer, advance: Callable[[int], None], device: torch.device
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One checkpoint through lmms-eval: the result without its identity, and the items."""
    model = model_class()(scorer, advance, device)
    found = simple_evaluate(
        model=model,
        tasks=asked.names,
        task_manager=TaskManager(include_path=str(asked.folder), include_defaults=False),
        batch_size=scorer.rows,
        bootstrap_iters=0,
        log_samples=True,
        process_docs_parallel=1,
        cli_args=Namespace(output_path=str(asked.folder / "output"), process_with_media=False, reasoning_tags=None),
        datetime_str=time.strftime("%Y%m%d_%H%M%S", time.gmtime()),
    )
    items = [
        item
        for ability, questions in asked.tasks.items()
        for item in task_items(asked.benchmark, ability, questions, found["samples"])
    ]
    summary = summarise(asked.benchmark, items)
    compare_scores(asked.benchmark, summary, found["results"])
    expected = sum(len(questions) for questions in asked.tasks.values())
    return {
        "prompt_hash": prompt_hash(model.sent),
        "versions": {"lmms_eval": importlib.metadata.version("lmms_eval"), "task": asked.benchmark.version},
        "tasks": summary["tasks"],
        "mean": summary["mean"],
        "counts": {"expected": expected, **summary["counts"], "errors": 0},
    }, items


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
