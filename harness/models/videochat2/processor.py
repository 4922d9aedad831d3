"""Conversations and frames for VideoChat2, with the ids and labels of the official code.

Legend: B rows, S expanded length, N clips of all rows, T frames, F frames of all clips, L instruction tokens,
H and W pixels, Z pixels of the model's side.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.utils.rnn import pad_sequence

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.data.processor import make_row, pad_rows, refuse_missing_pixels
from harness.models.videochat2.conversation import Conversation, prompt_conversation, training_conversation
from regate.types import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from harness.data.sample import Batch, Encoded, Sample
    from harness.models.videochat2.image_processing import Pixels

SCHEMA: Final = 1
LABEL_RULE: Final = "every answer and the </s> behind it"
TRUNCATION: Final = "from the right, beyond max_length positions beside the visual tokens"
TEMPLATE: Final = "{i} [INST] <Video></Video> [/INST] [INST] {q} [/INST] {a} </s>"
QFORMER_FOLDER: Final = "qformer_tokenizer"
"""Of a checkpoint, beside the language model's tokenizer."""


@dataclass(frozen=True, slots=True)
class _Text:
    """Tokens around the visual ones.

    Attributes:
        before, after: ids in front of the visual tokens and behind them.
        kinds_before, kinds_after: `Kind` of each.
    """

    before: list[int]
    kinds_before: list[int]
    after: list[int]
    kinds_after: list[int]


