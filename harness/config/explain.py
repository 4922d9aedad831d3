"""From what the recipe's models refuse to what a person reads: the place, the mistake, and the way out."""

from __future__ import annotations

import difflib
import json
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.config.recipe import Recipe
from harness.config.yaml_positions import dotted, read_number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic import BaseModel

    from harness.config.yaml_positions import Document, Mark, Path

_TAGS: Final = {"model": "adapter", "data": "source"}
"""Sections whose other keys depend on one of theirs."""
_RULES: Final = {
    "name": "small letters, digits, '_', '.' and '-', beginning with a letter or digit",
}
_FILE_FORMS: Final = frozenset({"SelectionFile", "QuestionFile"})
_WORD_FORM: Final = "literal["
"""How pydantic names the forms of a key that takes a word or a mapping that names a file."""
_BOOLEAN_WORDS: Final = frozenset({"yes", "no", "on", "off", "y", "n"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands, the recipe key it is about, and what to do."""

    mark: Mark
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.mark.source,
            "line": self.mark.line or None,
            "column": self.mark.column or None,
            "key": dotted(self.path) or None,
            "message": self.message,
        }


def explain(errors: Iterable[Mapping[str, Any]], document: Document, kind: type[BaseModel] = Recipe) -> list[Problem]:
    """pydantic's errors of one document as problems with places.

    Args:
        kind: of document, whose keys are suggested.
    """
    schema = Schema(kind)
    meant = [found for error in errors if (found := _of_meant_form(error, document.data)) is not None]
    places = [tuple(error["loc"]) for error in meant]
    return [
        _problem(error, document, schema)
        for error, place in zip(meant, places, strict=True)
        # A list is too short for pydantic where an entry of it is wrong, and that is told already.
        if error["type"] != "too_short" or not any(other[:-1][: len(place)] == place for other in places)
    ]


def _of_meant_form(error: Mapping[str, Any], data: Any) -> Mapping[str, Any] | None:
    """The error with its place in the document, where a key takes a word or a mapping that names a file: pydantic
    tells why the value is neither, and adds the form to the place. None for the form that was not meant."""
    place = tuple(error["loc"])
    for depth, part in enumerate(place):
        is_mapping = part in _FILE_FORMS
        is_name = part == "str" and place[depth - 2 : depth - 1] == ("benchmarks",)
        if is_mapping or is_name or (isinstance(part, str) and part.startswith(_WORD_FORM)):
            meant = isinstance(_value(data, place[:depth]), dict) == is_mapping
            return {**error, "loc": (*place[:depth], *place[depth + 1 :])} if meant else None
    return error


def _value(data: Any, place: Path) -> Any:
    for part in place:
        data = data[part]
    return data


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or `; known: ...` where nothing is near and the list is short, or nothing."""
    names = sorted(set(known))
    return did_you_mean(word, names) or (f"; known: {', '.join(names)}" if names and len(names) <= 24 else "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing, for messages that list the names themselves."""
    close = difflib.get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class Schema:
    """A document's own JSON schema, walked along the data that chose its variants."""

    def __init__(self, kind: type[BaseModel] = Recipe) -> None:
        self._root: dict[str, Any] = kind.model_json_schema()

    def at(self, path: Path, data: Any) -> dict[str, Any]:
        """The schema of the value at `path`; empty where the data leave the variant open."""
        schema = self._resolve(self._root, data)
        for part in path:
            if isinstance(part, int):
                items = schema.get("prefixItems", [])
                schema = items[part] if part < len(items) else schema.get("items", {})
                data = data[part] if isinstance(data, list) and part < len(data) else None
            else:
                schema = schema.get("properties", {}).get(part) or self._any_key(schema)
                data = data.get(part) if isinstance(data, dict) else None
            schema = self._resolve(schema, data)
        return schema

    def _any_key(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema of the values of a mapping whose keys are free, as the arms of a suite are."""
        free = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
        return next((values for values in free if isinstance(values, dict)), {})

    def keys(self, path: Path, data: Any) -> list[str]:
        return list(self.at(path, data).get("properties", {}))

    def homes(self, key: str) -> list[str]:
        """Every section that has `key`, for a key that was written in the wrong one."""
        sections: list[str] = []
        self._search(self._root, key, (), sections)
        return sections

    def _search(self, schema: dict[str, Any], key: str, path: Path, sections: list[str]) -> None:
        for variant in self._variants(schema):
            properties = variant.get("properties", {})
            if key in properties and path and dotted(path) not in sections:
                sections.append(dotted(path))
            for name, inner in properties.items():
                self._search(inner, key, (*path, name), sections)

    def _resolve(self, schema: dict[str, Any], data: Any) -> dict[str, Any]:
        if "discriminator" in schema:
            tag = data.get(schema["discriminator"]["propertyName"]) if isinstance(data, dict) else None
            reference = schema["discriminator"]["mapping"].get(tag) if isinstance(tag, str) else None
            return self._definition(reference) if reference else {}
        variants = self._variants(schema)
        if isinstance(data, dict):
            variants = [variant for variant in variants if "properties" in variant] or variants
        return variants[0] if variants else {}

    def _variants(self, schema: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in schema:
            return [self._definition(schema["$ref"])]
        for word in ("oneOf", "anyOf"):
            if word in schema:
                inner = [variant for option in schema[word] for variant in self._variants(option)]
                return [variant for variant in inner if variant.get("type") != "null"]
        return [schema]

    def _definition(self, reference: str) -> dict[str, Any]:
        definition: dict[str, Any] = self._root["$defs"][reference.rsplit("/", 1)[-1]]
        return definition


def _problem(error: Mapping[str, Any], document: Document, schema: Schema) -> Problem:
    kind, value, context = str(error["type"]), error["input"], error.get("ctx", {})
    path = _without_tag(tuple(error["loc"]), document.data)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return Problem(document.key_at(path), path, _unknown_key(path, document.data, schema))
    if kind == "missing":
        return _missing(path, document)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        path = (*path, _TAGS[str(path[0])])
        message = _choice(path, context.get("tag"), _split(context.get("expected_tags", "")))
        if kind == "union_tag_not_found":
            message = f"{dotted(path)} is missing; it says which keys this section has"
        return Problem(document.value_at(path), path, message)
    if kind == "value_error":
        return _own_rule(path, str(context.get("error", error["msg"])), document, schema)
    if kind == "literal_error":
        choices = [str(choice) for choice in schema.at(path, document.data).get("enum", [])]
        return Problem(document.value_at(path), path, _choice(path, value, choices))
    message = f"{dotted(path)} {_demand(kind, path, value, context, str(error['msg']))}"
    return Problem(document.value_at(path), path, message)


def _without_tag(path: Path, data: Any) -> Path:
    """pydantic names the chosen variant in the location (`model, tiny, hidden`); a file does not have that level."""
    if len(path) > 1 and path[0] in _TAGS and isinstance(data, dict):
        section = data.get(path[0])
        if isinstance(section, dict) and section.get(_TAGS[str(path[0])]) == path[1]:
            return (path[0], *path[2:])
    return path


def _unknown_key(path: Path, data: Any, schema: Schema) -> str:
    key, parent = str(path[-1]), path[:-1]
    message = f"unknown key {key}" + (f" under {dotted(parent)}" if parent else "")
    known = schema.keys(parent, data)
    if not difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        homes = [home for home in schema.homes(key) if home != dotted(parent)]
        if homes:
            return f"{message}; it belongs under {' or '.join(homes[:3])}"
    return message + nearest(key, known)


def _missing(path: Path, document: Document) -> Problem:
    if isinstance(path[-1], int):
        parent = path[:-1]
        message = f"{dotted(parent)} wants at least {path[-1] + 1} values"
        return Problem(document.value_at(parent), parent, message)
    hint = "; write `gate: null` for a baseline" if path == ("gate",) else ""
    return Problem(document.key_at(path[:-1]), path, f"{dotted(path)} is missing{hint}")


def _own_rule(path: Path, message: str, document: Document, schema: Schema) -> Problem:
    """A settings class says which of its fields is wrong with the first word of its message."""
    named = tuple(message.split(" ", 1)[0].rstrip(":").split("."))
    full = path if path[-1:] == named[:-1] else (*path, *named[:-1])
    if named[-1] in schema.keys(full, document.data):
        place = (*full, named[-1])
        rest = message.split(" ", 1)[1]
        return Problem(document.value_at(place), place, f"{dotted(place)} {rest}")
    return Problem(document.value_at(path), path, f"{dotted(path)}: {message}")


def _choice(path: Path, value: Any, choices: Sequence[str]) -> str:
    return f"{dotted(path)} is {shown(value)}, not one of {', '.join(choices)}{_near_choice(value, choices)}"


def _near_choice(value: Any, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _split(quoted: str) -> list[str]:
    return [word.strip(" '") for word in quoted.split(",") if word.strip()]


_BOUNDS: Final = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_NEEDS: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "dict_type": "keys of its own below it",
    "model_type": "keys of its own below it",
    "model_attributes_type": "keys of its own below it",
    "dataclass_type": "keys of its own below it",
}


def _demand(kind: str, path: Path, value: Any, context: Mapping[str, Any], message: str) -> str:
    if kind in _BOUNDS:
        name, comparison = _BOUNDS[kind]
        return f"must be {comparison} {_plain(context[name])}, got {shown(value)}"
    if kind in _NEEDS:
        return f"wants {_NEEDS[kind]}, got {shown(value)}{_way_out(kind, value)}"
    if kind == "too_long":
        return f"wants at most {context['max_length']} values, got {context['actual_length']}"
    if kind == "string_too_long":
        return f"may have at most {context['max_length']} characters, this has {len(str(value))}"
    if kind == "string_pattern_mismatch" and str(path[-1]) in _RULES:
        return f"is {shown(value)}; it may hold {_RULES[str(path[-1])]}"
    return f"is {shown(value)}: {message}"


def _way_out(kind: str, value: Any) -> str:
    """What to write instead, for the mistakes whose meaning is plain."""
    if kind.startswith("int") and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return _written_number(value)
    if kind == "bool_type" and isinstance(value, str) and value.lower() in _BOOLEAN_WORDS:
        return f"; write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    if kind == "string_type" and isinstance(value, (int, float)):
        return "; put it in quotes"
    if kind == "tuple_type" and not isinstance(value, dict) and value is not None:
        return f"; write [{_plain(value)}]"
    if kind == "dataclass_type" and value is False:
        return "; write null to switch it off"
    return ""


def _written_number(text: str) -> str:
    plain = text.replace("_", "").replace(",", "").strip()
    with suppress(ValueError):
        if read_number(text) is not None:
            return f"; take the quotes off: {text}"
        if math.isfinite(number := float(plain)):
            return f"; write {_plain(number)}"
    return ""


def _plain(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def shown(value: Any) -> str:
    """A value as YAML would write it, cut to a line's length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
