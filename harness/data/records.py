"""Records out of annotation files, and the boundary that no fault of a record crosses.

JSON lists, JSON lines and a byte order mark are read. What a reader is given holds plain values only: text that can
be encoded and has no NUL, finite numbers of at most 64 bits, a bounded depth. A record that does not is named.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from harness.common.errors import DataError
from harness.common.files import odd_kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LONGEST: Final = 80
"""Characters of a name in a message."""
_DEPTH: Final = 16
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_ESCAPED: Final = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""How JSON writes half a character or a NUL."""
_NESTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)


_OTHER_FILES: Final = {
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "the pointer of a file that git-lfs has not fetched",
}


class RecordError(Exception):
    """What is wrong with one record."""


def short(name: object) -> str:
    """A name as messages show it: printable, and cut where it is long."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: it is not UTF-8 JSON; the message starts with file:line:column.
    """
    return _json(path, _text(path))


def read_records(path: Path) -> Iterator[Any | RecordError]:
    """The records of a file, a JSON list or JSON lines; in place of one outside the boundary, what is wrong with it.

    Raises:
        DataError: it is neither; the message starts with file:line:column.
    """
    text = _text(path)
    decoder = _Decoder()
    outside = _Outside(text, decoder)
    elements = _lines(path, text, decoder) if _is_lines(path, text) else _elements(path, text, decoder)
    for record, start, end in elements:
        if outside.is_possible(start, end) and not isinstance(record, RecordError):
            try:
                check_value(record)
            except RecordError as error:
                yield error
                continue
        yield record


class _Decoder(json.JSONDecoder):
    """Integers of more than 64 bits become infinite, which the boundary refuses with the record's name; `is_odd` says
    that a number since it was last set to False was that, or not finite."""

    def __init__(self) -> None:
        self.is_odd = False
        super().__init__(parse_int=self._integer, parse_float=self._float, parse_constant=self._constant)

    def _integer(self, digits: str) -> int | float:
        if len(digits) < 19 or (len(digits) < 21 and -(1 << 63) <= int(digits) < 1 << 63):
            return int(digits)
        self.is_odd = True
        return math.inf

    def _float(self, digits: str) -> float:
        value = float(digits)
        self.is_odd = self.is_odd or math.isinf(value)
        return value

    def _constant(self, word: str) -> float:
        self.is_odd = True
        return float(word)


class _Outside:
    """Whether a record may be outside the boundary, told from the text that it was decoded from: values are looked
    through where it may, which takes longer than reading them."""

    def __init__(self, text: str, decoder: _Decoder) -> None:
        self._text = text
        self._decoder = decoder
        self._nul = "\0" in text
        self._escaped = _ESCAPED.search(text) is not None

    def is_possible(self, start: int, end: int) -> bool:
        """Of the record that was decoded last, from these places of the text."""
        odd, self._decoder.is_odd = self._decoder.is_odd, False
        if odd or self._nul or (self._escaped and _ESCAPED.search(self._text, start, end)):
            return True
        return self._text.count("{", start, end) + self._text.count("[", start, end) > _DEPTH


def check_value(value: Any) -> None:
    """Raises:
    RecordError: a value that cannot be stored, sent or computed with is in there, and where."""
    todo: list[tuple[Any, str, int]] = [(value, "", 0)]
    while todo:
        current, where, depth = todo.pop()
        if depth > _DEPTH:
            raise RecordError(f"nested more than {_DEPTH} deep{_at(where)}")
        if isinstance(current, dict):
            for key, inner in current.items():
                _check_text(key, where)
                todo.append((inner, where or key, depth + 1))
        elif isinstance(current, list):
            todo += [(inner, where, depth + 1) for inner in current]
        elif isinstance(current, str):
            _check_text(current, where)
        elif isinstance(current, float) and not math.isfinite(current):
            raise RecordError(f"a number that is not finite, or has too many digits{_at(where)}")


def _check_text(text: str, where: str) -> None:
    if "\0" in text:
        raise RecordError(f"a NUL character{_at(where)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"half a character, U+{ord(text[error.start]):04X}, that no text file can hold{_at(where)}: text was cut "
            "in the middle of an emoji"
        ) from None