@dataclass(frozen=True)
class VideoChat2Conversations:
    """The `Processor` protocol for VideoChat2.

    Attributes:
        qformer_tokenizer: as `weights.qformer_tokenizer` gives it.
        frames: T, of every video. The text of a row does not depend on it.
        visual_tokens: placeholders of one clip or image.
        placeholder_id: outside the vocabulary: no text can hold it.
        qformer_length: most tokens of an instruction; what is before is cut off, as in the official code.
        max_length: most positions of a row beside its visual ones, `<s>` included; what is beyond is cut off.
        bos_as_ones: see `VideoChat2Config`; rows of `encode` ask the model for it, prompts have the real `<s>`, as in
            the official training and its demonstrations.
    """

    tokenizer: Any
    qformer_tokenizer: Any
    pixels: Pixels
    frames: int
    visual_tokens: int
    placeholder_id: int
    qformer_length: int = 512
    max_length: int = 512
    bos_as_ones: bool = True

    @property
    def pad_id(self) -> int:
        """`</s>` where the tokenizer has no padding of its own, as in the official code."""
        own = self.tokenizer.pad_token_id
        return self.end_id if own is None else int(own)

    @property
    def end_id(self) -> int:
        """Closes an answer; generation stops there."""
        return int(self.tokenizer.eos_token_id)

    @property
    def fingerprint(self) -> str:
        """Hash of tokenizers, template, label rule, truncation and number of visual tokens. The number of frames is
        not in it: a row's text, and so its reference losses, are the same for any number above one."""
        return digest(
            {
                "schema": SCHEMA,
                "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
                "qformer_tokenizer": self.qformer_tokenizer.backend_tokenizer.to_str(),
                "template": TEMPLATE,
                "labels": LABEL_RULE,
                "truncation": [TRUNCATION, self.max_length],
                "media": [self.visual_tokens, self.placeholder_id, self.frames == 1, self.pixels.hd],
            }
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without markers."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """A training conversation; with `frames` None the same row without pixels.

        What stands beyond `max_length` is cut off, as in the official code; a row that loses all its answers stays
        and trains nothing.

        Raises:
            DataError: turns or tags do not match, or the instruction leaves no room for the visual tokens.
        """
        conversation = training_conversation(sample, self.frames)
        text = self._tokens(sample, conversation)
        return self._row(sample, conversation, text, frames)

    def encode_prompt(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """The turns before the last answer; nothing is a target. Errors as `prompt`."""
        return self.prompt(sample, frames)

    def prompt(
        self, sample: Sample, frames: Sequence[Tensor] | None, *, opening: str = "", speak: bool = True
    ) -> Encoded:
        """Everything up to the answer, and the words that it starts with; `prompt_conversation` explains the choices.

        Raises:
            DataError: as `encode`, and for a question longer than `max_length`, of which nothing is cut.
        """
        conversation = prompt_conversation(sample, self.frames, opening=opening, speak=speak)
        text = self._tokens(sample, conversation)
        if self._length(text) > self.max_length:
            raise DataError(
                f"sample {sample.key}: a question of {self._length(text)} tokens, more than {self.max_length}"
            )
        kinds = [int(Kind.PROMPT) if kind == Kind.TARGET else kind for kind in text.kinds_after]
        asked = _Text(text.before, text.kinds_before, text.after, kinds)
        return self._row(sample, conversation, asked, frames, asks=True)

    def check(self, sample: Sample) -> None:
        """What can be said of a conversation without a tokenizer. Errors as `encode`."""
        training_conversation(sample, self.frames)

    def tokens(self, sample: Sample) -> int:
        """Positions of the whole conversation beside the visual ones, before anything is cut."""
        return self._length(self._tokens(sample, training_conversation(sample, self.frames)))

    def instruction_tokens(self, sample: Sample) -> int:
        """Tokens of what the QFormer reads, before anything is cut."""
        conversation = training_conversation(sample, self.frames)
        return len(self.qformer_tokenizer(conversation.instruction, verbose=False)["input_ids"])

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Right-padded int64 input_ids and attention_mask [B, S]; bos_as_ones bool [B]; and of all clips pixel_values
        uint8 [F, 3, Z, Z] (float32 with HD tiles), frame_counts, and left-padded qformer_input_ids and
        qformer_attention_mask [N, L], the four absent where no row has pixels.

        Raises:
            ValueError: some rows with media have pixels and others lack them.
        """
        media = self._media(rows) if any(row.pixels is not None for row in rows) else {}
        bos_as_ones_B = torch.stack([row.extra["bos_as_ones"] for row in rows])
        table = self.pixels.as_read()
        colours = {} if table is None or not media else {"pixel_values": table}
        return pad_rows(rows, self.pad_id, {"bos_as_ones": bos_as_ones_B, **media}, colours)

    def save(self, directory: Path) -> None:
        """Both tokenizers' files, for whoever reads the checkpoint."""
        self.tokenizer.save_pretrained(str(directory))
        self.qformer_tokenizer.save_pretrained(str(directory / QFORMER_FOLDER))

    def _media(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        refuse_missing_pixels(rows)
        frames: list[Tensor] = []
        counts: list[int] = []
        words: list[Tensor] = []
        for row in rows:
            if row.pixels is None:
                continue
            frames.append(row.pixels.flatten(0, 1))
            counts += [row.pixels.shape[1]] * row.pixels.shape[0]
            words += [row.extra["instruction_L"]] * row.pixels.shape[0]
        pixels = torch.cat(frames)
        pad = int(self.qformer_tokenizer.pad_token_id)
        ones = [torch.ones_like(row) for row in words]
        return {
            "pixel_values": self.pixels.normalise(pixels) if self.pixels.hd else pixels,
            "frame_counts": tuple(counts),
            "qformer_input_ids": pad_sequence(words, batch_first=True, padding_value=pad, padding_side="left"),
            "qformer_attention_mask": pad_sequence(ones, batch_first=True, padding_side="left"),
        }

    @staticmethod
    def _length(text: _Text) -> int:
        return 1 + len(text.before) + len(text.after)

    def _tokens(self, sample: Sample, conversation: Conversation) -> _Text:
        """Both texts in tokens. Which are answers is told by the lengths of the pieces, tokenized on their own, as
        the official code does."""
        before, kinds_before = self._pieces(conversation.before, [conversation.spoken])
        questions = [block.words for block in conversation.blocks if block.words]
        lead = [conversation.spoken] if not conversation.before else []
        after, kinds_after = self._pieces(conversation.after, [*lead, *questions])
        lengths = [self._count(block.text) for block in conversation.blocks]
        if sum(lengths) != len(after):
            raise DataError(
                f"sample {sample.key}: its turns are {sum(lengths)} tokens one by one and {len(after)} together, so "
                "its answers cannot be told from its questions",
                hint="leave the sample out of the annotations",
            )
        for block, stop, length in zip(conversation.blocks, accumulate(lengths), lengths, strict=True):
            learned = self._count(block.learned)
            kinds_after[stop - length : stop - length + learned] = [int(Kind.TARGET)] * learned
        return _Text(before, kinds_before, after, kinds_after)

    def _pieces(self, text: str, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids and kinds of a text in which `words` are prompts, in their order, and the rest are markers."""
        if not text:
            return [], []
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        kinds = [int(Kind.SPECIAL)] * len(text)
        begin = 0
        for part in filter(None, words):
            begin = text.index(part, begin)
            kinds[begin : begin + len(part)] = [int(Kind.PROMPT)] * len(part)
            begin += len(part)
        # A token's last character: its first may be the space in front of the word.
        return encoding["input_ids"], [kinds[max(start, stop - 1)] for start, stop in encoding["offset_mapping"]]

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else 0

    def _row(
        self,
        sample: Sample,
        conversation: Conversation,
        text: _Text,
        frames: Sequence[Tensor] | None,
        *,
        asks: bool = False,
    ) -> Encoded:
        pixels = self._clips(sample, frames)
        visual = self._visual(sample, pixels)
        if visual and 1 + len(text.before) > self.max_length:
            raise DataError(
                f"sample {sample.key}: an instruction of {len(text.before)} tokens, more than max_length "
                f"{self.max_length} leaves room for",
                hint="leave the sample out of the annotations",
            )
        media = [self.placeholder_id] * visual
        ids = [int(self.tokenizer.bos_token_id), *text.before, *media, *text.after]
        kinds = [int(Kind.SPECIAL), *text.kinds_before, *([int(Kind.VISUAL)] * visual), *text.kinds_after]
        limit = self.max_length + visual
        read: Any = self.qformer_tokenizer
        words = read(conversation.instruction, truncation=True, max_length=self.qformer_length)["input_ids"]
        return make_row(
            sample,
            ids[:limit],
            kinds[:limit],
            pixels=pixels,
            cut=kinds[limit:].count(int(Kind.TARGET)) if len(kinds) > limit else None,
            extra={
                "instruction_L": torch.tensor(words, dtype=torch.int64),
                "bos_as_ones": torch.tensor(self.bos_as_ones and not asks),
            },
        )

    def squares(self, frames_T3HW: Tensor) -> Tensor:
        """See `ReadsSquares`."""
        return self.pixels.clips(frames_T3HW)[0]

    def square_settings(self) -> dict[str, Any] | None:
        """See `ReadsSquares`; how many tiles an HD clip has depends on its shape."""
        return None if self.pixels.hd else {"as": "videochat2", "size": self.pixels.size}

    def _visual(self, sample: Sample, clips: Tensor | None) -> int:
        """Visual tokens of the row."""
        if not sample.media:
            return 0
        if clips is not None:
            return clips.shape[0] * self.visual_tokens
        if self.pixels.hd:
            raise DataError(f"sample {sample.key}: how many tiles an HD row has is known with its frames only")
        return self.visual_tokens

    def _clips(self, sample: Sample, frames: Sequence[Tensor] | None) -> Tensor | None:
        """[clips, T, 3, Z, Z], T being 1 for an image."""
        if frames is None or not sample.media:
            return None
        wanted = 1 if sample.media[0].kind == "image" else self.frames
        clip = frames[0] if len(frames) == 1 else torch.zeros(0)
        if clip.dim() != 4 or clip.shape[:2] != (wanted, 3) or clip.dtype != torch.uint8:
            shapes = [(tuple(part.shape), str(part.dtype)) for part in frames]
            raise DataError(f"sample {sample.key}: one uint8 clip of {wanted} frames expected, found {shapes}")
        return self.pixels.clips(clip)
