"""Scores whole answers, or generates them, with a checkpoint of this project. Knows nothing of lmms-eval.

Both go the training's own way: `Processor.encode`, `Adapter.forward` on a `regate.ScoredLM`, `regate.token_loss`.

Legend: B rows, S expanded length, N scored targets, V vocabulary, T frames, H and W pixels.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch

import regate
from harness.common.errors import HarnessError, RecipeError
from harness.data.sample import Encoded, Media, Sample, Turn, sample_id
from harness.evaluation.lmms.generation import Limits, Speaks, generate, generate_plainly, generates, grow
from harness.evaluation.lmms.shared_tower import one_tower_pass
from harness.models.device import hold_in
from regate.types import IGNORE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor, nn

    from harness.data.sample import Batch
    from harness.evaluation.lmms.kept_features import KeptFeatures
    from harness.models.adapter import Evaluated
    from regate.types import Decision


@dataclass(frozen=True, slots=True)
class Shown:
    """The media of an item, and of each its frames: uint8 T3HW."""

    media: tuple[Media, ...]
    frames: list[Tensor]


@dataclass(frozen=True, slots=True)
class Request:
    """One item: media, the user's turn, and the answers to score, or where the generated answer ends.

    Attributes:
        show: reads media that are no files of their own, such as the pictures in a benchmark's table; it runs when
            the item's turn comes. `media` is empty then, and the media's tags go in front of the prompt.
        medium: names what `show` reads, the same for items that are shown the same; None where nothing says so.
    """

    key: str
    media: tuple[Media, ...]
    prompt: str
    options: tuple[str, ...] = ()
    limits: Limits | None = None
    show: Callable[[], Shown] | None = field(default=None, compare=False)
    medium: str | None = None


Chunk = dict[int, Request]
"""Items of one forward pass by their index."""


@dataclass(frozen=True, slots=True)
class OptionLoss:
    """Summed negative log-likelihood (nats) of an option's targets, how many they are, and whether greedy decoding
    would have written them."""

    loss: float
    tokens: int
    greedy: bool


@dataclass
class FrameCache:
    """Decoded media, kept up to a number of bytes: several questions, tasks and checkpoints ask for the same clip.

    Of those beyond that number each is decoded once for all that hold it at the time. Threads may ask together.

    Attributes:
        read: decodes one media to uint8 T3HW; raises an error that names the file.
    """

    read: Callable[[Media], Tensor]
    max_bytes: int = 512 * 2**20
    _kept: dict[Media, Tensor] = field(default_factory=dict)
    _held: MutableMapping[Media, Tensor] = field(default_factory=WeakValueDictionary)
    _bytes: int = 0
    _lock: Lock = field(default_factory=Lock)
    _turns: dict[Media, Lock] = field(default_factory=dict)

    def __call__(self, media: Media) -> Tensor:
        with self._lock:
            turn = self._turns.setdefault(media, Lock())
        with turn:  # who asks for a clip that is being decoded waits for it
            frames_T3HW = self._held.get(media)
            if frames_T3HW is None:
                frames_T3HW = self.read(media)
                with self._lock:
                    self._held[media] = frames_T3HW
                    if self._bytes + frames_T3HW.nbytes <= self.max_bytes:
                        self._kept[media] = frames_T3HW
                        self._bytes += frames_T3HW.nbytes
        return frames_T3HW


@dataclass
class Scorer:
    """A checkpoint's model with what it needs to read questions.

    Attributes:
        model: as `Adapter.load` gives it, on its device.
        batch_size: most sequences of one forward pass; the options of one item are never split, so an item with
            more options than that makes a larger one.
        dtype: autocast type, None for none.
        readers: threads that decode media while the model computes.
        features: what the tower said of clips, for this checkpoint and others; None where the tower is run with each
            batch.
    """

    adapter: Evaluated
    model: nn.Module
    frames: Callable[[Media], Tensor]
    batch_size: int = 64
    dtype: torch.dtype | None = None
    readers: int = 1
    features: KeptFeatures | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        if self.features is not None:
            self.features.show(self.model)
        self.processor = self.adapter.processor()
        self.scored = regate.ScoredLM(self.model)
        self.gate = regate.DenseGate()

    @torch.inference_mode()
    def option_losses(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, list[OptionLoss]]]:
        """For each chunk, by item, one loss an option, in their order.

        Raises:
            DataError: a media file cannot be read; it is named.
            HarnessError: an option has no target, two options are the same tokens, or a loss is not finite.
        """
        for chunk, shown in self._read_ahead(chunks):
            rows: list[Encoded] = []
            clip_B: list[int] = []
            for clip, i in zip(clips_of(chunk), chunk, strict=True):
                rows += self._encode_options(chunk[i], shown[i])
                clip_B += [clip] * len(chunk[i].options)
            with one_tower_pass(self.model, clip_B):
                losses = iter(self._losses(*self._with_features(rows, clip_B, shown)))
            losses_of = {i: [next(losses) for _ in request.options] for i, request in chunk.items()}
            for i, request in chunk.items():
                _check(request, losses_of[i])
            yield losses_of

    @torch.inference_mode()
    def answers(self, chunks: Sequence[Chunk]) -> Iterator[dict[int, tuple[str, int]]]:
        """For each chunk, by item, the greedily generated answer and its number of tokens.

        Raises:
            DataError: a media file cannot be read; it is named.
            RecipeError: the adapter's processor cannot turn tokens into text.
        """
        if not isinstance(self.processor, Speaks):
            raise RecipeError(
                f"adapter {self.adapter.name}: its processor has no end_id and decode, which generated answers need",
                hint="choose a benchmark that scores options",
            )
        for chunk, shown in self._read_ahead(chunks):
            (limits,) = {request.limits for request in chunk.values()}
            assert limits is not None
            rows = [
                self.processor.encode_prompt(_sample(request, shown[i], ()), shown[i].frames)
                for i, request in chunk.items()
            ]
            with self._autocast():
                if generates(self.model):
                    with one_tower_pass(self.model, clips_of(chunk)):
                        written = generate(self.model, self.processor, self.processor.collate(rows), limits)
                else:
                    written = generate_plainly(self._next_logits, self.processor, rows, limits)
            yield {
                i: (_cut(self.processor.decode(ids), limits.until), len(ids))
                for i, ids in zip(chunk, written, strict=True)
            }

    def _encode_options(self, request: Request, shown: Shown) -> list[Encoded]:
        encode = getattr(self.processor, "encode_answered", self.processor.encode)
        rows = [encode(_sample(request, shown, (option,)), shown.frames) for option in request.options]
        targets = [tuple(row.labels_S[row.labels_S != IGNORE].tolist()) for row in rows]
        for option, ids in zip(request.options, targets, strict=True):
            if not ids:
                raise HarnessError(f"question {request.key}: option {option!r} has no target tokens to score")
        if len(set(targets)) < len(targets):
            listed = ", ".join(request.options)
            raise HarnessError(f"question {request.key}: two options are the same tokens: {listed}")
        return rows

    def _with_features(
        self, rows: list[Encoded], clip_B: Sequence[int], shown: Mapping[int, Shown]
    ) -> tuple[list[Encoded], Tensor | None]:
        """The rows without their pictures, and in their place what the tower says of each row's clip; as they are
        where that is not kept, or an item does not show a single video."""
        if self.features is None or not all(_is_one_clip(item) for item in shown.values()):
            return rows, None
        clips: dict[Media, Tensor] = {}
        for item in shown.values():
            clips.setdefault(item.media[0], item.frames[0])
        features = self.features.of(self.model, list(clips.items()))
        return [replace(row, pixels=None) for row in rows], features[torch.tensor(clip_B)]

    def _losses(self, rows: Sequence[Encoded], features: Tensor | None = None) -> list[OptionLoss]:
        batch = self.processor.collate(rows)
        if features is not None:
            batch = replace(batch, inputs={**batch.inputs, "tower_features": features})
        decision = self.gate.decide(batch.layout, batch.sample_ids_B, step=0)
        logits_NV, targets_N = self._forward(batch, decision)
        loss_N = regate.token_loss(logits_NV, targets_N).double().cpu()
        greedy_N = (logits_NV.argmax(dim=-1) == targets_N).cpu()
        row_N = decision.targets_BS.nonzero()[:, 0]
        tokens_B = torch.bincount(row_N, minlength=len(rows))
        loss_B = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_N, loss_N)
        missed_B = torch.zeros(len(rows), dtype=torch.int64).index_add_(0, row_N, (~greedy_N).long())
        values = zip(loss_B.tolist(), tokens_B.tolist(), missed_B.tolist(), strict=True)
        return [OptionLoss(loss, tokens, missed == 0) for loss, tokens, missed in values]

    def _next_logits(self, rows: Sequence[Encoded]) -> Tensor:
        """logits_BV behind each row's last token. It is found like any target: a stand-in follows that token."""
        assert isinstance(self.processor, Speaks)
        batch = self.processor.collate([grow(row, self.processor.end_id, target=True) for row in rows])
        return self._forward(batch, self.gate.decide(batch.layout, batch.sample_ids_B, step=0))[0]

    def _forward(self, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        with self._autocast():
            return self.adapter.forward(self.scored, batch, decision)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.dtype)

    def _read_ahead(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, dict[int, Shown]]]:
        """The chunks with their decoded media; those of later ones are decoded while this one is computed: two for
        each thread, and of the next chunk all."""

        def show(request: Request) -> Shown:
            if request.show:
                return request.show()
            return Shown(request.media, [self.frames(media) for media in request.media])

        items = chain.from_iterable(chunk.items() for chunk in chunks)
        reading: dict[int, Future[Shown]] = {}
        pool = ThreadPoolExecutor(self.readers)

        def read_on(until: int) -> None:
            reading.update((i, pool.submit(show, request)) for i, request in islice(items, until - len(reading)))

        try:
            read_on(len(chunks[0]) if chunks else 0)
            for chunk, later in pairwise([*chunks, {}]):
                read_on(len(chunk) + max(2 * self.readers, len(later)))
                yield chunk, {i: reading.pop(i).result() for i in chunk}
        finally:  # who asks may have stopped, or a medium be damaged
            pool.shutdown(cancel_futures=True)


