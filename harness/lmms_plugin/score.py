"""Scores whole answers, or generates them, with a checkpoint of this project. Knows nothing of lmms-eval.

Both go the training's own way: `Processor.encode`, `Adapter.forward` on a `regate.ScoredLM`, `regate.token_loss`.

Legend: B rows, S expanded length, N scored targets, V vocabulary, T frames, H and W pixels.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

import regate
from harness.data.sample import Encoded, Media, Sample, Turn, sample_id
from harness.errors import HarnessError, RecipeError
from harness.lmms_plugin.share import one_tower_pass
from regate.types import IGNORE, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from harness.data.sample import Batch
    from harness.models.adapter import Adapter
    from regate.types import Decision


@dataclass(frozen=True, slots=True)
class Ask:
    """One item: media, the user's turn, and the answers to score (none where the answer is generated)."""

    key: str
    media: tuple[Media, ...]
    prompt: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OptionLoss:
    """Summed negative log-likelihood (nats) of an option's targets, how many they are, and whether greedy decoding
    would have written them."""

    loss: float
    tokens: int
    greedy: bool


@runtime_checkable
class Speaks(Protocol):
    """What generation needs of a processor beside the `Processor` protocol."""

    @property
    def end_id(self) -> int:
        """Closes the assistant's turn."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, without markers."""
        ...


@dataclass
class FrameCache:
    """Decoded media, kept up to a number of bytes: several questions, tasks and checkpoints ask for the same clip.

    Attributes:
        read: decodes one media to uint8 T3HW; raises an error that names the file.
    """

    read: Callable[[Media], Tensor]
    max_bytes: int = 512 * 2**20
    _kept: dict[Media, Tensor] = field(default_factory=dict)
    _bytes: int = 0

    def __call__(self, media: Media) -> Tensor:
        found = self._kept.get(media)
        if found is not None:
            return found
        frames_T3HW = self.read(media)
        if self._bytes + frames_T3HW.nbytes <= self.max_bytes:
            self._kept[media] = frames_T3HW
            self._bytes += frames_T3HW.nbytes
        return frames_T3HW


@dataclass
class Scorer:
    """A checkpoint's model with what it needs to read questions.

    Attributes:
        model: as `Adapter.load` gives it, on its device.
        rows: most sequences of one forward pass; the options of one item are never split, so an item with more
            options than that makes a larger one.
        dtype: autocast type, None for none.
    """

    adapter: Adapter
    model: nn.Module
    frames: Callable[[Media], Tensor]
    rows: int = 64
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        self.processor = self.adapter.processor()
        self.scored = regate.ScoredLM(self.model)
        self.gate = regate.DenseGate()

    @torch.inference_mode()
    def option_losses(self, asks: Sequence[Ask], advance: Callable[[int], None]) -> list[list[OptionLoss]]:
        """For every item, one loss an option, in their order.

        Raises:
            DataError: a media file cannot be read; it is named.
            HarnessError: an option has no target, two options are the same tokens, or a loss is not finite.
        """
        found: list[list[OptionLoss]] = [[] for _ in asks]
        done = 0
        for chunk, frames in self._read_ahead(_chunks(asks, self.rows)):
            rows: list[Encoded] = []
            clip_B: list[int] = []
            for place, i in enumerate(chunk):
                rows += self._encode_options(asks[i], frames[i])
                clip_B += [place] * len(asks[i].options)
            with one_tower_pass(self.model, clip_B):
                losses = iter(self._losses(rows))
            for i in chunk:
                found[i] = [next(losses) for _ in asks[i].options]
                _check(asks[i], found[i])
            done += len(chunk)
            advance(done)
        return found

    @torch.inference_mode()
    def answers(
        self, asks: Sequence[Ask], *, max_new_tokens: int, until: Sequence[str], advance: Callable[[int], None]
    ) -> list[tuple[str, int]]:
        """For every item the greedily generated answer and its number of tokens.

        Raises:
            DataError: a media file cannot be read; it is named.
            RecipeError: the adapter's processor cannot turn tokens into text.
        """
        if not isinstance(self.processor, Speaks):
            raise RecipeError(
                f"adapter {self.adapter.name}: its processor has no end_id and decode, which generated answers need",
                hint="choose a benchmark that scores options",
            )
        found: list[tuple[str, int]] = [("", 0)] * len(asks)
        done = 0
        for chunk, frames in self._read_ahead(_chunks(asks, self.rows)):
            rows = [self.processor.encode_prompt(_sample(asks[i], ()), frames[i]) for i in chunk]
            for i, ids in zip(chunk, self._greedy(self.processor, rows, max_new_tokens, until), strict=True):
                found[i] = (_cut(self.processor.decode(ids), until), len(ids))
            done += len(chunk)
            advance(done)
        return found

    def _encode_options(self, ask: Ask, frames: Sequence[Tensor]) -> list[Encoded]:
        rows = [self.processor.encode(_sample(ask, (option,)), frames) for option in ask.options]
        targets = [tuple(row.labels_S[row.labels_S != IGNORE].tolist()) for row in rows]
        for option, ids in zip(ask.options, targets, strict=True):
            if not ids:
                raise HarnessError(f"question {ask.key}: option {option!r} has no target tokens to score")
        if len(set(targets)) < len(targets):
            raise HarnessError(f"question {ask.key}: two options are the same tokens: {', '.join(ask.options)}")
        return rows

    def _losses(self, rows: Sequence[Encoded]) -> list[OptionLoss]:
        batch = self.processor.collate(rows)
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

    def _greedy(
        self, speaks: Speaks, prompts: Sequence[Encoded], max_new_tokens: int, until: Sequence[str]
    ) -> list[list[int]]:
        """Token ids of the answers, without the end marker. Each step runs the whole rows again: slower than a
        cache, but the one path that every adapter has."""
        rows = list(prompts)
        ids: list[list[int]] = [[] for _ in rows]
        live = list(range(len(rows)))
        for _ in range(max_new_tokens):
            # What is predicted is found like any target: a stand-in target after the row's last token.
            batch = self.processor.collate([_grow(rows[i], speaks.end_id, target=True) for i in live])
            decision = self.gate.decide(batch.layout, batch.sample_ids_B, step=0)
            logits_BV, _ = self._forward(batch, decision)
            if 0 <= self.processor.placeholder_id < logits_BV.shape[1]:
                logits_BV[:, self.processor.placeholder_id] = -math.inf  # stands for media, is no word
            still = []
            for i, token in zip(live, logits_BV.argmax(dim=-1).tolist(), strict=True):
                if token == speaks.end_id:
                    continue
                ids[i].append(token)
                rows[i] = _grow(rows[i], token, target=False)
                if not any(stop in speaks.decode(ids[i]) for stop in until):
                    still.append(i)
            live = still
            if not live:
                break
        return ids

    def _forward(self, batch: Batch, decision: Decision) -> tuple[Tensor, Tensor]:
        with self._autocast():
            return self.adapter.forward(self.scored, batch, decision)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.dtype)

    def _read_ahead(self, chunks: Sequence[_Chunk]) -> Iterator[tuple[_Chunk, dict[int, list[Tensor]]]]:
        """The chunks with their decoded media; the next one is decoded while this one is computed."""

        def read(chunk: _Chunk) -> dict[int, list[Tensor]]:
            return {i: [self.frames(media) for media in ask.media] for i, ask in chunk.items()}

        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = [pool.submit(read, chunk) for chunk in chunks[:1]]
            for k, chunk in enumerate(chunks):
                frames = ahead.pop().result()
                ahead += [pool.submit(read, later) for later in chunks[k + 1 : k + 2]]
                yield chunk, frames


