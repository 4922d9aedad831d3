"""Readers of annotation files: conversations of LLaVA, Video-ChatGPT and InternVL, VideoChat2-IT, and raw pairs.

Every reader gives rows in one form: turns in the order of the file, media marked `<media:0>`, `<media:1>`, ... in
the text. What is wrong with a record is told with its place; nothing is mended in silence. Each reader knows its
keys: one that would change what is trained, and that the family's official loader does not honour, is refused by
name; any other that is not read is counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from harness.data.media_folders import MediaFolders
from harness.data.records import RecordError, read_records, short
from harness.data.sample import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MediaKind = Literal["video", "image"]

_ROLES: Final[dict[str, Literal["system", "user", "assistant"]]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_MEDIA_KEYS: Final = ("video", "videos", "image", "images")
_READ: Final = {
    "conversations": frozenset(("id", "conversations", "spans", *_MEDIA_KEYS)),
    "messages": frozenset(("id", "messages", "spans", *_MEDIA_KEYS)),
    "q": frozenset(("q", "a", "video_id")),
}
"""The forms of a record in a file of LLaVA's kind, by the key that tells which; the first that is there counts."""
_READ_PART: Final = frozenset(("type", "text", "image", "video", "image_url", "video_url"))
_READ_VIDEOCHAT2: Final = frozenset(("video", "image", "QA", "start", "end"))
_READ_INTERNVL: Final = frozenset(("id", "image", "video", "clip", "conversations"))
_READ_TURN: Final = frozenset(("from", "value", "role", "content"))
_READ_PAIR: Final = frozenset(("i", "q", "a"))
_A_PART: Final = "a part of a video is not read in this format: cut the file, or use the source videochat2_it"
_NOT_TRAINED: Final = "every answer of a conversation is learned: leave out the turns that should not be"
_CHANGES: Final = {
    **dict.fromkeys(("start", "end", "clip", "start_time", "end_time", "video_start", "video_end"), _A_PART),
    **dict.fromkeys(("system", "system_prompt"), "write it as a first turn of the system"),
    **dict.fromkeys(("loss", "weight", "loss_scale", "train", "mask"), _NOT_TRAINED),
    **dict.fromkeys(("trainable", "training", "ignore", "skip"), _NOT_TRAINED),
    **dict.fromkeys(("audio", "audios"), "sound is not read"),
    **dict.fromkeys(("tools", "objects", "bbox", "rejected_response", "chosen", "rejected"), "it is not read"),
    **dict.fromkeys(("query", "response", "history", "instruction", "input", "output"), "write conversations"),
    **dict.fromkeys(("prompt", "completion", "question", "answer"), "write conversations"),
    **dict.fromkeys(("conversations", "messages", "q", "QA"), "the record is in another form, too: keep one of them"),
}
"""Keys of other tools that change what is trained, and what to do instead."""
_PART_KEY: Final = re.compile(
    r"(video_?)?(start|end|begin|clip|segment)(_?(time|secs?|seconds?|frames?|idx|index|ms|s))?", re.IGNORECASE
)
_LOSS_KEY: Final = re.compile(r"(.*_)?(loss|weights?|mask)(_.*)?", re.IGNORECASE)
_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {})
_LEARNED: Final[tuple[Any, ...]] = (None, "", True, 1, 1.0)
_NEVER_LEARNED: Final[tuple[Any, ...]] = (*_LEARNED, False, 0, 0.0)
"""What such a key may be in a record, an answer and a question without changing anything."""
_LEFT_OUT_IF_TRUE: Final = frozenset(("ignore", "skip"))
_OTHER_FORMS: Final = {"query": "ms-swift's older form", "instruction": "Alpaca's form"}
_TAG: Final = re.compile(r"<(image|video)>")
_OURS: Final = re.compile(r"<media:\d+>")
_PROMPT: Final = re.compile(r"</Video>|</Image>|\[/?INST\]")
"""What VideoChat2's prompt is cut at: within a text it would be cut there too."""


_RELATIVE_ONLY: Final = MediaFolders(Path())


