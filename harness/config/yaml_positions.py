"""YAML with positions: plain data, and file:line:column of every key and value.

The reader takes the part of YAML that JSON has: mappings with distinct string keys, sequences, and scalars read
by the rules of JSON and YAML 1.2. So `2e-5` is a number, `on` and `no` are strings, `010` and `1_000` are not
numbers. Anchors, tags and several documents in a file are refused: a recipe says what it means where it stands.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from yaml._yaml import Mark as FastMark
    from yaml.error import Mark as PythonMark

    YamlMark = PythonMark | FastMark

Path = tuple[str | int, ...]
"""Keys and indices from the top of a document to a value."""

_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Final[dict[str, bool | None]] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
_DEEPEST: Final = 32


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place: `source:line:column` counted from 1, or the source alone where it has no lines."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(slots=True)
class Document:
    """What a text says, and where it says it.

    Attributes:
        data: mappings, lists, strings, numbers, booleans and None.
        keys: mark of the key that leads to a path.
        values: mark of the value at a path; the whole document is at the empty path.
        problems: mistakes that reading could go on after (a key given twice: the first one stands).
    """

    data: Any = None
    keys: dict[Path, Mark] = field(default_factory=dict)
    values: dict[Path, Mark] = field(default_factory=dict)
    problems: list[tuple[Mark, str]] = field(default_factory=list)

    def key_at(self, path: Path) -> Mark:
        """Mark of the key at `path`, or of the nearest thing around it."""
        while path not in self.keys and path not in self.values and path:
            path = path[:-1]
        return self.keys.get(path) or self.values[path]

    def value_at(self, path: Path) -> Mark:
        """Mark of the value at `path`, or of the nearest key around it."""
        return self.values[path] if path in self.values else self.key_at(path)


class YamlProblem(ValueError):
    """The text is not the YAML described above: `mark` and `message`."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(f"{mark}: {message}")
        self.mark = mark
        self.message = message


def read_yaml(text: str | bytes, source: str) -> Document:
    """Parse one document.

    Args:
        text: UTF-8 bytes, or a string.
        source: what marks name: a file name, or where else the text came from.

    Raises:
        YamlProblem: at the first place that cannot be read.
    """
    document = Document()
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        events = yaml.parse(decoded, Loader=yaml.SafeLoader)
        _Reader(events, source, document).read()
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line = before.count(b"\n") + 1
        column = len(before) - (before.rfind(b"\n") + 1) + 1
        raise YamlProblem(Mark(source, line, column), "not UTF-8 text") from error
    except yaml.reader.ReaderError as error:
        before_text = str(decoded)[: error.position]
        line, column = before_text.count("\n") + 1, error.position - (before_text.rfind("\n") + 1) + 1
        raise YamlProblem(
            Mark(source, line, column), f"character {error.character!r} is not allowed in YAML"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlProblem(_mark(source, mark), _syntax(error)) from error
    return document


class _Reader:
    """Turns the parser's events into a document; recursive, one method a kind of node."""

    def __init__(self, events: Iterator[Any], source: str, document: Document) -> None:
        self._events = events
        self._source = source
        self._document = document

    def read(self) -> None:
        self._expect(StreamStartEvent)
        event = next(self._events)
        if isinstance(event, StreamEndEvent):
            self._document.values[()] = Mark(self._source, 1, 1)
            return
        if not isinstance(event, DocumentStartEvent):
            raise AssertionError(event)
        self._document.data = self._node(next(self._events), ())
        self._expect(DocumentEndEvent)
        event = next(self._events)
        if isinstance(event, DocumentStartEvent):
            raise self._problem(event.start_mark, "a second document begins here; one file holds one")

    def _expect(self, kind: type[Any]) -> None:
        event = next(self._events)
        if not isinstance(event, kind):
            raise AssertionError(f"{kind.__name__} expected, got {event}")

    def _node(self, event: Any, path: Path) -> Any:
        if isinstance(event, AliasEvent):
            raise self._problem(event.start_mark, f"aliases (*{event.anchor}) are not used here; write the value out")
        if event.anchor is not None:
            raise self._problem(event.start_mark, f"anchors (&{event.anchor}) are not used here; write the value out")
        if event.tag is not None:
            raise self._problem(event.start_mark, f"tags ({event.tag}) are not used here; write the plain value")
        if len(path) > _DEEPEST:
            raise self._problem(event.start_mark, f"nested more than {_DEEPEST} levels deep")
        self._document.values[path] = _mark(self._source, event.start_mark)
        if isinstance(event, MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, SequenceStartEvent):
            return self._sequence(path)
        return self._scalar(event)

    def _mapping(self, path: Path) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent) or event.anchor is not None or event.tag is not None:
                raise self._problem(event.start_mark, "a key must be a plain word")
            key = event.value
            key_path = (*path, key)
            if key in mapping:
                first = self._document.keys[key_path]
                message = f"{dotted(key_path)} is given twice, first in line {first.line}; keep one of them"
                self._document.problems.append((_mark(self._source, event.start_mark), message))
                self._node(next(self._events), (*path, f"{key} (again)"))
                continue
            self._document.keys[key_path] = _mark(self._source, event.start_mark)
            mapping[key] = self._node(next(self._events), key_path)
        return mapping

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return items

    def _scalar(self, event: ScalarEvent) -> str | int | float | bool | None:
        text: str = event.value
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise self._problem(event.start_mark, "an escape in this text is half a character (\\ud800 to \\udfff)")
        if event.style is not None:
            return text
        if text in _WORDS:
            return _WORDS[text]
        try:
            value = read_number(text)
        except ValueError as error:
            raise self._problem(event.start_mark, str(error)) from None
        return text if value is None else value

    def _problem(self, mark: YamlMark | None, message: str) -> YamlProblem:
        return YamlProblem(_mark(self._source, mark), message)


def read_number(text: str) -> int | float | None:
    """The number that a plain scalar is, or None where it is a text.

    Raises:
        ValueError: it is a number too large for a float.
    """
    if len(text) > 64:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _mark(source: str, mark: YamlMark | None) -> Mark:
    if mark is None:
        return Mark(source)
    return Mark(source, mark.line + 1, mark.column + 1)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """What to do about the mistakes that people make; PyYAML's own words for the rest."""
    problem, context = error.problem or "cannot be read", error.context or ""
    if "\\t" in problem:
        return "a tab stands where YAML wants spaces; indent with spaces"
    if "mapping values are not allowed here" in problem:
        return "a second ': ' in this line, or a line indented too far; put a text with ': ' in quotes"
    if "could not find expected ':'" in problem:
        return "a key without ': ' on this line or the one before"
    if "flow" in context and ("stream end" in problem or "expected ',' or" in problem):
        return "a [ or { opened before this place is not closed"
    if "quoted scalar" in context and "end of stream" in problem:
        return "a quote opened before this place is not closed"
    if "expected <block end>" in problem:
        return "this does not continue the lines above; look at the indentation and at stray brackets"
    if "cannot start any token" in problem:
        return f"{problem.removesuffix(' that cannot start any token')}: put a text that begins so in quotes"
    return f"{problem} {context}".strip()


def dotted(path: Path) -> str:
    """`train.optimizer.lr`, `evaluate.at[1]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
