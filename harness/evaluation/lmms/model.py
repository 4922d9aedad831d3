"""lmms-eval's view of what is evaluated: its requests in, answers out, each kept on disk as soon as it is there.

A request whose answer is kept is not asked again. Of several processes each asks its own share of the forward passes;
lmms-eval scores where all answers are there.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from lmms_eval.api.instance import GenerationResult, TokenCounts, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2, get_model
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger

from harness.benchmarks import Benchmark, PaperBenchmark
from harness.common.errors import HarnessError, RecipeError
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.scorer import Request, chunked
from harness.evaluation.lmms.visuals import shown
from harness.evaluation.multiple_choice import media_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from harness.benchmarks import AnyBenchmark
    from harness.evaluation.lmms.answer_cache import AnswerCollector, Chunk
    from harness.evaluation.lmms.scorer import Checkpoint, Shown

MODEL_ID: Final = "regate_harness"


def model_class() -> type[HarnessModel]:
    """`HarnessModel` as lmms-eval's registry resolves it: registered here, by name and without packaging metadata,
    and checked by lmms-eval to be of the simple kind."""
    path = f"{HarnessModel.__module__}.{HarnessModel.__qualname__}"
    MODEL_REGISTRY_V2.register_manifest(ModelManifest(model_id=MODEL_ID, simple_class_path=path), overwrite=True)
    resolved: type[HarnessModel] = get_model(MODEL_ID)
    return resolved


class HarnessModel(lmms):  # type: ignore[misc]
    """Scores options and generates answers with a checkpoint of this project. An instance serves one result.

    Args:
        benchmark: what is asked. The documents of one of this project's are its questions, which name their media.
    """

    is_simple = True

    def __init__(self, collector: AnswerCollector, checkpoint: Checkpoint, benchmark: AnyBenchmark) -> None:
        super().__init__()
        self.collector = collector
        self.checkpoint = checkpoint
        self.benchmark = benchmark
        self._names: dict[tuple[str, str], Any] = {}

    @property
    def device(self) -> torch.device:
        return self.checkpoint.device

    def clean(self) -> None:
        """lmms-eval would delete the modules here; they belong to the caller, who asks again."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The loss of each (context, continuation), lower is better: lmms-eval takes the least.

        lmms-eval 0.7.3 turns a bare (loss, greedy) pair into a string, but hands on what a GenerationResult holds.
        """
        indices: dict[tuple[str, int], dict[str, list[int]]] = {}
        first: dict[tuple[str, int], tuple[str, Any, str]] = {}
        for index, instance in enumerate(requests):
            context, continuation, doc_to_visual, doc_id, task, split = instance.args
            first.setdefault((task, doc_id), (context, doc_to_visual, split))
            # A continuation asked twice (lmms-eval repeats a request to even out processes) is scored once.
            indices.setdefault((task, doc_id), {}).setdefault(continuation, []).append(index)
        items = [
            (task, self._request(context, doc_to_visual, doc_id, task, split, options=tuple(indices[task, doc_id])))
            for (task, doc_id), (context, doc_to_visual, split) in first.items()
        ]
        results: list[GenerationResult] = [None] * len(requests)
        for document, losses in zip(first, self._collect(items, self._losses), strict=True):
            for repeats, (loss, tokens, greedy) in zip(indices[document].values(), losses, strict=True):
                for index in repeats:
                    results[index] = GenerationResult((loss, greedy), TokenCounts(output_tokens=tokens))
        return results

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The greedily generated answer of each context. Sampling is refused, not ignored."""
        items = []
        for instance in requests:
            context, settings, doc_to_visual, doc_id, task, split = instance.args
            limits = greedy_limits(settings)
            items.append((task, self._request(context, doc_to_visual, doc_id, task, split, limits=limits)))
        answers = self._collect(items, self._answers)
        return [GenerationResult(text, TokenCounts(output_tokens=tokens)) for text, tokens in answers]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise NotImplementedError("no benchmark of this project asks in rounds")

    def _collect(
        self, items: Sequence[tuple[str, Request]], compute: Callable[[Sequence[Chunk]], Any]
    ) -> list[Any]:
        chunks: Any = chunked([request for _, request in items], self.checkpoint.batch_size)
        return self.collector.collect([_fields(task, request) for task, request in items], chunks, compute)

    def _losses(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, Any]]:
        for by_item in self.checkpoint.scorer().option_losses(chunks):
            yield {
                i: [[option.loss, option.tokens, option.greedy] for option in losses] for i, losses in by_item.items()
            }

    def _answers(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, Any]]:
        for by_item in self.checkpoint.scorer().answers(chunks):
            yield {i: list(answer) for i, answer in by_item.items()}

    def _request(self, prompt: str, doc_to_visual: Any, doc_id: int, task: str, split: str, **more: Any) -> Request:
        """This project's questions name their media; what a published benchmark shows is read when the item's turn
        comes."""
        docs = self.task_dict[task][split]
        if isinstance(self.benchmark, Benchmark):
            doc = docs[doc_id]
            request = Request(doc["key"], tuple(media_of(fields) for fields in doc_to_visual(doc)), prompt, **more)
        else:
            frames, count = self.checkpoint.frames, self.checkpoint.count
            rule = self.checkpoint.adapter.frame_rule

            def see() -> Shown:
                return shown(doc_to_visual(docs[doc_id]), frames, count, f"{task} {doc_id}", rule)

            medium = self._medium(docs, doc_id, task, split)
            request = Request(str(doc_id), (), prompt, **more, show=see, medium=medium)
        self.collector.sent.append((task, request.key, prompt, request.options))
        return request

    def _medium(self, docs: Any, doc_id: int, task: str, split: str) -> str | None:
        """What the columns of a published benchmark say of what a document shows; no picture is opened for it."""
        assert isinstance(self.benchmark, PaperBenchmark)
        named = self.benchmark.medium_columns
        if not named:
            return None
        if (task, split) not in self._names:
            self._names[task, split] = docs.select_columns(named)
        return repr((task, self._names[task, split][doc_id]))