@dataclass(frozen=True, slots=True)
class File:
    """A medium of a record by its stored name (`harness.data.media_folders`); bounds are seconds, `max_tiles` as in
    `harness.data.sample.Media`."""

    kind: MediaKind
    name: str
    start: float | None = None
    end: float | None = None
    max_tiles: int | None = None


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
        parts = [[m.kind, m.name, m.start, m.end] for m in self.media], [[t.role, t.text] for t in self.turns]
        whole = (*parts, self.openings) if self.openings else parts
        return hashlib.blake2b(json.dumps(whole).encode(), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that cannot be used, and why."""

    key: str
    reason: str


def read_llava(
    path: Path,
    find: Callable[[str], str],
    unread: Counter[str] | None = None,
    folders: MediaFolders = _RELATIVE_ONLY,
) -> list[Row | Bad]:
    """Records of a LLaVA-format file; records of Video-ChatGPT's raw form (q, a, video_id) and those of OpenAI's and
    ms-swift's (messages, videos, images) are read too.

    As in the official readers, turns before the first one of the human are left out. Unlike there, a file without its
    tag in the text is an error: VideoLLaMA2's reader encodes the video and then trains on the text alone. `find`
    gives the file name of a video id; `unread` counts the records by keys that are not read; `folders` are those that
    media may lie in.
    """
    reading = _Reading(_unread(unread), folders)
    return _records(path, lambda record, number: _llava(record, number, find, reading))


def read_videochat2(
    path: Path, folder: str = ".", unread: Counter[str] | None = None, folders: MediaFolders = _RELATIVE_ONLY
) -> list[Row | Bad]:
    """Records of a VideoChat2-IT file, whose media lie in `folder`. Keys do not depend on the folder.

    The instruction (`i` of the first pair) becomes a system turn; where the pairs have several, `openings` holds that
    of each.
    """
    prefix = "" if folder == "." else f"{folder}/"
    reading = _Reading(_unread(unread), folders)
    return _records(path, lambda record, _: _videochat2(record, prefix, reading))


def read_internvl(
    path: Path,
    folder: str = "",
    unread: Counter[str] | None = None,
    folders: MediaFolders = _RELATIVE_ONLY,
    max_tiles: int | None = None,
) -> list[Row | Bad]:
    """Records of an annotation file of InternVL, whose media lie in `folder`: empty or ending with "/".

    A record without any tag has its pictures or its video before the first question, as the official reader puts
    them; unlike there, a turn of the system does not get them. `clip` bounds a video in seconds.
    """
    reading = _Reading(_unread(unread), folders)
    return _records(path, lambda record, _: _internvl(record, folder, max_tiles, reading))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a file is read with: the count of keys that are not read, and the folders of media."""

    unread: Counter[str]
    folders: MediaFolders


def _unread(unread: Counter[str] | None) -> Counter[str]:
    return Counter() if unread is None else unread


def _records(path: Path, read: Callable[[dict[str, Any], int], Row]) -> list[Row | Bad]:
    rows: list[Row | Bad] = []
    for number, record in enumerate(read_records(path)):
        try:
            if isinstance(record, RecordError):
                raise record
            if not isinstance(record, dict):
                raise RecordError(f"an object is expected, not {type(record).__name__}")
            rows.append(read(record, number))
        except RecordError as error:
            rows.append(Bad(_called(record, number), str(error)))
        except Exception as error:  # noqa: BLE001 - whatever a record makes the reader stumble over, it is named
            rows.append(Bad(_called(record, number), f"it cannot be read: {short(error)}"))
    return _unique(rows)


def _called(record: Any, number: int) -> str:
    """How messages call a record: by its place, and by its id or medium where it has one."""
    names = (record.get(key) for key in ("id", "video_id", "video", "image")) if isinstance(record, dict) else ()
    named = next((name for name in names if isinstance(name, (str, int))), None)
    return f"record {number}" if named is None else f"record {number} ({short(named)})"


def _unique(rows: Sequence[Row | Bad]) -> list[Row | Bad]:
    """Keys that recur (LLaVA uses one id for several conversations about an image) get a hash of the content.

    So a key never depends on where in the file a record stands. A record that recurs as a whole is refused.
    """
    count = Counter(row.key for row in rows if isinstance(row, Row))
    seen: set[str] = set()
    named: list[Row | Bad] = []
    for number, row in enumerate(rows):
        if isinstance(row, Row):
            key = row.key if count[row.key] == 1 else f"{row.key}@{row.content()}"
            if key in seen:
                row = Bad(f"record {number} ({short(row.key)})", "repeats an earlier record word for word")
            else:
                row = row if key == row.key else replace(row, key=key)
                seen.add(key)
        named.append(row)
    return named


def _llava(record: dict[str, Any], number: int, find: Callable[[str], str], reading: _Reading) -> Row:
    unread = reading.unread
    form = next((key for key in _READ if key in record), None)
    if form is None:
        _check_keys(record, frozenset(), Counter())
        keys = ", ".join(short(key) for key in list(record)[:6]) or "none"
        raise RecordError(f'it has neither conversations nor messages, and its "q" must be a text; its keys: {keys}')
    _check_keys(record, _READ[form], unread)
    if form == "messages":
        return _messages(record, reading)
    if form == "q":
        return _pair(record, number, find, reading.folders)
    images = (File("image", name) for key in ("image", "images") for name in _names(record, key, reading.folders))
    videos = (File("video", name) for key in ("video", "videos") for name in _names(record, key, reading.folders))
    return _conversation(record, _turns(record["conversations"], unread), (*images, *videos), unread)


def _internvl(record: dict[str, Any], folder: str, max_tiles: int | None, reading: _Reading) -> Row:
    _check_keys(record, _READ_INTERNVL, reading.unread)
    files = {kind: _names(record, kind, reading.folders, folder) for kind in ("image", "video")}
    if all(files.values()):
        raise RecordError("it has pictures and a video: InternVL's reader takes one kind")
    if len(files["video"]) > 1:
        raise RecordError('"video" must be one path')
    start, end = _clip(record, has_video=bool(files["video"]))
    media = (
        *(File("image", name, max_tiles=max_tiles) for name in files["image"]),
        *(File("video", name, start, end) for name in files["video"]),
    )
    turns = _turns(record.get("conversations"), reading.unread)
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if media and first is not None and not any(_TAG.search(turn.text) for turn in turns if turn.role == "user"):
        tags = f"<{media[0].kind}>\n" * len(media)
        turns[first] = replace(turns[first], text=tags + turns[first].text)
    if record.get("id") is None and not media:
        record = {**record, "id": _content_key(turns)}
    return _conversation(record, turns, media, reading.unread)


def _clip(record: dict[str, Any], *, has_video: bool) -> tuple[float | None, float | None]:
    clip = record.get("clip")
    if clip is None:
        return None, None
    if not has_video:
        raise RecordError('"clip" bounds a video, and the record has none')
    if not isinstance(clip, list) or len(clip) != 2:
        raise RecordError('"clip" must be a list of two numbers of seconds')
    start, end = (_seconds({"clip": bound}, "clip") for bound in clip)
    if start is None or end is None or not 0 <= start < end:
        raise RecordError(f'"clip" {clip} bounds no part of a video')
    return start, end


def _content_key(turns: Sequence[Turn]) -> str:
    """Of a conversation without a name."""
    raw = json.dumps([[turn.role, turn.text] for turn in turns]).encode()
    return hashlib.blake2b(raw, digest_size=6).hexdigest()


def _conversation(
    record: dict[str, Any], spoken: Sequence[Turn], media: tuple[File, ...], unread: Counter[str]
) -> Row:
    skip = next((i for i, turn in enumerate(spoken) if turn.role == "user"), len(spoken))
    lead = [turn for turn in spoken[:skip] if turn.role == "system"]
    if any(turn.role == "system" for turn in spoken[skip:]):
        raise RecordError("a turn of the system stands behind a question: it must be the first turn")
    left_out = skip - len(lead)
    turns = (*lead, *spoken[skip:])
    roles = [turn.role for turn in turns if turn.role != "system"]
    if "assistant" not in roles:
        raise RecordError("it has no answer")
    if any(before == after for before, after in pairwise(roles)):
        raise RecordError("two turns of the same speaker follow each other")
    if roles[-1] != "assistant":
        raise RecordError(f"an odd number of turns, {len(roles)}: the last question has no answer")
    spans = _spans(record.get("spans"), unread)
    key = record.get("id")
    if key is not None and not (isinstance(key, (str, int, float)) and not isinstance(key, bool)):
        raise RecordError('"id" must be a text or a number')
    if key is None and media:
        key = media[0].name
    if key is None:
        raise RecordError("it has neither an id nor media")
    shifted = tuple((turn - left_out, first, end, name) for turn, first, end, name in spans)
    return Row(str(key), media, _mark(turns, media), shifted)


def _spans(value: Any, unread: Counter[str]) -> list[tuple[int, int, int, str]]:
    """(turn, first, end, class) of words; what other tools write under this name is counted and left alone."""
    if value is None:
        return []
    form = (int, int, int, str)
    if isinstance(value, list) and all(
        isinstance(span, list) and len(span) == 4 and all(map(isinstance, span, form)) for span in value
    ):
        return [(span[0], span[1], span[2], span[3]) for span in value]
    unread["spans"] += 1
    return []


def _check_keys(
    record: dict[str, Any],
    read: frozenset[str],
    unread: Counter[str],
    where: str = "",
    harmless: tuple[Any, ...] = _NOTHING,
) -> None:
    """Refuse a key that changes what is trained, count any other that is not read."""
    if record.keys() <= read:
        return
    for key in sorted(record.keys() - read):
        instead = _instead(key)
        if instead is None:
            unread[short(key)] += 1
            continue
        value = record[key]
        nothings = (*_NOTHING, False, 0) if key in _LEFT_OUT_IF_TRUE else harmless
        if any(value == nothing and type(value) is type(nothing) for nothing in nothings):
            continue
        form = f", of {_OTHER_FORMS[key]}" if key in _OTHER_FORMS and not where else ""
        raise RecordError(f'{where}"{short(key)}"{form} is not honoured: {instead}')


def _instead(key: str) -> str | None:
    """What to do instead of writing a key that changes what is trained; None for any other key."""
    if key in _CHANGES:
        return _CHANGES[key]
    if _PART_KEY.fullmatch(key):
        return _A_PART
    return _NOT_TRAINED if _LOSS_KEY.fullmatch(key) else None


def _check_turn(turn: dict[str, Any], speaker: str, place: int, unread: Counter[str]) -> None:
    for key, other in (("from", "role"), ("value", "content")):
        if key in turn and other in turn and turn[key] != turn[other]:
            raise RecordError(f'turn {place}: "{key}" and "{other}" say different things: keep one of them')
    harmless = _LEARNED if _ROLES[speaker] == "assistant" else _NEVER_LEARNED
    _check_keys(turn, _READ_TURN, unread, f"turn {place}: ", harmless)


def _pair(record: dict[str, Any], number: int, find: Callable[[str], str], folders: MediaFolders) -> Row:
    """VideoInstruct100K: the tag stands after the question in even records and before it in odd ones."""
    question, answer, video = (_text(record, name) for name in ("q", "a", "video_id"))
    text = f"<media:0>\n{question}" if number % 2 else f"{question}\n<media:0>"
    file = File("video", folders.stored_name(find(video)))
    return Row(video, (file,), (Turn("user", text), Turn("assistant", answer)))


def _messages(record: dict[str, Any], reading: _Reading) -> Row:
    """OpenAI's and ms-swift's form: role and content, the media in lists of their own or in the content's parts."""
    value = record["messages"]
    if not isinstance(value, list) or not value:
        raise RecordError('"messages" must be a list with at least one turn')
    files: dict[MediaKind, list[str]] = {
        "image": [name for key in ("image", "images") for name in _names(record, key, reading.folders)],
        "video": [name for key in ("video", "videos") for name in _names(record, key, reading.folders)],
    }
    turns = []
    for place, turn in enumerate(value):
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise RecordError(f'turn {place}: "role" must be one of {", ".join(_ROLES)}')
        _check_turn(turn, turn["role"], place, reading.unread)
        content = turn.get("content")
        if isinstance(content, list):
            text = _parts(content, place, files, reading)
        else:
            text = _text(turn, "content", empty=True)
        turns.append(Turn(_ROLES[turn["role"]], text))
    media = (*(File("image", name) for name in files["image"]), *(File("video", name) for name in files["video"]))
    if record.get("id") is None and not media:  # these files often have no ids
        record = {**record, "id": _content_key(turns)}
    return _conversation(record, turns, media, reading.unread)


def _parts(content: list[Any], place: int, files: dict[MediaKind, list[str]], reading: _Reading) -> str:
    """The parts of a content as one text with tags; their media are added to `files`."""
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict):
            _check_keys(part, _READ_PART, reading.unread, f"turn {place}: ")
        if kind == "text":
            pieces.append(_text(part, "text", empty=True))
            continue
        name = part.get(kind) if kind in ("image", "video", "image_url", "video_url") else None
        name = name.get("url") if isinstance(name, dict) else name
        if not isinstance(kind, str) or not isinstance(name, str) or "://" in name or name.startswith("data:"):
            raise RecordError(f"turn {place}: a part of its content is neither text nor a file of a picture or video")
        medium: MediaKind = "image" if kind.startswith("image") else "video"
        files[medium].append(reading.folders.stored_name(name))
        pieces.append(f"<{medium}>\n")
    return "".join(pieces)


