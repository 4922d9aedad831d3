"""Task files for lmms-eval, and the functions that they name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.evaluation.multiple_choice import parse_answer, prompt, question_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from harness.benchmarks import Benchmark
    from harness.data.sample import Question
    from harness.evaluation.multiple_choice import Tasks

STOP = "\n\n"


def write_tasks(folder: Path, benchmark: Benchmark, tasks: Tasks) -> list[str]:
    """One YAML and one JSON-lines file a task; returns the names of the tasks.

    JSON is YAML, so values are written by `json.dumps`; only `!function` needs YAML's own syntax.
    """
    folder.mkdir(parents=True)
    for ability, questions in tasks.items():
        name = benchmark.task(ability)
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(_doc(benchmark, question)) + "\n" for question in questions))
        lines = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "doc_to_text": "prompt",
            "doc_to_target": "answer",
            "metric_list": [{"metric": benchmark.metric, "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": benchmark.version},
            **_form(benchmark),
        }
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
        text += "doc_to_visual: !function harness.evaluation.lmms.own_tasks.doc_to_visual\n"
        if benchmark.form != "options":
            text += "process_results: !function harness.evaluation.lmms.own_tasks.process_results\n"
        (folder / f"{name}.yaml").write_text(text)
    return [benchmark.task(ability) for ability in tasks]


def _form(benchmark: Benchmark) -> dict[str, Any]:
    if benchmark.form == "options":
        return {"output_type": "multiple_choice", "doc_to_choice": "options", "target_delimiter": ""}
    settings = {"max_new_tokens": benchmark.max_new_tokens, "do_sample": False, "temperature": 0, "until": [STOP]}
    return {"output_type": "generate_until", "generation_kwargs": settings}


def _doc(benchmark: Benchmark, question: Question) -> dict[str, Any]:
    sent = {"prompt": prompt(benchmark.form, question), "form": benchmark.form, "metric": benchmark.metric}
    return {**question_record(question), **sent}


def doc_to_visual(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of `harness.data.sample.Media`, one a media."""
    return [dict(media) for media in doc["media"]]


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """The score of a generated answer: 1 for the right option, 0 for another, none, or an unclear one."""
    prediction = parse_answer(doc["form"], results[0], doc["options"])
    return {doc["metric"]: float(prediction == doc["answer"])}