def _at(where: str) -> str:
    return f' in "{short(where)}"' if where else ""


def _text(path: Path) -> str:
    odd = odd_kind(path)
    if odd is not None:
        raise DataError(f"{path}: {odd}, not a file", hint="write its records to a file")
    content = path.read_bytes()
    kind = next((kind for magic, kind in _OTHER_FILES.items() if content.startswith(magic)), None)
    if kind is not None:
        raise DataError(f"{path}: {kind}, not JSON", hint="write its records as JSON, a list or one a line")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        utf16 = " (a UTF-16 file: store it as UTF-8)" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{path}:{line}: not UTF-8 at byte {error.start}{utf16}", hint="fetch or write the file again"
        ) from None


def _json(path: Path, text: str) -> Any:
    try:
        return _Decoder().decode(text)
    except json.JSONDecodeError as error:
        comma = text[: error.pos].rstrip().endswith(",") and text[error.pos : error.pos + 1] in ("}", "]")
        message = "a comma stands before the closing bracket" if comma else error.msg
        raise _broken(path, error.lineno, error.colno, message) from None
    except RecursionError:
        raise DataError(f"{path}: nested too deep", hint="fetch or write the file again") from None


def _broken(path: Path, line: int, column: int, message: str) -> DataError:
    return DataError(f"{path}:{line}:{column}: not JSON: {message}", hint="fetch or write the file again")


def _is_lines(path: Path, text: str) -> bool:
    """A file whose first line is a whole object and whose second line starts another, or one that says so."""
    if not text.lstrip().startswith("{"):
        return False
    return path.suffix in (".jsonl", ".ndjson") or text.lstrip().partition("\n")[2].lstrip().startswith("{")


def _lines(path: Path, text: str, decoder: _Decoder) -> Iterator[tuple[Any, int, int]]:
    """The value of each line, and the places in `text` between which it stands."""
    end = -1
    for number, line in enumerate(text.split("\n"), start=1):
        start, end = end + 1, end + 1 + len(line)
        if not line.strip():
            continue
        try:
            yield decoder.decode(line), start, end
        except json.JSONDecodeError as error:
            raise _broken(path, number, error.colno, error.msg) from None
        except RecursionError:
            yield RecordError("nested too deep"), start, end


def _elements(path: Path, text: str, decoder: _Decoder) -> Iterator[tuple[Any, int, int]]:
    """The elements of the list in `text`, one after the other, and the places between which each stands; a file of
    another form is told by its whole."""
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        value = _json(path, text)
        lists = [key for key, inner in value.items() if isinstance(inner, list)] if isinstance(value, dict) else []
        hint = "put the records in brackets, or write one a line into a file ending with .jsonl"
        if len(lists) == 1:
            hint = f"write the list under {short(lists[0])} into a file of its own"
        raise DataError(f"{path}: a list of records is expected, not {type(value).__name__}", hint=hint)
    place = _skip(text, place + 1)
    if text[place : place + 1] == "]":
        return
    while True:
        start = place
        try:
            value, place = decoder.raw_decode(text, place)
        except RecursionError:
            value, place = RecordError("nested too deep"), _behind(text, place)
        except json.JSONDecodeError as error:
            raise _broken(path, error.lineno, error.colno, error.msg) from None
        yield value, start, place
        place = _skip(text, place)
        if text[place : place + 1] == "," and text[(ahead := _skip(text, place + 1)) : ahead + 1] not in ("]", ""):
            place = ahead
        elif text[place : place + 1] == "]" and _skip(text, place + 1) == len(text):
            return
        else:
            _json(path, text)  # says where it breaks
            raise DataError(f"{path}: not a list of records", hint="fetch or write the file again")


def _skip(text: str, place: int) -> int:
    """The first place that is no white space."""
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def _behind(text: str, place: int) -> int:
    """Where the value that begins at `place` ends, whatever is in it."""
    depth = 0
    for match in _NESTED.finditer(text, place):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return len(text)