def _videochat2(record: dict[str, Any], folder: str, reading: _Reading) -> Row:
    _check_keys(record, _READ_VIDEOCHAT2, reading.unread)
    kinds: list[MediaKind] = [kind for kind in ("video", "image") if kind in record]
    if len(kinds) != 1:
        raise RecordError('"video" or "image" must name its medium, and not both')
    name = reading.folders.stored_name(_text(record, kinds[0]), folder)
    start, end = _part(record)
    if start is not None and kinds[0] == "image":
        raise RecordError('"start" and "end" bound no part of a picture')
    pairs = _pairs(record)
    turns: list[Turn] = []
    for place, pair in enumerate(pairs):
        _check_keys(pair, _READ_PAIR, reading.unread, f"pair {place}: ", _LEARNED)
        question, answer = (_plain(pair, part, place, empty=part == "q") for part in ("q", "a"))
        if place == 0:
            question = f"<media:0>\n{question}" if question else "<media:0>"
        turns += [Turn("user", question), Turn("assistant", answer)]
    openings = tuple(_plain(pair, "i", place, empty=True) if "i" in pair else "" for place, pair in enumerate(pairs))
    lead = [Turn("system", openings[0])] if openings[0] else []
    several = openings if len(set(openings)) > 1 else ()
    key = name.removeprefix(folder)
    media = File(kinds[0], name, start, end)
    return Row(key if start is None else f"{key}[{start},{end}]", (media,), (*lead, *turns), openings=several)


