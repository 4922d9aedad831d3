"""Conversations and frames for any multimodal model of transformers: its own template and processor, our own frames.

The checkpoint's processor resizes and normalises, and says by what each medium's marker is replaced. The frames go in
as arrays with their times; no frame is chosen by it. Text is tokenized in pieces: in front of an answer, the answer,
and so on, so that the targets are what the model would have to write.

Legend: B rows, S expanded length, T frames, H and W pixels.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch

from harness.common.errors import DataError
from harness.common.hashing import digest
from harness.data.loading.errors import VideoError
from harness.data.loading.video import ClipFacts, clip_facts
from harness.data.processor import make_row, pad_rows, refuse_missing_pixels
from harness.models.hf.chat import marker_places
from harness.models.hf.colours import AS_BYTES, has_table, in_bytes, own_table
from regate.types import Grid, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from harness.data.loading.pixels import ColourTable
    from harness.data.sample import Batch, Encoded, Media, Sample
    from harness.models.hf.chat import Conversations, Rendered
    from harness.models.hf.internvl.image_processing import Tiles

SCHEMA: Final = 1
_KEPT: Final = 256
"""Texts of media that are kept."""
_TIMES: Final = "whether times stand in the text"
_OF_TEXT: Final = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "text_replacement_offsets")
_IMAGE, _VIDEO = 1, 2
"""Kinds of visual positions, as transformers numbers them."""
TYPES: Final = "mm_token_type_ids"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the checkpoint's processor makes of a sample's media.

    Attributes:
        inputs: the model's tensors.
        texts: what stands in place of each medium's marker, in the order of the text.
    """

    inputs: Mapping[str, Tensor]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class HFConversations:
    """The `Processor` protocol for models of transformers.

    Attributes:
        processor: transformers' own, of the checkpoint.
        frames: T, of every video; of InternVL's, the most.
        visual_ids: token ids of visual positions: of pictures, then of videos where these have another.
        image_settings, video_settings: what the recipe asks beside the checkpoint's own settings.
        blank: pixels along a side of what stands for a medium that cannot be read.
        tiles: InternVL's own way with pictures and frames, in place of the checkpoint's processor; None for others.
    """

    processor: Any
    chat: Conversations
    frames: int
    visual_ids: tuple[int, ...]
    max_length: int
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    video_settings: Mapping[str, Any] = field(default_factory=dict)
    blank: int = 64
    tiles: Tiles | None = None
    _texts: dict[str, tuple[str, ...]] = field(init=False, default_factory=dict, compare=False, repr=False)
    """What stands for media of one size, which many share: to ask the checkpoint's processor takes a tenth of a
    second."""
    _tables: dict[str, ColourTable | None] = field(init=False, default_factory=dict, compare=False, repr=False)
    """By kind of medium, what was found once."""

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def placeholder_id(self) -> int:
        """Stands at all visual positions of `Encoded`; `collate` puts the model's own ids in their place."""
        return self.visual_ids[0]

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    @property
    def end_id(self) -> int:
        """Closes a turn; generation stops there."""
        return int(self.tokenizer.convert_tokens_to_ids(self.chat.end))

    @property
    def typed(self) -> bool:
        """Whether the model is told which positions are visual."""
        return bool(getattr(self.processor, "return_mm_token_type_ids", False))

    @property
    def fingerprint(self) -> str:
        """Hash of tokenizer, template, label rule, truncation, pixels and the media's texts."""
        parts = {
            name: json.loads(getattr(self.processor, name).to_json_string())
            for name in ("image_processor", "video_processor")
            if getattr(self.processor, name, None) is not None
        }
        own = {} if self.tiles is None else {"tiles": self.tiles.description()}
        return digest(
            {
                "schema": SCHEMA,
                "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
                "template": self.processor.chat_template,
                "labels": self.chat.label_rule,
                "truncation": self.max_length,
                "pixels": [parts, dict(self.image_settings), dict(self.video_settings)],
                "media": [type(self.processor).__name__, self.frames, list(self.visual_ids)],
                **own,
            }
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and placeholders."""
        text: str = self.tokenizer.decode([i for i in ids if i not in self.visual_ids], skip_special_tokens=True)
        return text

    def check(self, sample: Sample) -> None:
        """What can be said of a conversation without a tokenizer: media and tags, the order of the speakers."""
        self.chat.check(sample)

    def tokens(self, sample: Sample) -> int:
        """Positions of the conversation, before anything is cut."""
        return len(self._row(sample, self.chat.rendered(sample), None)[0])

    def encode(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """See the `Processor` protocol. Without frames, pictures of the media's own sizes stand for them.

        Raises:
            DataError: the template cannot write the conversation, a medium stands beyond `max_length`, or all
                answers do.
        """
        row = self._encoded(sample, self.chat.rendered(sample), frames)
        if not bool((row.kind_S == int(Kind.TARGET)).any()):
            raise DataError(
                f"sample {sample.key}: no answer stands within model.max_length {self.max_length}: nothing to learn",
                hint="raise model.max_length, or leave the sample out",
            )
        return row

    def encode_answered(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        """The conversation with its answers as `encode` has it, and media as an evaluation writes them."""
        return self._encoded(sample, replace(self.chat.rendered(sample), asked=True), frames)

    def encode_prompt(self, sample: Sample, frames: Sequence[Tensor] | None) -> Encoded:
        return self._encoded(sample, self.chat.prompt(sample), frames)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Right-padded int64 input_ids and attention_mask [B, S], mm_token_type_ids where the model takes them, and
        the media's tensors of all rows, one behind the other. Pixels are uint8 wherever `colour_tables` knows what
        they are to the model, and no row has to be filled up: what fills it is no colour.

        Raises:
            ValueError: some rows with media have pixels and others lack them.
        """
        named: dict[str, list[Tensor]] = {}
        for row in rows:
            for name, value in row.extra.items():
                if name != TYPES:
                    named.setdefault(name, []).append(value)
        if named:
            refuse_missing_pixels(rows)
        colours = {}
        for name, values in named.items():
            if all(value.dtype != torch.uint8 for value in values):
                continue
            table = self.colour_tables()[name]
            if len({(value.dtype, value.shape[1:]) for value in values}) == 1:
                colours[name] = table
            else:
                named[name] = [table.look_up(part) if part.dtype == torch.uint8 else part for part in values]
        batch = pad_rows(rows, self.pad_id, {name: _joined(values) for name, values in named.items()}, colours)
        types_BS = torch.nn.utils.rnn.pad_sequence([row.extra[TYPES] for row in rows], batch_first=True)
        if named:
            batch.inputs["input_ids"] = self._own_ids(batch.input_ids_BS, types_BS)
        if self.typed:
            batch.inputs[TYPES] = types_BS
        return batch

    def save(self, directory: Path) -> None:
        """The processor's and the tokenizer's files, for whoever reads the checkpoint."""
        self.processor.save_pretrained(str(directory))

    def white_picture(self) -> dict[str, Tensor]:
        """The model's tensors of one small white picture."""
        if self.tiles is not None:
            return {"pixel_values": self.tiles.white()}
        side = self.blank
        picture = torch.full((1, 3, side, side), 255, dtype=torch.uint8)
        seen = self._look(["image"], {"image": [picture], "video": []}, [])
        return dict(seen.inputs)

    def blank_clip(self, side: int) -> dict[str, Tensor]:
        """The model's tensors of a black square of `side` pixels: of a video, or of a picture where the family has no
        videos."""
        if self.tiles is not None:
            black = self.tiles.squares(torch.zeros((self.frames, 3, 1, 1), dtype=torch.uint8))
            return {"pixel_values": self.tiles.colours.look_up(black)}
        kind = "video" if self.chat.markers["video"] else "image"
        count = self.frames if kind == "video" else 1
        clips = {"image": [], "video": [], kind: [torch.zeros((count, 3, side, side), dtype=torch.uint8)]}
        facts = ClipFacts(side, side, tuple(range(count)), count, 1.0)
        return dict(self._look([kind], clips, [_metadata(facts)] if kind == "video" else []).inputs)

    # --- media -------------------------------------------------------------------------------------------

    def _own_ids(self, input_ids_BS: Tensor, types_BS: Tensor) -> Tensor:
        """With the videos' id where the placeholder of pictures stands for it."""
        if len(self.visual_ids) == 1:
            return input_ids_BS
        return torch.where(types_BS == _VIDEO, self.visual_ids[1], input_ids_BS)

    def _facts(self, media: Media, *, known: Tensor | None) -> ClipFacts:
        """Sizes and times of a medium; where it cannot be read, those of a square clip of one second.

        Args:
            known: its frames, where they are decoded; they say the size.
        """
        count = 1 if media.kind == "image" else self.frames
        if known is not None and media.kind == "image":
            return ClipFacts(known.shape[2], known.shape[3], (0,), 1, 0.0)
        try:
            facts = clip_facts(media, frames=self.frames)
        except VideoError:  # training counts it among those that cannot be read
            return ClipFacts(self.blank, self.blank, tuple(range(count)), count, float(count))
        return facts if known is None else replace(facts, height=known.shape[2], width=known.shape[3])

    def _media(self, sample: Sample, kinds: Sequence[str], frames: Sequence[Tensor] | None) -> Seen:
        """The sample's media through the checkpoint's processor.

        Args:
            kinds: of the media in the order of their markers in the text; those of one kind stand there in the order
                of their tags.
        """
        clips: dict[str, list[Tensor]] = {"image": [], "video": []}
        times: list[dict[str, Any]] = []
        for place in self.chat.order(sample):
            media = sample.media[place]
            if media.max_tiles is not None:
                raise DataError(
                    f"sample {sample.key}: its annotation says max_dynamic_patch, which is for InternVL's tiles",
                    hint="leave it out of the meta file",
                )
            known = None if frames is None else self._checked(sample, media, frames[place])
            facts = self._facts(media, known=known)
            count = 1 if media.kind == "image" else self.frames
            if known is None:
                known = torch.zeros((1, 1, 1, 1), dtype=torch.uint8).expand(count, 3, facts.height, facts.width)
            clips[media.kind].append(known)
            if media.kind == "video":
                times.append(self._times(sample, facts))
        if clips["image"] and clips["video"]:
            self._refuse_shared_pixels(sample)
        if frames is not None:
            return self._seen(kinds, clips, times)
        sizes = {kind: [tuple(clip.shape) for clip in of_kind] for kind, of_kind in clips.items()}
        key = repr((list(kinds), sizes, times if times and self._writes_times() else None))
        if key not in self._texts:
            while len(self._texts) > _KEPT:
                del self._texts[next(key for key in self._texts if key != _TIMES)]
            self._texts[key] = self._look(kinds, clips, times).texts
        return Seen({}, self._texts[key])

    def _writes_times(self) -> bool:
        """Whether the times of a video's frames stand in its text: two clips that differ in them alone tell."""
        if _TIMES not in self._texts:
            side = self.blank
            clips = {"image": [], "video": [torch.zeros((self.frames, 3, side, side), dtype=torch.uint8)]}
            facts = [ClipFacts(side, side, tuple(range(self.frames)), self.frames, rate) for rate in (1.0, 0.25)]
            slow, fast = (self._look(["video"], clips, [_metadata(clip)]).texts for clip in facts)
            self._texts[_TIMES] = () if slow == fast else ("they do",)
        return bool(self._texts[_TIMES])

    def _needs_times(self) -> bool:
        """Whether the text of a video or the positions of its frames depend on their times."""
        asked = getattr(type(self.processor), "videos_kwargs", {}).get("return_metadata", False)
        return bool(asked) or self._writes_times()

    def _refuse_shared_pixels(self, sample: Sample) -> None:
        """Raises:
        DataError: the checkpoint's processor gives pictures and videos one name, and keeps those of one kind only."""
        names = (set(getattr(self.processor, f"{kind}_processor").model_input_names) for kind in ("image", "video"))
        if set.intersection(*names):
            raise DataError(
                f"sample {sample.key}: it has pictures and videos, of which {type(self.processor).__name__} keeps "
                "one kind",
                hint="leave the sample out, or divide it",
            )

    def squares(self, frames_T3HW: Tensor) -> Tensor:
        """See `ReadsSquares`; of InternVL's own way with frames."""
        assert self.tiles is not None
        return self.tiles.squares(frames_T3HW)

    def square_settings(self) -> dict[str, Any] | None:
        """See `ReadsSquares`; transformers' processors take frames in their own size."""
        if self.tiles is None or self.tiles.through is not None:
            return None
        return {"as": "internvl", "size": self.tiles.size}

    def _tiled(self, sample: Sample, frames: Sequence[Tensor] | None, *, asked: bool) -> Seen:
        """The sample's media as InternVL's own code shows them.

        Args:
            asked: the text is an evaluation's, which numbers the frames in another way.
        """
        assert self.tiles is not None
        order = self.chat.order(sample)
        pictures = sum(sample.media[place].kind == "image" for place in order)
        texts: list[str] = []
        pixels: list[Tensor] = []
        for place in order:
            media = sample.media[place]
            clip = None if frames is None else self._checked(sample, media, frames[place])
            if media.kind == "video":
                count = self.frames if clip is None else len(clip)
                texts.append(self.tiles.video_text(count, asked=asked))
                pixels += [] if clip is None else [self.tiles.squares(clip)]
                continue
            facts = self._facts(media, known=clip)
            tiles = self.tiles if media.max_tiles is None else replace(self.tiles, most=media.max_tiles)
            texts.append(tiles.picture_text(tiles.count(facts.height, facts.width, pictures)))
            pixels += [] if clip is None else [tiles.picture(clip, pictures)]
        return Seen({"pixel_values": torch.cat(pixels)} if pixels else {}, tuple(texts))

    def _checked(self, sample: Sample, media: Media, clip: Tensor) -> Tensor:
        wanted = 1 if media.kind == "image" else self.frames
        fewer = self.tiles is not None and 1 <= clip.shape[0] < wanted  # a training may draw their number
        count = clip.shape[0] if fewer else wanted
        if clip.dim() != 4 or clip.shape[:2] != (count, 3) or clip.dtype != torch.uint8:
            raise DataError(
                f"sample {sample.key}: a uint8 clip of {wanted} frames expected, found {tuple(clip.shape)} of "
                f"{clip.dtype}"
            )
        return clip

    def _times(self, sample: Sample, facts: ClipFacts) -> dict[str, Any]:
        if facts.fps <= 0 and self._needs_times():
            raise DataError(
                f"sample {sample.key}: its video has no frame rate, and {type(self.processor).__name__} takes the "
                "times of the frames into account",
                hint="leave the sample out, or write the file anew with a frame rate",
            )
        return _metadata(facts)

    # --- pixels ------------------------------------------------------------------------------------------

    def colour_tables(self) -> dict[str, ColourTable]:
        """By name of input, what the values of bytes are to the model, where the checkpoint's processor treats all
        values of a colour alike: it is asked for a picture with and without its normalisation, and the two are the
        same to the bit."""
        if self.tiles is not None:
            return {"pixel_values": self.tiles.colours}
        tables: dict[str, ColourTable] = {}
        clashing: set[str] = set()
        for kind in ("image", "video"):
            part = getattr(self.processor, f"{kind}_processor", None)
            if part is None or not self.chat.markers[kind]:
                continue
            table = self._table(kind, part)
            for name in part.model_input_names:
                if not name.startswith("pixel_values"):
                    continue
                if table is None or tables.setdefault(name, table) != table:
                    clashing.add(name)
        return {name: table for name, table in tables.items() if name not in clashing}

    def _table(self, kind: str, part: Any) -> ColourTable | None:
        if kind not in self._tables:
            self._tables[kind] = own_table(part) if has_table(part) and self._is_by_value(kind, part) else None
        return self._tables[kind]

    def _is_by_value(self, kind: str, part: Any) -> bool:
        """Whether the normalised picture is the table's, looked up in bytes."""
        side, count = self.blank, 1 if kind == "image" else self.frames
        colours = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0))
        clips = {"image": [], "video": [], kind: [colours.to(torch.uint8)]}
        times = [_metadata(ClipFacts(side, side, tuple(range(count)), count, 1.0))] if kind == "video" else []
        plain, raw = (self._look([kind], clips, times, **how).inputs for how in ({}, AS_BYTES))
        names = [name for name in plain if name.startswith("pixel_values")]
        table = own_table(part)
        return all(
            raw[name].dtype == torch.uint8 and torch.equal(table.look_up(raw[name]), plain[name]) for name in names
        )

    def _seen(self, kinds: Sequence[str], clips: Mapping[str, list[Tensor]], times: list[dict[str, Any]]) -> Seen:
        """What the checkpoint's processor makes of decoded media: pixels in bytes where all of one kind have one
        size, so that nothing is filled up, and all kinds have a table."""
        shown = [kind for kind in clips if clips[kind]]
        one_size = all(len({clip.shape for clip in clips[kind]}) == 1 for kind in shown)
        known = self.colour_tables() if shown and one_size else {}
        names = {
            name
            for kind in shown
            for name in getattr(self.processor, f"{kind}_processor").model_input_names
            if name.startswith("pixel_values")
        }
        if not names or not names <= known.keys():
            return self._look(kinds, clips, times)
        seen = self._look(kinds, clips, times, **AS_BYTES)
        mask = seen.inputs.get("pixel_attention_mask")
        filled = mask is not None and not bool(mask.all())
        return self._look(kinds, clips, times) if filled else seen

    def _look(
        self,
        kinds: Sequence[str],
        clips: Mapping[str, list[Tensor]],
        times: list[dict[str, Any]],
        **how: Any,
    ) -> Seen:
        """The checkpoint's processor over pictures and videos.

        Args:
            kinds: of the media in the order of the text.
            clips: uint8 [T, 3, H, W] by kind of medium.
            times: metadata of each video.
            how: further settings of both kinds.
        """
        if not kinds:
            return Seen({}, ())
        asked: dict[str, Any] = {}
        if clips["image"]:
            asked["images"] = [clip[0].permute(1, 2, 0).numpy() for clip in clips["image"]]
            asked["images_kwargs"] = {**self.image_settings, **how}
        if clips["video"]:
            asked["videos"] = [clip.permute(0, 2, 3, 1).numpy() for clip in clips["video"]]
            asked["videos_kwargs"] = {
                "do_sample_frames": False,
                "video_metadata": times,
                **self.video_settings,
                **how,
            }
        text = "\n".join(self.chat.markers[kind] or "" for kind in kinds)
        output = self.processor(text=[text], return_tensors="pt", return_text_replacement_offsets=True, **asked)
        texts = tuple(part["replacement"] for part in output["text_replacement_offsets"][0])
        inputs = {name: torch.as_tensor(value) for name, value in output.items() if name not in _OF_TEXT}
        if how:
            inputs |= {name: in_bytes(value) for name, value in inputs.items() if name.startswith("pixel_values")}
        return Seen(inputs, texts)

    # --- rows --------------------------------------------------------------------------------------------

    def _row(
        self, sample: Sample, rendered: Rendered, frames: Sequence[Tensor] | None
    ) -> tuple[list[int], list[int], Mapping[str, Tensor]]:
        """Ids, kinds of position, and the media's tensors."""
        places = marker_places(rendered.text, self.chat.markers)
        if self.tiles is None:
            seen = self._media(sample, [kind for _, _, kind in places], frames)
        else:
            seen = self._tiled(sample, frames, asked=rendered.asked)
        waiting = list(seen.texts)
        edges = sorted({0, len(rendered.text), *(edge for span in rendered.answers for edge in span)})
        answers = set(rendered.answers)
        ids, kinds = self._start(rendered.text)
        for begin, end in pairwise(edges):
            inside = [place for place in places if begin <= place[0] < end]
            written = [(first, last) for first, last in rendered.written if begin <= first < end]
            text, spans = _expanded(rendered.text, begin, end, inside, written, waiting)
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            tokens = encoding["input_ids"]
            learned = range(len(tokens))[self.chat.learned] if (begin, end) in answers else range(0)
            for place, (token, (first, _)) in enumerate(zip(tokens, encoding["offset_mapping"], strict=True)):
                ids.append(token)
                kinds.append(int(self._kind(token, first, spans, target=place in learned)))
        return ids, kinds, seen.inputs

    def _start(self, text: str) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before every text, unless the template writes it."""
        before = self.tokenizer("").get("input_ids", [])
        start = [token for token in before if token == self.tokenizer.bos_token_id]
        if start and text.startswith(self.tokenizer.bos_token):
            start = []
        return list(start), [int(Kind.SPECIAL)] * len(start)

    def _kind(self, token: int, first: int, spans: list[tuple[int, int]], *, target: bool) -> Kind:
        if token in self.visual_ids:
            return Kind.VISUAL
        if target:
            return Kind.TARGET
        return Kind.PROMPT if any(start <= first < stop for start, stop in spans) else Kind.SPECIAL

    def _encoded(self, sample: Sample, rendered: Rendered, frames: Sequence[Tensor] | None) -> Encoded:
        ids, kinds, inputs = self._row(sample, rendered, frames)
        cut = None
        if len(ids) > self.max_length:
            if int(Kind.VISUAL) in kinds[self.max_length :]:
                raise DataError(
                    f"sample {sample.key}: {len(ids)} positions, and a medium stands beyond model.max_length "
                    f"{self.max_length}",
                    hint="raise model.max_length, lower model.image_pixels or data.frames, or leave the sample out",
                )
            cut = kinds[self.max_length :].count(int(Kind.TARGET)) or None
            ids, kinds = ids[: self.max_length], kinds[: self.max_length]
        types = [self._type(token) if kind == int(Kind.VISUAL) else 0 for token, kind in zip(ids, kinds, strict=True)]
        ids = [self.placeholder_id if kind == int(Kind.VISUAL) else t for t, kind in zip(ids, kinds, strict=True)]
        extra = {TYPES: torch.tensor(types, dtype=torch.int64)}
        pixels = None
        if frames is not None and inputs:
            extra |= inputs
            pixels = next(value for name, value in inputs.items() if name.startswith("pixel_values"))
        grids = self._grids(sample, inputs) if frames is not None else None
        return make_row(sample, ids, kinds, pixels=pixels, cut=cut, grids=grids, extra=extra)

    def _grids(self, sample: Sample, inputs: Mapping[str, Tensor]) -> tuple[Grid, ...] | None:
        """What the visual positions show; None where the family's processor does not say it.

        InternVL's are tiles, each a square of tokens; those of a sample's only medium count as its frames. Qwen's
        processors give the patches, of which a square is merged into a token.
        """
        order = self.chat.order(sample)
        if not order:
            return ()
        if self.tiles is not None:
            side, tiles = math.isqrt(self.tiles.tokens), len(inputs["pixel_values"])
            return (Grid(tiles, side, side),) if len(order) == 1 else (Grid(1, side, side),) * tiles
        kinds = [sample.media[place].kind for place in order]
        if not all(f"{kind}_grid_thw" in inputs for kind in kinds):
            return None
        waiting = {kind: iter(inputs[f"{kind}_grid_thw"].tolist()) for kind in set(kinds)}
        grids: list[Grid] = []
        for kind in kinds:
            times, rows, columns = next(waiting[kind])
            merge = getattr(self.processor, f"{kind}_processor").merge_size
            grids.append(Grid(times, rows // merge, columns // merge))
        return tuple(grids)

    @property
    def tells_grids(self) -> bool:
        """Whether the rows say what their visual positions show."""
        return self.tiles is not None or hasattr(self.processor.image_processor, "merge_size")

    def _type(self, token: int) -> int:
        return _VIDEO if token in self.visual_ids[1:] else _IMAGE


def _expanded(
    text: str,
    begin: int,
    end: int,
    places: Sequence[tuple[int, int, str]],
    written: Sequence[tuple[int, int]],
    waiting: list[str],
) -> tuple[str, list[tuple[int, int]]]:
    """A piece of the text with the media's markers replaced, and where in it the written words stand then.

    Args:
        waiting: texts of the media that stand here and behind; those that are used are taken out.
    """
    parts: list[str] = []
    shifts: list[tuple[int, int]] = [(begin, 0)]  # from this character on, so much further
    moved, before = 0, begin
    for start, stop, _ in places:
        replacement = waiting.pop(0)
        parts += [text[before:start], replacement]
        moved += len(replacement) - (stop - start)
        shifts.append((stop, moved))
        before = stop
    parts.append(text[before:end])

    def shifted(place: int) -> int:
        return place - begin + next(shift for at, shift in reversed(shifts) if at <= place)

    return "".join(parts), [(shifted(first), shifted(last)) for first, last in written]


def _metadata(facts: ClipFacts) -> dict[str, Any]:
    """A video's sizes and times as transformers names them."""
    fps = facts.fps or None
    return {
        "fps": fps,
        "total_num_frames": facts.total,
        "frames_indices": list(facts.indices),
        "duration": facts.total / fps if fps else None,
        "height": facts.height,
        "width": facts.width,
    }


def _joined(values: Sequence[Tensor]) -> Tensor:
    """One tensor behind the other; sizes that differ beyond the first dimension are filled up with zeros."""
    if values[0].dim() < 2:
        return torch.cat(list(values))
    sizes = [max(value.shape[axis] for value in values) for axis in range(1, values[0].dim())]
    filled = []
    for value in values:
        missing = [size - value.shape[axis] for axis, size in enumerate(sizes, start=1)]
        padding = [amount for size in reversed(missing) for amount in (0, size)]
        filled.append(torch.nn.functional.pad(value, padding) if any(missing) else value)
    return torch.cat(filled)