_Chunk = dict[int, Ask]
"""Items of one forward pass by their index."""


def _chunks(asks: Sequence[Ask], rows: int) -> list[_Chunk]:
    """Items of about the same length together, longest first: memory runs out at once or not at all."""
    order = sorted(range(len(asks)), key=lambda i: (-_length(asks[i]), i))
    chunks: list[_Chunk] = [{}]
    used = 0
    for i in order:
        need = max(1, len(asks[i].options))
        if chunks[-1] and used + need > rows:
            chunks.append({})
            used = 0
        chunks[-1][i] = asks[i]
        used += need
    return chunks if chunks[-1] else []


def _length(ask: Ask) -> int:
    return len(ask.prompt) + max((len(option) for option in ask.options), default=0)


def _sample(ask: Ask, answer: tuple[str, ...]) -> Sample:
    turns = (Turn("user", ask.prompt), *(Turn("assistant", text) for text in answer))
    return Sample(sample_id("question", ask.key), ask.key, ask.media, turns)


def _check(ask: Ask, losses: Sequence[OptionLoss]) -> None:
    for option, found in zip(ask.options, losses, strict=True):
        if not math.isfinite(found.loss):
            raise HarnessError(f"question {ask.key}: the loss of option {option!r} is {found.loss}")


def _grow(row: Encoded, token: int, *, target: bool) -> Encoded:
    """The row with one more token: a word of the answer so far, or the target that stands for the next one."""

    def more(values_S: Tensor, value: int) -> Tensor:
        return torch.cat([values_S, values_S.new_tensor([value])])

    return replace(
        row,
        input_ids_S=more(row.input_ids_S, token),
        labels_S=more(row.labels_S, token if target else IGNORE),
        kind_S=more(row.kind_S, int(Kind.TARGET if target else Kind.PROMPT)),
        ordinal_S=more(row.ordinal_S, 0 if target else -1),
    )


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in until if stop and stop in text]
    return text[: min(ends)] if ends else text


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Autocast type of a recipe's `train.precision` on a device: evaluation computes as training does."""
    if precision == "auto":
        capable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if capable else None
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
