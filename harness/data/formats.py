"""Readers of annotation files: LLaVA / Video-ChatGPT conversations, VideoChat2-IT and Video-ChatGPT's raw pairs.

Every reader gives rows in one form: turns in the order of the file, media marked `<media:0>`, `<media:1>`, ... in
the text. What is wrong with a record is told with its place; nothing is mended in silence.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.common.errors import DataError
from harness.data.sample import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

MediaKind = Literal["video", "image"]

_ROLES: Final[dict[str, Literal["system", "user", "assistant"]]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_TAG: Final = re.compile(r"<(image|video)>")
_OURS: Final = re.compile(r"<media:\d+>")
_PROMPT: Final = re.compile(r"</Video>|</Image>|\[/?INST\]")
"""What VideoChat2's prompt is cut at: within a text it would be cut there too."""


@dataclass(frozen=True, slots=True)
class File:
    """A medium as an annotation names it; `name` is relative to the folder of media, bounds are seconds."""

    kind: MediaKind
    name: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A record that was read."""

    key: str
    media: tuple[File, ...]
    turns: tuple[Turn, ...]
    spans: tuple[tuple[int, int, int, str], ...] = ()
    openings: tuple[str, ...] = ()

    @property
    def pairs(self) -> int:
        return sum(turn.role == "assistant" for turn in self.turns)

    def content(self) -> str:
        """A short hash of everything but the key."""
        told = [[m.kind, m.name, m.start, m.end] for m in self.media], [[t.role, t.text] for t in self.turns]
        whole = (*told, self.openings) if self.openings else told
        return hashlib.blake2b(json.dumps(whole).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that cannot be used, and why."""

    key: str
    reason: str


class _RecordError(Exception):
    """What is wrong with one record; becomes a `Bad`."""


def read_llava(path: Path, find: Callable[[str], str]) -> list[Row | Bad]:
    """Records of a LLaVA-format file; records of Video-ChatGPT's raw form (q, a, video_id) are read too.

    As in the official readers, turns before the first one of the human are left out. Unlike there, a file without its
    tag in the text is an error: VideoLLaMA2's reader encodes the video and then trains on the text alone. `find`
    gives the file name of a video id.
    """
    return _records(path, lambda record, number: _llava(record, number, find))


def read_videochat2(path: Path, folder: str = ".") -> list[Row | Bad]:
    """Records of a VideoChat2-IT file, whose media lie in `folder`. Keys do not depend on the folder.

    The instruction (`i` of the first pair) becomes a system turn; where the pairs have several, `openings` holds that
    of each.
    """
    return _records(path, lambda record, _: _videochat2(record, "" if folder == "." else f"{folder}/"))


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: it is not UTF-8 JSON; the message starts with file:line:column.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise DataError(f"{where}: not JSON: {error.msg}", hint="fetch or write the file again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}", hint="fetch or write the file again") from None


def _records(path: Path, read: Callable[[dict[str, Any], int], Row]) -> list[Row | Bad]:
    records = read_json(path)
    if not isinstance(records, list):
        raise DataError(f"{path}: a list of records is expected, not {type(records).__name__}")
    rows: list[Row | Bad] = []
    for number, record in enumerate(records):
        try:
            if not isinstance(record, dict):
                raise _RecordError(f"an object is expected, not {type(record).__name__}")
            rows.append(read(record, number))
        except _RecordError as error:
            rows.append(Bad(_called(record, number), str(error)))
        records[number] = None  # a file's records and rows at once would be twice the memory
    return _unique(rows)


def _called(record: Any, number: int) -> str:
    """How messages call a record: by its place, and by its id or medium where it has one."""
    names = (record.get(key) for key in ("id", "video_id", "video", "image")) if isinstance(record, dict) else ()
    named = next((name for name in names if isinstance(name, (str, int))), None)
    return f"record {number}" if named is None else f"record {number} ({named})"


def _unique(rows: Sequence[Row | Bad]) -> list[Row | Bad]:
    """Keys that recur (LLaVA uses one id for several conversations about an image) get a hash of the content.

    So a key never depends on where in the file a record stands. A record that recurs as a whole is refused.
    """
    count = Counter(row.key for row in rows if isinstance(row, Row))
    seen: set[str] = set()
    made: list[Row | Bad] = []
    for number, row in enumerate(rows):
        if isinstance(row, Row):
            key = row.key if count[row.key] == 1 else f"{row.key}@{row.content()}"
            if key in seen:
                row = Bad(f"record {number} ({row.key})", "repeats an earlier record word for word")
            else:
                row = replace(row, key=key)
                seen.add(key)
        made.append(row)
    return made


def _llava(record: dict[str, Any], number: int, find: Callable[[str], str]) -> Row:
    if "conversations" not in record:
        return _pair(record, number, find)
    images = (File("image", name) for name in _names(record, "image"))
    videos = (File("video", name) for name in _names(record, "video"))
    media = (*images, *videos)
    told = _turns(record["conversations"])
    skip = next((i for i, turn in enumerate(told) if turn.role == "user"), len(told))
    lead = [turn for turn in told[:skip] if turn.role == "system"]
    gone = skip - len(lead)
    turns = (*lead, *told[skip:])
    roles = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in roles:
        raise _RecordError("it has no answer")
    if any(one == other for one, other in pairwise(roles)):
        raise _RecordError("two turns of the same speaker follow each other")
    if roles[-1] != "assistant":
        raise _RecordError(f"an odd number of turns, {len(roles)}: the last question has no answer")
    spans = tuple((int(t) - gone, int(a), int(b), str(c)) for t, a, b, c in record.get("spans", ()))
    key = record["id"] if "id" in record else (media[0].name if media else None)
    if key is None:
        raise _RecordError("it has neither an id nor media")
    return Row(str(key), media, _mark(turns, media), spans)


