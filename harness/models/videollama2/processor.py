"""Conversations and frames for VideoLLaMA2, with the ids and labels of the official code.

The tokenizer's own chat template is used. The tag of the media goes to the front of its turn; the text before and
after it is tokenized apart. Targets are what the template puts between the marker that opens the assistant's turn and
the next turn: for Qwen2 the answer, `<|im_end|>` and the line break behind it.

Legend: B rows, S expanded length, T frames, F frames of all clips, H and W pixels, Z pixels of the tower's side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.data.processor import make_row, pad_rows, refuse_missing_pixels
from regate.types import Grid, Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from harness.data.sample import Batch, Encoded, Sample
    from harness.models.videollama2.image_processing import Pixels

SCHEMA: Final = 1
MEDIA: Final = re.compile(r"<media:(\d+)>")
MARK: Final = "<media:0>"
LABEL_RULE: Final = "from the marker that opens the assistant's turn to the end of the turn in the template"
TRUNCATION: Final = "from the right, counting a media as one token, never a media"


@dataclass(frozen=True, slots=True)
class _Text:
    """A conversation in tokens, one of them for the media.

    Attributes:
        ids: MEDIA_TOKEN where the media stands.
        kinds: `Kind` of each.
    """

    ids: list[int]
    kinds: list[int]


MEDIA_TOKEN: Final = -1


@dataclass(frozen=True)
class VideoLLaMA2Conversations:
    """The `Processor` protocol for VideoLLaMA2.

    Attributes:
        frames: T, of every clip.
        visual_tokens: placeholders of one clip or image.
        grid: what they show; None where the caller does not need it.
        max_length: most tokens of a conversation, its media counted as one; what is beyond is cut off.
    """

    tokenizer: PreTrainedTokenizerBase
    pixels: Pixels
    frames: int
    visual_tokens: int
    max_length: int = 2048
    grid: Grid | None = None

    @property
    def placeholder_id(self) -> int:
        """The first id behind the tokenizer's: no text can hold it."""
        return len(self.tokenizer)

    @property
    def pad_id(self) -> int:
        tokenizer: Any = self.tokenizer
        candidates = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
        return next(int(token) for token in candidates if token is not None)

    @property
    def end_id(self) -> int:
        """Closes a turn; generation stops there."""
        tokenizer: Any = self.tokenizer
        return int(tokenizer.eos_token_id)

    @property
    def fingerprint(self) -> str:
        """Hash of tokenizer, template, label rule, truncation, pixels and number of visual tokens."""
        tokenizer: Any = self.tokenizer
        return digest(
            {
                "schema": SCHEMA,
                "tokenizer": tokenizer.backend_tokenizer.to_str(),
                "template": tokenizer.chat_template,
                "labels": LABEL_RULE,
                "truncation": [TRUNCATION, self.max_length],
                "pixels": self.pixels.settings(),
                "media": [self.frames, self.visual_tokens, self.placeholder_id],
            }
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without markers."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """A training conversation; with `frames` None the same row without pixels.

        Raises:
            DataError: turns do not alternate or end with a question, the media and its tag do not match, or cutting
                the conversation at `max_length` would cut the media off or leave no target.
        """
        self.check(sample)
        whole = self._conversation(sample, _messages(sample))
        text = self._cut(sample, whole)
        cut = None if text is whole else whole.kinds[self.max_length :].count(int(Kind.TARGET))
        return replace(self._encoded(sample, text, frames), cut=cut)

    def check(self, sample: Sample) -> None:
        """What can be said of a training conversation without a tokenizer.

        Raises:
            DataError: as `encode`.
        """
        messages = _messages(sample)
        if len(messages) % 2 or not messages:
            raise DataError(f"sample {sample.key}: {len(messages)} turns; every question needs an answer")
        _check_media(sample, sum(len(MEDIA.findall(message["content"])) for message in messages))

    def encode_prompt(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """The turns before the last answer and the marker that opens the assistant's; nothing is a target.

        Raises:
            DataError: as `encode`, and for a question longer than `max_length`, of which nothing is cut.
        """
        messages = _messages(sample)
        if messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        text = self._tokens(self._render(sample, messages, opened=True))
        if len(text.ids) > self.max_length:
            raise DataError(f"sample {sample.key}: a question of {len(text.ids)} tokens, more than {self.max_length}")
        return self._encoded(sample, text, frames)

    def tokens(self, sample: Sample) -> int:
        """Tokens of the whole conversation, its media counted as one, before anything is cut."""
        return len(self._tokens(self._render(sample, _messages(sample))).ids)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Right-padded int64 input_ids and attention_mask [B, S]; pixel_values uint8 [F, 3, Z, Z] of all media of
        the batch and frame_counts, the number of frames of each, both absent where no row has pixels.

        Raises:
            ValueError: some rows with media have pixels and others lack them.
        """
        clips = [row.pixels for row in rows if row.pixels is not None]
        if not clips:
            return pad_rows(rows, self.pad_id, {})
        refuse_missing_pixels(rows)
        media = {
            "pixel_values": torch.cat(clips),
            "frame_counts": tuple(len(clip) for clip in clips),
        }
        return pad_rows(rows, self.pad_id, media, {"pixel_values": self.pixels.colours})

    def save(self, directory: Path) -> None:
        """The tokenizer's files, for whoever reads the checkpoint."""
        self.tokenizer.save_pretrained(str(directory))

    def _conversation(self, sample: Sample, messages: list[dict[str, str]]) -> _Text:
        """Tokens of all turns; the counts of the tokens before and behind each answer say which are targets."""
        text = self._tokens(self._render(sample, messages))
        for turn in range(1, len(messages), 2):
            opened = self._render(sample, messages[:turn], opened=True)
            start = len(self._tokens(opened).ids)
            stop = len(text.ids)
            if turn + 1 < len(messages):
                stop = len(self._tokens(self._render(sample, messages[: turn + 1])).ids)
            text.kinds[start:stop] = [int(Kind.TARGET)] * (stop - start)
        return text

    def _render(
        self, sample: Sample, messages: list[dict[str, str]], *, opened: bool = False
    ) -> tuple[str, list[int]]:
        """The template's text, and for each character of it whether the user or a system turn wrote it."""
        tokenizer: Any = self.tokenizer
        system = [{"role": "system", "content": turn.text} for turn in sample.turns if turn.role == "system"]

        def render(count: int, opened: bool) -> str:
            rendered: str = tokenizer.apply_chat_template(
                [*system, *messages[:count]], tokenize=False, add_generation_prompt=opened
            )
            return rendered

        whole = render(len(messages), opened)
        kinds = [int(Kind.SPECIAL)] * len(whole)
        before = 0
        for count, message in enumerate(messages, start=1):
            behind = len(whole) if count == len(messages) else len(render(count, opened=False))
            content = MEDIA.sub("", message["content"]).strip()
            place = whole.rfind(content, before, behind)
            if message["role"] == "user" and place >= 0:
                kinds[place : place + len(content)] = [int(Kind.PROMPT)] * len(content)
            before = behind
        for turn in system:
            place = whole.find(turn["content"].strip())
            size = len(turn["content"].strip())
            if place >= 0:
                kinds[place : place + size] = [int(Kind.PROMPT)] * size
        return whole, kinds

    def _tokens(self, rendered: tuple[str, list[int]]) -> _Text:
        """The text in front of the media and behind it tokenized apart, as the official code does."""
        whole, kinds = rendered
        tokenizer: Any = self.tokenizer
        text = _Text([], [])
        begin = 0
        for mark in [*MEDIA.finditer(whole), None]:
            end = len(whole) if mark is None else mark.start()
            if end > begin:
                piece = whole[begin:end]  # too long is told by `_cut`, with the sample
                encoding = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                text.ids.extend(encoding["input_ids"])
                text.kinds.extend(kinds[begin + start] for start, _ in encoding["offset_mapping"])
            if mark is not None:
                text.ids.append(MEDIA_TOKEN)
                text.kinds.append(int(Kind.VISUAL))
                begin = mark.end()
        return text

    def _cut(self, sample: Sample, text: _Text) -> _Text:
        if len(text.ids) <= self.max_length:
            return text
        kept = _Text(text.ids[: self.max_length], text.kinds[: self.max_length])
        where = f"sample {sample.key}: {len(text.ids)} tokens, more than max_length {self.max_length}"
        if MEDIA_TOKEN in text.ids[self.max_length :]:
            raise DataError(f"{where}, and its media stands beyond", hint="leave the sample out of the annotations")
        if int(Kind.TARGET) not in kept.kinds:
            raise DataError(f"{where}, and no target is within", hint="leave the sample out of the annotations")
        return kept

    def _encoded(self, sample: Sample, text: _Text, frames: Sequence[Tensor] | None) -> Encoded:
        media = text.ids.count(MEDIA_TOKEN)
        _check_media(sample, media)
        ids, kinds = list(text.ids), list(text.kinds)
        if media:
            place = ids.index(MEDIA_TOKEN)
            ids[place : place + 1] = [self.placeholder_id] * self.visual_tokens
            kinds[place : place + 1] = [int(Kind.VISUAL)] * self.visual_tokens
        grids = (self.grid,) if media and self.grid is not None else None if media else ()
        return make_row(sample, ids, kinds, pixels=self._clip(sample, frames), grids=grids)

    def squares(self, frames_T3HW: Tensor) -> Tensor:
        """See `ReadsSquares`."""
        return self.pixels.squares(frames_T3HW)

    def square_settings(self) -> dict[str, Any] | None:
        """See `ReadsSquares`."""
        return {"as": "videollama2", **self.pixels.settings()}

    def _clip(self, sample: Sample, frames: Sequence[Tensor] | None) -> Tensor | None:
        """uint8 [T, 3, Z, Z], T being 1 for an image."""
        if frames is None or not sample.media:
            return None
        wanted = 1 if sample.media[0].kind == "image" else self.frames
        clip = frames[0]
        if len(frames) != 1 or clip.dim() != 4 or clip.shape[:2] != (wanted, 3) or clip.dtype != torch.uint8:
            shapes = [(tuple(part.shape), str(part.dtype)) for part in frames]
            raise DataError(f"sample {sample.key}: one uint8 clip of {wanted} frames expected, found {shapes}")
        return self.pixels.squares(clip)


def _check_media(sample: Sample, tags: int) -> None:
    if tags != len(sample.media) or tags > 1:
        raise DataError(
            f"sample {sample.key}: {len(sample.media)} media and {tags} media tags; VideoLLaMA2 takes one video or "
            "image a conversation, named once, or none"
        )


def _messages(sample: Sample) -> list[dict[str, str]]:
    """Questions and answers by turns, the media's tag in front of its question.

    Raises:
        DataError: the speakers do not take turns, or an answer holds a tag.
    """
    messages: list[dict[str, str]] = []
    for turn in sample.turns:
        if turn.role == "system":
            continue
        if turn.role != ("user", "assistant")[len(messages) % 2]:
            raise DataError(f"sample {sample.key}: turn {len(messages)} is the {turn.role}'s; they must take turns")
        text = turn.text
        tags = MEDIA.findall(text)
        if tags and turn.role == "assistant":
            raise DataError(f"sample {sample.key}: an answer holds <media:{tags[0]}>")
        if tags:
            text = "".join(f"<media:{tag}>" for tag in tags) + "\n" + MEDIA.sub("", text).strip()
        messages.append({"role": turn.role, "content": text.strip() if tags else text})
    return messages
