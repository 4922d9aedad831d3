"""Words of a replay: which of them a gate left out, and single answers token by token.

A word's kind is that of `harness.analysis.choices.word_classes`. A "grounded" word, which only the picture
determines, is known where the data source marks it, and is never guessed.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from harness.analysis.choices.word_classes import KINDS, MARKER, group, spread_spans, word_class

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from harness.data.processor import Processor
    from harness.data.sample import Sample

MOST_WORDS: Final = 5000
"""Words that are listed one by one, those with the most targets; the sums by kind are over all of them."""
BLANK: Final = "␣"
"""How white space that is a token of its own is written."""
PANELS: Final = 4
"""Answers that are shown token by token: the first of the data set, in order of id."""
_TARGETS: Final = (8, 120)
"""Fewest and most targets of a sample that is shown."""
_STRIP: Final = (8, 72)
"""Frames of a strip, and their height in pixels."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """One sample under the gate.

    Attributes:
        sample: its place in the data set.
        tokens: ids of its targets, in canonical order.
        loss: float32, reference loss of each target, or None where the gate reads none.
        kept: epoch -> bool, one entry a target.
        by_reference: bool, what the reference loss alone would keep, or None likewise.
    """

    sample: int
    tokens: list[int]
    loss: NDArray[Any] | None
    kept: dict[int, NDArray[Any]]
    by_reference: NDArray[Any] | None


@dataclass(frozen=True, slots=True)
class Token:
    """A target as a reader sees it.

    Attributes:
        piece: its text with the white space before it.
        answer: which answer of the conversation it belongs to, counted from 0.
        number: which word of the conversation.
        word: that word, in lower case.
        kind: one of `harness.analysis.choices.word_classes.KINDS`.
        grounded: class of a word that only the picture determines, or None.
    """

    piece: str
    answer: int
    number: int
    word: str
    kind: str
    grounded: str | None


class Texts:
    """Token ids of a processor as words."""

    def __init__(self, processor: Processor) -> None:
        self._tokenizer = processor.tokenizer
        self._markers = frozenset(self._tokenizer.all_special_ids) | frozenset(self._tokenizer.added_tokens_decoder)
        self._pieces: dict[tuple[int | None, int], str] = {}

    def of(self, sample: Sample, ids: Sequence[int]) -> list[Token]:
        """The targets of a sample, whose answers end with a marker each."""
        answers = self._answers(ids)
        spans = self._spans(sample, answers)
        tokens: list[Token] = []
        answer = -1
        for place, (pieces, marker) in enumerate(answers):
            # White space behind a marker is written by the template: it belongs to the answer before.
            answer += not tokens or bool("".join(pieces).strip())
            numbers = group(pieces)
            first = tokens[-1].number + 1 if tokens else 0
            words: dict[int, str] = defaultdict(str)
            for number, piece in zip(numbers, pieces, strict=True):
                words[number] += piece
            for piece, number, grounded in zip(pieces, numbers, spans[place], strict=True):
                word = words[number].strip().lower() or BLANK
                tokens.append(Token(piece, answer, first + number, word, word_class(word), grounded))
            if marker is not None:
                number = tokens[-1].number + 1 if tokens else 0
                tokens.append(Token(marker, answer, number, marker, MARKER, None))
        return tokens

    def _answers(self, ids: Sequence[int]) -> list[tuple[list[str], str | None]]:
        """The pieces up to each marker, and that marker. White space behind a marker stands alone, and behind the
        last one there may be pieces without any."""
        answers: list[tuple[list[str], str | None]] = []
        pieces: list[str] = []
        before: int | None = None
        for token in ids:
            if token in self._markers:
                answers.append((pieces, str(self._tokenizer.convert_ids_to_tokens(token))))
                pieces, before = [], None
            else:
                piece = self._piece(before, token)
                if answers and pieces and piece.strip() and not "".join(pieces).strip():
                    answers.append((pieces, None))
                    pieces = []
                pieces.append(piece)
                before = token
        return [*answers, (pieces, None)] if pieces else answers

    def _piece(self, before: int | None, token: int) -> str:
        """A token's text as it stands behind another one: tokenizers write the space between words in many ways."""
        key = (before, token)
        if key not in self._pieces:
            head = "" if before is None else self._decode([before])
            whole = self._decode([token] if before is None else [before, token])
            if not whole.startswith(head):  # an entry that is part of a letter, or one that changes the text before
                head, whole = "", self._decode([token])
            self._pieces[key] = whole[len(head) :]
        return self._pieces[key]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _spans(self, sample: Sample, answers: list[tuple[list[str], str | None]]) -> list[list[str | None]]:
        """The grounded class of each piece; None throughout where the answers do not match the sample's turns."""
        none: list[list[str | None]] = [[None] * len(pieces) for pieces, _ in answers]
        if not sample.spans:
            return none
        assistant_turns = [index for index, turn in enumerate(sample.turns) if turn.role == "assistant"]
        spoken_answers = [index for index, (pieces, _) in enumerate(answers) if "".join(pieces).strip()]
        if len(assistant_turns) != len(spoken_answers):
            return none
        for turn, answer in zip(assistant_turns, spoken_answers, strict=True):
            turn_spans = [(first, end, name) for index, first, end, name in sample.spans if index == turn]
            classes = spread_spans(answers[answer][0], sample.turns[turn].text, turn_spans)
            none[answer] = classes or none[answer]
        return none


