"""lmms-eval's view of a checkpoint of this project: its requests in, the scorer's answers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models import MODEL_REGISTRY_V2, get_model
from lmms_eval.models.registry_v2 import ModelManifest

from harness.lmms_plugin.score import Ask
from harness.questions import media_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from harness.lmms_plugin.score import Scorer

MODEL_ID: Final = "regate_harness"


def model_class() -> type[HarnessModel]:
    """`HarnessModel` as lmms-eval's registry resolves it: registered here, by name and without packaging metadata,
    and checked by lmms-eval to be of the simple kind."""
    path = f"{HarnessModel.__module__}.{HarnessModel.__qualname__}"
    MODEL_REGISTRY_V2.register_manifest(ModelManifest(model_id=MODEL_ID, simple_class_path=path), overwrite=True)
    resolved: type[HarnessModel] = get_model(MODEL_ID)
    return resolved


class HarnessModel(lmms):  # type: ignore[misc]
    """Scores options and generates answers through a `Scorer`. An instance serves one checkpoint.

    Attributes:
        sent: (task, key, prompt, continuations) of every item that was asked.
    """

    is_simple = True

    def __init__(self, scorer: Scorer, advance: Callable[[int], None], device: torch.device) -> None:
        super().__init__()
        self.scorer = scorer
        self.advance = advance
        self.sent: list[tuple[str, str, str, tuple[str, ...]]] = []
        self._device = device
        self._docs: dict[tuple[str, str], list[dict[str, Any]]] = {}

    @property
    def device(self) -> torch.device:
        return self._device

    def clean(self) -> None:
        """lmms-eval would delete the modules here; the scorer belongs to the caller, who asks it again."""

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The loss of each (context, continuation), lower is better: lmms-eval takes the least.

        lmms-eval 0.7.3 turns a bare (loss, greedy) pair into a string, but hands on what a GenerationResult holds.
        """
        places: dict[tuple[str, int], dict[str, list[int]]] = {}
        asks: dict[tuple[str, int], tuple[str, dict[str, Any], list[dict[str, Any]]]] = {}
        for place, request in enumerate(requests):
            context, continuation, doc_to_visual, doc_id, task, split = request.args
            name = (task, doc_id)
            if name not in asks:
                doc = self._doc(task, split, doc_id)
                asks[name] = (context, doc, doc_to_visual(doc))
            # A continuation asked twice (lmms-eval repeats a request to even out processes) is scored once.
            places.setdefault(name, {}).setdefault(continuation, []).append(place)
        wanted = [self._ask(*asks[name], task=name[0], options=tuple(places[name])) for name in asks]
        losses = self.scorer.option_losses(wanted, self.advance)
        results: list[GenerationResult] = [None] * len(requests)
        for name, found in zip(asks, losses, strict=True):
            for there, option in zip(places[name].values(), found, strict=True):
                for place in there:
                    pair = (option.loss, option.greedy)
                    results[place] = GenerationResult(pair, TokenCounts(output_tokens=option.tokens))
        return results

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The greedily generated answer of each context. Sampling is refused, not ignored."""
        by_settings: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        asks: list[Ask] = []
        for place, request in enumerate(requests):
            context, settings, doc_to_visual, doc_id, task, split = request.args
            doc = self._doc(task, split, doc_id)
            asks.append(self._ask(context, doc, doc_to_visual(doc), task=task, options=()))
            by_settings.setdefault(_greedy_settings(settings), []).append(place)
        results: list[GenerationResult] = [None] * len(requests)
        for (max_new_tokens, until), places in by_settings.items():
            found = self.scorer.answers(
                [asks[place] for place in places],
                max_new_tokens=max_new_tokens,
                until=until,
                advance=self.advance,
            )
            for place, (text, tokens) in zip(places, found, strict=True):
                results[place] = GenerationResult(text, TokenCounts(output_tokens=tokens))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[GenerationResult]:
        raise NotImplementedError("no benchmark of this project asks in rounds")

    def _doc(self, task: str, split: str, doc_id: int) -> dict[str, Any]:
        name = (task, split)
        if name not in self._docs:
            self._docs[name] = list(self.task_dict[task][split])
        return self._docs[name][doc_id]

    def _ask(
        self, prompt: str, doc: dict[str, Any], visuals: list[dict[str, Any]], *, task: str, options: tuple[str, ...]
    ) -> Ask:
        media = tuple(media_of(fields) for fields in visuals)
        self.sent.append((task, doc["key"], prompt, options))
        return Ask(doc["key"], media, prompt, options)


def _greedy_settings(settings: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    if settings.get("do_sample") or settings.get("temperature") or settings.get("num_beams", 1) != 1:
        raise ValueError(f"only greedy decoding is offered, the task asks for {settings}")
    until = settings.get("until") or ()
    return int(settings["max_new_tokens"]), (until,) if isinstance(until, str) else tuple(until)
