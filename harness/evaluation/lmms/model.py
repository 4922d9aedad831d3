"""lmms-eval's view of what is evaluated: its requests in, answers out, each kept on disk as soon as it is there.

A request whose answer is kept is not asked again. Of several processes each asks its own share of the forward passes;
lmms-eval scores where all answers are there.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lmms_eval.api.instance import GenerationResult, TokenCounts, unwrap_generation_output
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2, get_model
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger

from harness.common.errors import HarnessError, RecipeError
from harness.evaluation.lmms.answer_cache import answer_id
from harness.evaluation.lmms.generation import Limits
from harness.evaluation.lmms.scorer import Ask, chunked
from harness.evaluation.lmms.visuals import shown
from harness.evaluation.multiple_choice import media_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch

    from harness.evaluation.lmms.answer_cache import Answers
    from harness.evaluation.lmms.scorer import Shown
    from harness.evaluation.lmms.subjects import Checkpoint

MODEL_ID: Final = "regate_harness"
Chunk = dict[int, Any]
"""What is asked together, by its place among the requests."""


class ShareAnswered(Exception):
    """This process has answered its share; others have the rest, so there is nothing to score yet."""


def model_class() -> type[HarnessModel]:
    """`HarnessModel` as lmms-eval's registry resolves it: registered here, by name and without packaging metadata,
    and checked by lmms-eval to be of the simple kind."""
    path = f"{HarnessModel.__module__}.{HarnessModel.__qualname__}"
    MODEL_REGISTRY_V2.register_manifest(ModelManifest(model_id=MODEL_ID, simple_class_path=path), overwrite=True)
    resolved: type[HarnessModel] = get_model(MODEL_ID)
    return resolved


@dataclass
class Desk:
    """Where the answers of one result are kept, and which of them this process finds.

    Attributes:
        made_by: what decides an answer beside the request: the checkpoint's digest and how it computes.
        share: (this process, number of processes).
        advance: told how many items are answered, those of a killed evaluation included.
        sent: (task, key, prompt, continuations) of every item that was asked.
    """

    answers: Answers
    made_by: Mapping[str, Any]
    advance: Callable[[int], None]
    share: tuple[int, int] = (0, 1)
    sent: list[tuple[str, str, str, tuple[str, ...]]] = field(default_factory=list)

    def collect(
        self,
        asked: Sequence[Mapping[str, Any]],
        chunks: Sequence[Chunk],
        ask: Callable[[Sequence[Chunk]], Iterable[Mapping[int, Any]]],
    ) -> list[Any]:
        """The answer of every item, as plain values.

        Args:
            asked: of each item, what decides its answer; `task`, `key` and `prompt` are told beside it.
            chunks: every item once; each chunk is one process's.
            ask: the answers of chunks, one after the other.

        Raises:
            ShareAnswered: items are left to other processes.
        """
        names = [answer_id(self.made_by, one) for one in asked]
        process, processes = self.share
        missing = [
            {i: item for i, item in chunk.items() if self.answers.get(names[i]) is None}
            for chunk in chunks[process::processes]
        ]
        missing = [chunk for chunk in missing if chunk]
        done = sum(map(len, chunks[process::processes])) - sum(map(len, missing))
        self.advance(done)
        for found in ask(missing) if missing else ():
            told = {i: {name: asked[i][name] for name in ("task", "key", "prompt")} for i in found}
            self.answers.add((names[i], told[i], answer) for i, answer in found.items())
            done += len(found)
            self.advance(done)
        answers = [self.answers.get(name) for name in names]
        if processes > 1:
            raise ShareAnswered
        absent = [f"{one['task']} {one['key']}" for one, answer in zip(asked, answers, strict=True) if answer is None]
        if absent:
            raise HarnessError(f"{len(absent)} of {len(asked)} requests got no answer, first {absent[0]}")
        return answers


class HarnessModel(lmms):  # type: ignore[misc]
    """Scores options and generates answers with a checkpoint of this project. An instance serves one result.

    Args:
        own: whether the documents are questions of this project's own data, which name their media.
    """

    is_simple = True

    def __init__(self, desk: Desk, checkpoint: Checkpoint, *, own: bool) -> None:
        super().__init__()
        self.desk = desk
        self.checkpoint = checkpoint
        self.own = own

    @property
    def device(self) -> torch.device:
        return self.checkpoint.device

    def clean(self) -> None:
        """lmms-eval would delete the modules here; they belong to the caller, who asks again."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The loss of each (context, continuation), lower is better: lmms-eval takes the least.

        lmms-eval 0.7.3 turns a bare (loss, greedy) pair into a string, but hands on what a GenerationResult holds.
        """
        places: dict[tuple[str, int], dict[str, list[int]]] = {}
        first: dict[tuple[str, int], tuple[str, Any, str]] = {}
        for place, request in enumerate(requests):
            context, continuation, doc_to_visual, doc_id, task, split = request.args
            first.setdefault((task, doc_id), (context, doc_to_visual, split))
            # A continuation asked twice (lmms-eval repeats a request to even out processes) is scored once.
            places.setdefault((task, doc_id), {}).setdefault(continuation, []).append(place)
        asks = [
            (task, self._ask(context, see, doc_id, task, split, options=tuple(places[task, doc_id])))
            for (task, doc_id), (context, see, split) in first.items()
        ]
        results: list[GenerationResult] = [None] * len(requests)
        for name, found in zip(first, self._collect(asks, self._losses), strict=True):
            for there, (loss, tokens, greedy) in zip(places[name].values(), found, strict=True):
                for place in there:
                    results[place] = GenerationResult((loss, greedy), TokenCounts(output_tokens=tokens))
        return results

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The greedily generated answer of each context. Sampling is refused, not ignored."""
        asks = []
        for request in requests:
            context, settings, doc_to_visual, doc_id, task, split = request.args
            limits = greedy_limits(settings)
            asks.append((task, self._ask(context, doc_to_visual, doc_id, task, split, limits=limits)))
        found = self._collect(asks, self._answers)
        return [GenerationResult(text, TokenCounts(output_tokens=tokens)) for text, tokens in found]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise NotImplementedError("no benchmark of this project asks in rounds")

    def _collect(self, asks: Sequence[tuple[str, Ask]], ask: Callable[[Sequence[Chunk]], Any]) -> list[Any]:
        chunks: Any = chunked([one for _, one in asks], self.checkpoint.rows)
        return self.desk.collect([_asked(task, one) for task, one in asks], chunks, ask)

    def _losses(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, Any]]:
        for found in self.checkpoint.scorer().option_losses(chunks):
            yield {i: [[one.loss, one.tokens, one.greedy] for one in losses] for i, losses in found.items()}

    def _answers(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, Any]]:
        for found in self.checkpoint.scorer().answers(chunks):
            yield {i: list(answer) for i, answer in found.items()}

    def _ask(self, prompt: str, doc_to_visual: Any, doc_id: int, task: str, split: str, **more: Any) -> Ask:
        """Own questions name their media; what a published benchmark shows is read when the item's turn comes."""
        docs = self.task_dict[task][split]
        if self.own:
            doc = docs[doc_id]
            ask = Ask(doc["key"], tuple(media_of(fields) for fields in doc_to_visual(doc)), prompt, **more)
        else:
            frames, count = self.checkpoint.frames, self.checkpoint.count
            rule = self.checkpoint.adapter.frame_rule

            def see() -> Shown:
                return shown(doc_to_visual(docs[doc_id]), frames, count, f"{task} {doc_id}", rule)

            ask = Ask(str(doc_id), (), prompt, **more, show=see)
        self.desk.sent.append((task, ask.key, prompt, ask.options))
        return ask


