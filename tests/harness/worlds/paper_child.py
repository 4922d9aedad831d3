"""A child process that runs published benchmarks through the real lmms-eval, with a model that looks its answers up.

The model reads the tag of a question, like [pope 3], and says what the job holds for it. Everything else is as in an
evaluation: the task files, lmms-eval, the items and their check. Each benchmark's outcome is one file.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from PIL import Image
from pydantic import TypeAdapter

from harness.benchmarks import PaperBenchmark
from harness.evaluation.items import check_aggregate, items_of, summarise_published
from harness.evaluation.lmms.child import Events, report, watch_parent
from harness.evaluation.lmms.official_tasks import write_official_tasks
from tests.harness.worlds.known_models import without_network


class Oracle(lmms):  # type: ignore[misc]
    """Gives the answers that it holds. Keeps what it was sent and shown."""

    is_simple = True

    def __init__(self, answers: dict[str, list[str]]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    def clean(self) -> None:
        """There is nothing to free, and looking for it takes lmms-eval a second."""

    def generate_until(self, requests: Any) -> list[GenerationResult]:
        answers = []
        for request in requests:
            prompt, settings, doc_to_visual, doc_id, task, split = request.args
            visuals = doc_to_visual(self.task_dict[task][split][doc_id])
            name, number = re.findall(r"\[(\w+) (\d+)\]", prompt)[0]
            self.asked.append(
                {"task": task, "prompt": prompt, "settings": settings, "shown": list(map(description_of, visuals))}
            )
            answers.append(GenerationResult(self.answers[name][int(number)], TokenCounts(output_tokens=1)))
        return answers

    def loglikelihood(self, requests: Any) -> list[GenerationResult]:
        raise NotImplementedError

    def generate_until_multi_round(self, requests: Any) -> list[GenerationResult]:
        raise NotImplementedError


def description_of(visual: Any) -> Any:
    """A picture as its width and the red of its first pixel, a video as its path."""
    if isinstance(visual, Image.Image):
        return [visual.width, visual.convert("RGB").getpixel((0, 0))[0]]
    assert Path(visual).is_file(), visual
    return str(Path(visual).relative_to(os.environ["HF_HOME"]))


def evaluate(entry: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    benchmark = TypeAdapter(PaperBenchmark).validate_python(entry["benchmark"])
    folder = Path(job["work"]) / "tasks" / entry["name"]
    names = write_official_tasks(benchmark, Path(entry["root"]), folder, entry["prompts"], entry["limit"])
    model = Oracle(job["answers"])
    output = simple_evaluate(
        model=model,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=1,
        bootstrap_iters=0,
        log_samples=True,
        process_docs_parallel=1,
        cli_args=Namespace(output_path=str(folder / "output"), process_with_media=False, reasoning_tags=None),
        datetime_str="20260101_000000",
    )
    items = items_of(benchmark, output["samples"])
    check_aggregate(benchmark, items, output["results"])
    numbers = {
        task: {k: v for k, v in metrics.items() if k.startswith(benchmark.metric)}
        for task, metrics in output["results"].items()
    }
    summary = summarise_published(benchmark, items)
    return {"items": items, "asked": model.asked, "summary": summary, "numbers": numbers, "tasks": names}


def main(argv: list[str]) -> int:
    socket.getaddrinfo = without_network  # type: ignore[assignment]
    socket.socket.connect = without_network  # type: ignore[assignment,method-assign]
    watch_parent()
    job = json.loads(Path(argv[0]).read_text())
    with os.fdopen(int(argv[1]), "w") as stream:
        events = Events(stream)
        for index, entry in enumerate(job["entries"]):
            try:
                outcome = evaluate(entry, job)
            except Exception as error:  # noqa: BLE001 - the outcome of this entry
                outcome = {"error": report(error)}
            Path(entry["out"]).write_text(json.dumps(outcome, default=str))
            events.send("done", result=index, done=len(outcome.get("items", ())))
        events.send("end")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