@dataclass
class Checkpoint:
    """A checkpoint of this project, loaded when the first answer is missing and not before.

    Attributes:
        directory: that `Adapter.load` reads.
        frames: decodes media.
        count: frames of a clip, chosen by the adapter's `frame_rule`.
        batch_size: most sequences of a forward pass.
        dtype: autocast type, None for none.
        readers: threads that decode media while the model computes.
        features: as of `Scorer`.
        weights: type that they are held in; None for that of `Adapter.load`.
    """

    adapter: Evaluated
    directory: Path
    frames: FrameCache
    count: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype | None
    readers: int = 1
    features: KeptFeatures | None = None
    weights: torch.dtype | None = None
    _scorer: Scorer | None = field(default=None, repr=False)

    def scorer(self) -> Scorer:
        """The model and its processor, on their device."""
        if self._scorer is None:
            model = self.adapter.load(self.directory)
            if self.weights is not None:
                hold_in(model, self.weights)  # before it is moved: a GPU never holds the larger one
            model.to(self.device)
            self._scorer = Scorer(
                self.adapter, model, self.frames, self.batch_size, self.dtype, self.readers, self.features
            )
        return self._scorer


def chunked(requests: Sequence[Request], batch_size: int) -> list[Chunk]:
    """Items of about the same length together, longest first: memory runs out at once or not at all. Items that ask
    for the same clip stand together at the place of the longest of them, so that the vision tower reads it once.

    It depends on the items alone, so that an evaluation that is resumed, or spread over processes, computes together
    what a whole one does. Answers that end by different limits are not written together.

    Args:
        batch_size: most sequences of a chunk.
    """
    limits = list(dict.fromkeys(request.limits for request in requests))
    groups: dict[tuple[Limits | None, object], list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault((request.limits, _clip(i, request)), []).append(i)
    ordered = [sorted(group, key=lambda i: (-_length(requests[i]), i)) for group in groups.values()]
    ordered.sort(key=lambda group: (limits.index(requests[group[0]].limits), -_length(requests[group[0]]), group[0]))
    order = [i for group in ordered for i in group]
    chunks: list[Chunk] = [{}]
    used = 0
    for i in order:
        need = max(1, len(requests[i].options))
        others = next(iter(chunks[-1].values()), requests[i])
        if chunks[-1] and (used + need > batch_size or others.limits != requests[i].limits):
            chunks.append({})
            used = 0
        chunks[-1][i] = requests[i]
        used += need
    return chunks if chunks[-1] else []


def clips_of(chunk: Chunk) -> list[int]:
    """For each item, which of the chunk's different media it shows, counted from 0 in order of appearance."""
    number: dict[object, int] = {}
    return [number.setdefault(_clip(i, request), len(number)) for i, request in chunk.items()]


def _clip(i: int, request: Request) -> object:
    """What an item shows; itself where that is nothing, or nothing names it."""
    return (request.media if request.show is None else request.medium) or i


def _is_one_clip(shown: Shown) -> bool:
    return len(shown.media) == 1 and shown.media[0].kind == "video"


def _length(request: Request) -> int:
    return len(request.prompt) + max((len(option) for option in request.options), default=0)


def _sample(request: Request, shown: Shown, answer: tuple[str, ...]) -> Sample:
    tags = "".join(f"<media:{i}>\n" for i in range(len(shown.media))) if request.show else ""
    turns = (Turn("user", tags + request.prompt), *(Turn("assistant", text) for text in answer))
    return Sample(sample_id("question", request.key), request.key, shown.media, turns)


def _check(request: Request, losses: Sequence[OptionLoss]) -> None:
    for option, option_loss in zip(request.options, losses, strict=True):
        if not math.isfinite(option_loss.loss):
            raise HarnessError(f"question {request.key}: the loss of option {option!r} is {option_loss.loss}")


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(ends)] if ends else text