def _pair(record: dict[str, Any], number: int, find: Callable[[str], str]) -> Row:
    """VideoInstruct100K: the tag stands after the question in even records and before it in odd ones."""
    question, answer, video = (_text(record, name) for name in ("q", "a", "video_id"))
    text = f"<media:0>\n{question}" if number % 2 else f"{question}\n<media:0>"
    return Row(video, (File("video", find(video)),), (Turn("user", text), Turn("assistant", answer)))


def _videochat2(record: dict[str, Any], folder: str) -> Row:
    kinds: list[MediaKind] = [kind for kind in ("video", "image") if kind in record]
    if len(kinds) != 1:
        raise _RecordError('"video" or "image" must name its medium, and not both')
    name = _text(record, kinds[0])
    start, end = _part(record)
    pairs = _pairs(record)
    turns: list[Turn] = []
    for place, pair in enumerate(pairs):
        question, answer = (_plain(pair, part, place, empty=part == "q") for part in ("q", "a"))
        if place == 0:
            question = f"<media:0>\n{question}" if question else "<media:0>"
        turns += [Turn("user", question), Turn("assistant", answer)]
    openings = tuple(_plain(pair, "i", place, empty=True) if "i" in pair else "" for place, pair in enumerate(pairs))
    lead = [Turn("system", openings[0])] if openings[0] else []
    several = openings if len(set(openings)) > 1 else ()
    key = name if start is None else f"{name}[{start},{end}]"
    media = File(kinds[0], f"{folder}{name}", start, end)
    return Row(key, (media,), (*lead, *turns), openings=several)


def _pairs(record: dict[str, Any]) -> list[dict[str, Any]]:
    if "QA" not in record:
        raise _RecordError('it has no "QA"')
    pairs = record["QA"]
    if isinstance(pairs, dict):
        raise _RecordError('"QA" is one pair and must be a list of pairs: put it in brackets')
    if not isinstance(pairs, list) or not pairs:
        raise _RecordError('"QA" must be a list with at least one pair')
    for place, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            raise _RecordError(f"pair {place} of QA must be an object")
    return pairs


def _part(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """Bounds in seconds: both or neither. The official reader takes the whole video where one is missing."""
    start, end = (_seconds(record, bound) for bound in ("start", "end"))
    if (start is None) != (end is None):
        raise _RecordError('it has only one of "start" and "end"')
    if start is not None and end is not None and not 0 <= start < end:
        raise _RecordError(f'"start" {start} and "end" {end} bound no part of a video')
    return start, end


def _plain(pair: dict[str, Any], name: str, place: int, *, empty: bool) -> str:
    """A text of a pair, without anything that the model's prompt is cut at."""
    try:
        text = _text(pair, name, empty=empty)
    except _RecordError as error:
        raise _RecordError(f"pair {place}: {error}") from None
    found = _PROMPT.search(text)
    if found is not None:
        raise _RecordError(f'pair {place}: "{name}" holds {found[0]}, at which the prompt would be cut')
    return text


def _turns(value: Any) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise _RecordError('"conversations" must be a list with at least one turn')
    turns = []
    for place, turn in enumerate(value):
        if not isinstance(turn, dict) or turn.get("from") not in _ROLES:
            speakers = ", ".join(_ROLES)
            raise _RecordError(f'turn {place}: "from" must be one of {speakers}')
        turns.append(Turn(_ROLES[turn["from"]], _text(turn, "value", empty=True)))
    return turns


def _mark(turns: Iterable[Turn], media: Sequence[File]) -> tuple[Turn, ...]:
    """Turn the tags of the human's turns into `<media:i>`, in the order of the files."""
    at = 0

    def mark(match: re.Match[str]) -> str:
        nonlocal at
        if at == len(media):
            raise _RecordError(f"the text names more media than the {len(media)} of the record")
        if media[at].kind != match[1]:
            raise _RecordError(f"the text says <{match[1]}> where {media[at].name} is {media[at].kind}")
        at += 1
        return f"<media:{at - 1}>"

    marked = [replace(turn, text=_TAG.sub(mark, turn.text)) if turn.role == "user" else turn for turn in turns]
    if at == 0 and media:
        tag = f"<{media[0].kind}>"
        raise _RecordError(f"it has {media[0].name}, but no question says {tag} where it stands: put the tag there")
    if at < len(media):
        raise _RecordError(f"the text names {at} of the record's {len(media)} media")
    return tuple(marked)


def _names(record: dict[str, Any], kind: str) -> list[str]:
    value = record.get(kind)
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise _RecordError(f'"{kind}" must be a path or a list of paths')
    return names


def _text(record: dict[str, Any], name: str, *, empty: bool = False) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise _RecordError(f'"{name}" must be a text')
    if _OURS.search(value):
        raise _RecordError(f'"{name}" holds <media:..>, which only the reader may write')
    return value


def _seconds(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise _RecordError(f'"{name}" must be a number of seconds')
    return value
