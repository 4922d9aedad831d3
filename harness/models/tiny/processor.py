"""Text and frames of the tiny model: a tokenizer made from the corpus, a ChatML-like template, labels.

A turn is `<|role|> text <|end|>`. Targets are the words of the assistant's turns and the `<|end|>` that
closes them; `<|role|>` and every other `<|end|>` are markers of the template.

Legend: B rows, S expanded length, N clips of a batch, T frames, H and W pixels.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.common.errors import DataError
from harness.common.files import read_json, write_atomic
from harness.common.hashing import digest
from harness.data.loading.pixels import ColourTable
from harness.data.processor import make_row, pad_rows, refuse_missing_pixels
from regate.types import Grid, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from harness.data.sample import Batch, Encoded, Sample, Turn

SCHEMA: Final = 1
PAD, UNKNOWN, VIDEO, END = "<|pad|>", "<|unk|>", "<|video|>", "<|end|>"
ROLES: Final = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
MARKERS: Final = (PAD, UNKNOWN, VIDEO, END, *ROLES.values())
CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
MEDIA: Final = re.compile(r"<media:(\d+)>")
SETTINGS: Final = "tiny_processor.json"
TEMPLATE: Final = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LABEL_RULE: Final = "assistant text and the end marker that closes it"


def train_tokenizer(texts: Iterable[str], *, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Every word of `texts` becomes one entry, most frequent first; other words are spelt letter by letter.

    Lower case, split at white space and punctuation. Deterministic: the order of `texts` does not matter.

    Raises:
        DataError: `texts` holds a character outside printable ASCII, which no entry could stand for.
    """
    backend = Tokenizer(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN, max_input_chars_per_word=64))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    counts: Counter[str] = Counter()
    for text in texts:
        plain = backend.normalizer.normalize_str(MEDIA.sub(" ", text))
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(plain))
    known = set(CHARACTERS + PUNCTUATION)
    for word in counts:
        if not set(word) <= known:
            raise DataError(f"the tiny model's tokenizer cannot write {word!r}: use printable ASCII only")
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    entries = [*MARKERS, *PUNCTUATION, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *words]
    vocabulary = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    backend.model = models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=64)
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[VIDEO, *ROLES.values()],
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@dataclass(frozen=True)
class TinyProcessor:
    """The `Processor` protocol for the tiny model.

    Attributes:
        tokenizer: as `train_tokenizer` made it.
        frames: T, of every clip.
        size: H and W, pixels.
        visual_tokens: placeholders of one clip.
        max_length: longest expanded row; a longer sample is an error, nothing is truncated.
        frames_a_token: neighbouring frames that a visual token merges.
    """

    tokenizer: PreTrainedTokenizerFast
    frames: int
    size: int
    visual_tokens: int
    max_length: int = 512
    frames_a_token: int = 2
    _text: Tokenizer = field(init=False, repr=False, compare=False)
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        text.encode_special_tokens = True  # a marker that stands in a user's text is text, not a marker
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_ids", {m: self.tokenizer.convert_tokens_to_ids(m) for m in MARKERS})

    @property
    def placeholder_id(self) -> int:
        return self._ids[VIDEO]

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def end_id(self) -> int:
        """Closes a turn; generation stops there."""
        return self._ids[END]

    @property
    def vocabulary(self) -> int:
        """V, entries of the tokenizer."""
        return len(self.tokenizer)

    @property
    def fingerprint(self) -> str:
        """Hash of tokenizer, template, label rule, truncation rule and number of visual tokens."""
        return digest(
            {
                "schema": SCHEMA,
                "tokenizer": self._text.to_str(),
                "template": TEMPLATE,
                "labels": LABEL_RULE,
                "truncation": None,
                "settings": self._settings(),
            }
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Generated tokens as text, without markers; lower case, as the tokenizer writes."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """A training conversation; with `frames` None the same row without pixels.

        Raises:
            DataError: a clip is not T3HW of the model's sizes, a media tag is missing or used twice, or the
                row is too long.
        """
        pieces = [self._turn(sample, turn, supervised=turn.role == "assistant") for turn in sample.turns]
        return self._encoded(sample, pieces, frames)

    def encode_prompt(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """The turns before the last answer and `<|assistant|>`; nothing is a target. Errors as `encode`."""
        turns = sample.turns[:-1] if sample.turns and sample.turns[-1].role == "assistant" else sample.turns
        pieces = [self._turn(sample, turn, supervised=False) for turn in turns]
        pieces.append(([self._ids[ROLES["assistant"]]], [int(Kind.SPECIAL)]))
        return self._encoded(sample, pieces, frames)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Right-padded int64 input_ids and attention_mask [B, S]; pixel_values uint8 [N, T, 3, H, W], -1..1 to the
        model.

        Rows are either all with pixels or all without; the frames of a row that failed to decode are black,
        and none of its positions is supervised.

        Raises:
            ValueError: some rows have pixels and others, not failed, lack them.
        """
        pixels = self._pixels(rows)
        if pixels is None:
            return pad_rows(rows, self.pad_id, {})
        return pad_rows(rows, self.pad_id, {"pixel_values": pixels}, {"pixel_values": COLOURS})

    def span_classes(self, sample: Sample) -> tuple[str | None, ...]:
        """For each target, in canonical order, the class of the entry of `sample.spans` around it, or None."""
        classes: list[str | None] = []
        for index, turn in enumerate(sample.turns):
            if turn.role != "assistant":
                continue
            spans = [(first, end, name) for which, first, end, name in sample.spans if which == index]
            for start, stop in self._text.encode(turn.text, add_special_tokens=False).offsets:
                inside = (name for first, end, name in spans if start < end and stop > first)
                classes.append(next(inside, None))
            classes.append(None)
        return tuple(classes)

    def save(self, directory: Path) -> None:
        """An ordinary tokenizer folder and the sizes beside it."""
        self.tokenizer.save_pretrained(str(directory))
        text = json.dumps({"schema": SCHEMA, **self._settings()}, indent=1)
        write_atomic(directory / SETTINGS, text + "\n")

    @classmethod
    def load(cls, directory: Path) -> TinyProcessor:
        """What `save` wrote.

        Raises:
            DataError: the file of sizes was written by another version.
        """
        settings = read_json(directory / SETTINGS, "the sizes of a processor")
        if settings.pop("schema", None) != SCHEMA:
            raise DataError(f"{directory / SETTINGS}: schema {SCHEMA} expected; make the folder again")
        return cls(PreTrainedTokenizerFast.from_pretrained(str(directory), trust_remote_code=False), **settings)

    def _settings(self) -> dict[str, int]:
        return {
            "frames": self.frames,
            "size": self.size,
            "visual_tokens": self.visual_tokens,
            "max_length": self.max_length,
        }

    def _turn(self, sample: Sample, turn: Turn, *, supervised: bool) -> tuple[list[int], list[int]]:
        """Ids and kinds of `<|role|> text <|end|>`, media tags expanded into placeholders."""
        ids, kinds = [self._ids[ROLES[turn.role]]], [int(Kind.SPECIAL)]
        for i, piece in enumerate(MEDIA.split(turn.text)):
            if i % 2:
                self._check_tag(sample, turn, int(piece))
                ids += [self.placeholder_id] * self.visual_tokens
                kinds += [int(Kind.VISUAL)] * self.visual_tokens
                continue
            words = self._text.encode(piece, add_special_tokens=False).ids
            ids += words
            kinds += [int(Kind.TARGET if supervised else Kind.PROMPT)] * len(words)
        ids.append(self.end_id)
        kinds.append(int(Kind.TARGET if supervised else Kind.SPECIAL))
        return ids, kinds

    def _check_tag(self, sample: Sample, turn: Turn, index: int) -> None:
        if turn.role == "assistant":
            raise DataError(f"sample {sample.key}: an answer holds <media:{index}>")
        if index >= len(sample.media):
            raise DataError(f"sample {sample.key}: <media:{index}>, but it has {len(sample.media)} media")

    def _encoded(
        self, sample: Sample, pieces: list[tuple[list[int], list[int]]], frames: Sequence[Tensor] | None
    ) -> Encoded:
        row_ids = [i for ids, _ in pieces for i in ids]
        row_kinds = [kind for _, kinds in pieces for kind in kinds]
        clips = row_kinds.count(int(Kind.VISUAL)) // self.visual_tokens
        if clips != len(sample.media) or clips > 1:
            raise DataError(
                f"sample {sample.key}: {len(sample.media)} media and {clips} media tags; the tiny model takes "
                "one clip, named once by <media:0>, or none"
            )
        if len(row_ids) > self.max_length:
            raise DataError(f"sample {sample.key}: {len(row_ids)} positions, more than {self.max_length}")
        grids = (self._grid(),) if clips else ()
        return make_row(sample, row_ids, row_kinds, pixels=self._clip(sample, frames), grids=grids)

    def _grid(self) -> Grid:
        """Of a clip: merged frames, and as many rows as columns."""
        frames = max(1, self.frames // self.frames_a_token)
        side = math.isqrt(self.visual_tokens // frames)
        return Grid(frames, side, side)

    def _clip(self, sample: Sample, frames: Sequence[Tensor] | None) -> Tensor | None:
        if frames is None or not sample.media:
            return None
        expected = (self.frames, 3, self.size, self.size)
        if len(frames) != 1 or frames[0].shape != expected or frames[0].dtype != torch.uint8:
            shapes = [(tuple(clip.shape), str(clip.dtype)) for clip in frames]
            raise DataError(f"sample {sample.key}: one uint8 clip {expected} expected, found {shapes}")
        return frames[0]

    def _pixels(self, rows: Sequence[Encoded]) -> Tensor | None:
        """Clips of the rows that hold placeholders, or None for a text-only batch."""
        visual = [row for row in rows if bool((row.kind_S == Kind.VISUAL).any())]
        if all(row.pixels is None and not row.failed for row in visual):
            return None
        black = torch.zeros((self.frames, 3, self.size, self.size), dtype=torch.uint8)
        refuse_missing_pixels(row for row in visual if not row.failed)
        clips = [black if row.failed else row.pixels for row in visual]
        return torch.stack([clip for clip in clips if clip is not None])


def normalise(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return pixels.float().div_(127.5).sub_(1.0)


COLOURS: Final = ColourTable.by(normalise)