@dataclass(slots=True)
class _Sum:
    """Of one word or one kind: how often it was written, its targets, and what became of them."""

    words: int = 0
    targets: int = 0
    grounded: int = 0
    loss: float = 0.0
    left_out: list[int] = field(default_factory=list)

    def row(self, *, with_loss: bool) -> dict[str, Any]:
        mean = round(self.loss / self.targets, 6) if with_loss and self.targets else None
        return {
            "words": self.words,
            "targets": self.targets,
            "grounded": self.grounded,
            "left_out": self.left_out,
            "mean_loss": mean,
        }


class WordCounts:
    """Targets that are left out, by word and by kind of word, for each epoch."""

    def __init__(self, epochs: Sequence[int]) -> None:
        self._epochs = tuple(epochs)
        self._words: dict[tuple[str, str], _Sum] = {}
        self._kinds: dict[str, _Sum] = {}
        self._grounded: dict[str, _Sum] = {}
        self._losses = True
        self.targets = 0

    def add(self, tokens: Sequence[Token], chosen: Chosen) -> None:
        kept = [chosen.kept[epoch].tolist() for epoch in self._epochs]
        losses = None if chosen.loss is None else chosen.loss.tolist()
        self._losses = losses is not None
        self.targets += len(tokens)
        before = -1
        for place, token in enumerate(tokens):
            out = [not epoch[place] for epoch in kept]
            loss = losses[place] if losses is not None else 0.0
            sums = [self._sum(self._words, (token.word, token.kind)), self._sum(self._kinds, token.kind)]
            if token.grounded is not None:
                sums.append(self._sum(self._grounded, token.grounded))
            for total in sums:
                total.words += token.number != before
                total.targets += 1
                total.grounded += token.grounded is not None
                total.loss += loss
                for epoch, left in enumerate(out):
                    total.left_out[epoch] += left
            before = token.number

    def _sum(self, sums: dict[Any, _Sum], key: Any) -> _Sum:
        if key not in sums:
            sums[key] = _Sum(left_out=[0] * len(self._epochs))
        return sums[key]

    def result(self) -> dict[str, Any]:
        """words: the most frequent ones, by number of targets left out in the last epoch; kinds and grounded: all."""
        most = sorted(self._words.items(), key=lambda item: (-item[1].targets, item[0]))[:MOST_WORDS]
        most.sort(key=lambda item: (-item[1].left_out[-1], item[0]))
        kinds = [name for name in KINDS if name in self._kinds]
        return {
            "words": [{"word": word, "kind": kind, **self._row(total)} for (word, kind), total in most],
            "words_in_all": len(self._words),
            "kinds": [{"kind": kind, **self._row(self._kinds[kind])} for kind in kinds],
            "grounded": [{"class": name, **self._row(total)} for name, total in sorted(self._grounded.items())],
        }

    def _row(self, total: _Sum) -> dict[str, Any]:
        return total.row(with_loss=self._losses)


class Panels:
    """The first answers of the data set, token by token, with a strip of the frames that they are about."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self.panels: list[dict[str, Any]] = []

    def add(self, sample: Sample, tokens: Sequence[Token], chosen: Chosen) -> None:
        """Keep the sample if it is one of the first with a loss, media and a number of targets that can be shown."""
        fits = _TARGETS[0] <= len(tokens) <= _TARGETS[1]
        if len(self.panels) == PANELS or chosen.loss is None or not sample.media or not fits:
            return
        assert chosen.by_reference is not None
        rows = zip(tokens, chosen.loss.tolist(), chosen.by_reference, chosen.kept[max(chosen.kept)], strict=True)
        self.panels.append(
            {
                "sample": sample.key,
                "questions": [turn.text for turn in sample.turns if turn.role == "user"],
                "answers": [turn.text for turn in sample.turns if turn.role == "assistant"],
                "frames": self._strip(sample),
                "tokens": [
                    {
                        "text": token.piece,
                        "answer": token.answer,
                        "kind": token.kind,
                        "grounded": token.grounded,
                        "loss": round(loss, 4),
                        "by_reference": bool(top),
                        "kept": bool(kept),
                    }
                    for token, loss, top, kept in rows
                ],
            }
        )

    def _strip(self, sample: Sample) -> str | None:
        """Frames side by side as a base64 JPEG, or None where the media cannot be read."""
        from PIL import Image

        from harness.data.loading.errors import VideoError
        from harness.data.loading.video import read_frames

        frames, height = _STRIP
        try:
            clip_T3HW = read_frames(sample.media[0], frames=min(frames, self._frames))
        except VideoError:
            return None
        pictures = []
        for frame in clip_T3HW.permute(0, 2, 3, 1).numpy():
            picture = Image.fromarray(np.ascontiguousarray(frame))
            width = max(1, round(picture.width * height / picture.height))
            pictures.append(picture.resize((width, height), Image.Resampling.BICUBIC))
        strip = Image.new("RGB", (sum(p.width for p in pictures) + 2 * (len(pictures) - 1), height), "white")
        at = 0
        for picture in pictures:
            strip.paste(picture, (at, 0))
            at += picture.width + 2
        out = io.BytesIO()
        strip.save(out, "JPEG", quality=90)
        return base64.b64encode(out.getvalue()).decode()


__all__ = ["PANELS", "Chosen", "Panels", "Texts", "Token", "WordCounts"]