class BuiltinModel(lmms):  # type: ignore[misc]
    """A model that comes with lmms-eval, asked a few requests at a time so that its answers are kept.

    lmms-eval's models catch what goes wrong in a generation, log it and answer with an empty text; that is no answer.

    Args:
        inner: loads the model, or returns the loaded one; called where an answer is missing.
        is_simple: which kind of requests it takes.
    """

    def __init__(
        self, collector: AnswerCollector, inner: Callable[[], Any], *, is_simple: bool, batch_size: int
    ) -> None:
        super().__init__()
        self.collector = collector
        self.inner = inner
        self.is_simple = is_simple
        self.batch_size = batch_size

    def clean(self) -> None:
        """The model belongs to the caller, who asks it again."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise RecipeError(
            "a model of lmms-eval answers in words, this benchmark scores options", hint="choose another benchmark"
        )

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        described = []
        for instance in requests:
            settings, (doc_id, task, _) = instance.args[1 if self.is_simple else 2], instance.args[-3:]
            described.append({"task": task, "key": str(doc_id), "prompt": instance.args[0], "settings": settings})
            self.collector.sent.append((task, str(doc_id), instance.args[0], ()))
        indices = range(len(requests))
        size = self.batch_size
        chunks = [{i: requests[i] for i in indices[start : start + size]} for start in indices[::size]]
        answers = self.collector.collect(described, chunks, self._answers)
        return [GenerationResult(text, TokenCounts(output_tokens=tokens)) for text, tokens in answers]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise NotImplementedError("no benchmark of this project asks in rounds")

    def _answers(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, Any]]:
        inner = self.inner()
        inner.task_dict = self.task_dict
        for chunk in chunks:
            names = ", ".join(f"{instance.args[-2]} {instance.args[-3]}" for instance in chunk.values())
            with _errors_logged() as logged:
                given = list(inner.generate_until(list(chunk.values())))
            if logged:
                raise HarnessError(f"{type(inner).__name__} failed at {names}: {logged[0]}")
            if len(given) != len(chunk):
                raise HarnessError(f"{type(inner).__name__} gave {len(given)} answers to {len(chunk)}: {names}")
            answers = [unwrap_generation_output(output) for output in given]
            yield {
                i: [str(text), counts.output_tokens if counts else None]
                for i, (text, counts) in zip(chunk, answers, strict=True)
            }


@contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """What is logged as an error within this block."""
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(message.record["message"]), level="ERROR")
    try:
        yield messages
    finally:
        logger.remove(sink)


def _fields(task: str, request: Request) -> dict[str, Any]:
    """What decides an answer, beside the model and the benchmark's data."""
    media = [[m.kind, m.sha256 or str(m.path), m.start, m.end] for m in request.media]
    limits = None if request.limits is None else [request.limits.max_new_tokens, list(request.limits.until)]
    return {
        "task": task,
        "key": request.key,
        "prompt": request.prompt,
        "options": list(request.options),
        "media": media,
        "limits": limits,
    }


def greedy_limits(settings: Mapping[str, Any]) -> Limits:
    """Where answers end, of a task's generation settings.

    Raises:
        HarnessError: the task wants something else than greedy decoding.
    """
    if settings.get("do_sample") or settings.get("temperature") or settings.get("num_beams", 1) != 1:
        raise HarnessError(f"only greedy decoding is offered, the task asks for {dict(settings)}")
    until = settings.get("until") or ()
    return Limits(int(settings["max_new_tokens"]), (until,) if isinstance(until, str) else tuple(until))