def _pairs(record: dict[str, Any]) -> list[dict[str, Any]]:
    if "QA" not in record:
        raise RecordError('it has no "QA"')
    pairs = record["QA"]
    if isinstance(pairs, dict):
        raise RecordError('"QA" is one pair and must be a list of pairs: put it in brackets')
    if not isinstance(pairs, list) or not pairs:
        raise RecordError('"QA" must be a list with at least one pair')
    for place, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            raise RecordError(f"pair {place} of QA must be an object")
    return pairs


def _part(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """Bounds in seconds: both or neither. The official reader takes the whole video where one is missing."""
    start, end = (_seconds(record, bound) for bound in ("start", "end"))
    if (start is None) != (end is None):
        raise RecordError('it has only one of "start" and "end"')
    if start is not None and end is not None and not 0 <= start < end:
        raise RecordError(f'"start" {start} and "end" {end} bound no part of a video')
    return start, end


def _plain(pair: dict[str, Any], name: str, place: int, *, empty: bool) -> str:
    """A text of a pair, without anything that the model's prompt is cut at."""
    try:
        text = _text(pair, name, empty=empty)
    except RecordError as error:
        raise RecordError(f"pair {place}: {error}") from None
    marker = _PROMPT.search(text)
    if marker is not None:
        raise RecordError(f'pair {place}: "{name}" holds {marker[0]}, at which the prompt would be cut')
    return text


def _turns(value: Any, unread: Counter[str]) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise RecordError('"conversations" must be a list with at least one turn')
    turns = []
    for place, turn in enumerate(value):
        speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in _ROLES:
            speakers = ", ".join(_ROLES)
            raise RecordError(f'turn {place}: "from" must be one of {speakers}')
        _check_turn(turn, speaker, place, unread)
        turns.append(Turn(_ROLES[speaker], _text(turn, "value" if "value" in turn else "content", empty=True)))
    return turns


def _mark(turns: Iterable[Turn], media: Sequence[File]) -> tuple[Turn, ...]:
    """Turn the tags of the human's turns into `<media:i>`, in the order of the files."""
    place = 0

    def mark(match: re.Match[str]) -> str:
        nonlocal place
        if place == len(media):
            raise RecordError(f"the text names more media than the {len(media)} of the record")
        if media[place].kind != match[1]:
            raise RecordError(f"the text says <{match[1]}> where {media[place].name} is {media[place].kind}")
        place += 1
        return f"<media:{place - 1}>"

    marked = [
        Turn("user", _TAG.sub(mark, turn.text)) if turn.role == "user" and "<" in turn.text else turn
        for turn in turns
    ]
    if place == 0 and media:
        tag = f"<{media[0].kind}>"
        raise RecordError(f"it has {media[0].name}, but no question says {tag} where it stands: put the tag there")
    if place < len(media):
        raise RecordError(f"the text names {place} of the record's {len(media)} media")
    return tuple(marked)


def _names(record: dict[str, Any], kind: str, folders: MediaFolders, folder: str = "") -> list[str]:
    value = record.get(kind)
    if value is None:
        return []
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise RecordError(f'"{kind}" must be a path or a list of paths')
    return [folders.stored_name(name, folder) for name in names]


def _text(record: dict[str, Any], name: str, *, empty: bool = False) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise RecordError(f'"{name}" must be a text')
    if "<media:" in value and _OURS.search(value):
        raise RecordError(f'"{name}" holds <media:..>, which only the reader may write')
    return value


def _seconds(record: dict[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise RecordError(f'"{name}" must be a number of seconds')
    if value is not None and not math.isfinite(value):
        raise RecordError(f'"{name}" must be a finite number of seconds')
    return value