class BuiltinModel(lmms):  # type: ignore[misc]
    """A model that comes with lmms-eval, asked a few requests at a time so that its answers are kept.

    lmms-eval's models catch what goes wrong in a generation, log it and answer with an empty text; that is no answer.

    Args:
        inner: makes the model, or gives the one that is there; called where an answer is missing.
        is_simple: which kind of requests it takes.
    """

    def __init__(self, desk: Desk, inner: Callable[[], Any], *, is_simple: bool, rows: int) -> None:
        super().__init__()
        self.desk = desk
        self.inner = inner
        self.is_simple = is_simple
        self.rows = rows

    def clean(self) -> None:
        """The model belongs to the caller, who asks it again."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise RecipeError(
            "a model of lmms-eval answers in words, this benchmark scores options", hint="choose another benchmark"
        )

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        asked = []
        for request in requests:
            settings, (doc_id, task, _) = request.args[1 if self.is_simple else 2], request.args[-3:]
            asked.append({"task": task, "key": str(doc_id), "prompt": request.args[0], "settings": settings})
            self.desk.sent.append((task, str(doc_id), request.args[0], ()))
        places = range(len(requests))
        chunks = [{i: requests[i] for i in places[start : start + self.rows]} for start in places[:: self.rows]]
        found = self.desk.collect(asked, chunks, self._answers)
        return [GenerationResult(text, TokenCounts(output_tokens=tokens)) for text, tokens in found]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise NotImplementedError("no benchmark of this project asks in rounds")

    def _answers(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, Any]]:
        inner = self.inner()
        inner.task_dict = self.task_dict
        for chunk in chunks:
            names = ", ".join(f"{request.args[-2]} {request.args[-3]}" for request in chunk.values())
            with _errors_logged() as logged:
                given = list(inner.generate_until(list(chunk.values())))
            if logged:
                raise HarnessError(f"{type(inner).__name__} failed at {names}: {logged[0]}")
            if len(given) != len(chunk):
                raise HarnessError(f"{type(inner).__name__} gave {len(given)} answers to {len(chunk)}: {names}")
            answers = [unwrap_generation_output(one) for one in given]
            yield {
                i: [str(text), counts.output_tokens if counts else None]
                for i, (text, counts) in zip(chunk, answers, strict=True)
            }


@contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """What is logged as an error within this block."""
    found: list[str] = []
    sink = logger.add(lambda message: found.append(message.record["message"]), level="ERROR")
    try:
        yield found
    finally:
        logger.remove(sink)


def _asked(task: str, ask: Ask) -> dict[str, Any]:
    """What decides an answer, beside the model and the benchmark's data."""
    media = [[m.kind, m.sha256 or str(m.path), m.start, m.end] for m in ask.media]
    limits = None if ask.limits is None else [ask.limits.max_new_tokens, list(ask.limits.until)]
    return {
        "task": task,
        "key": ask.key,
        "prompt": ask.prompt,
        "options": list(ask.options),
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
