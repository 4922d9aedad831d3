"""YAML with positions: every place is the one that an editor jumps to, and nothing is read as something else."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from harness.config.yaml_positions import Mark, YamlProblem, read_yaml


def test_every_key_and_value_has_its_place() -> None:
    document = read_yaml("a: 1\nlist:\n  - x\n  - {b: 2e-5}\n", "file.yaml")
    assert document.data == {"a": 1, "list": ["x", {"b": 2e-5}]}
    assert str(document.keys["a",]) == "file.yaml:1:1"
    assert str(document.values["a",]) == "file.yaml:1:4"
    assert str(document.values["list", 0]) == "file.yaml:3:5"
    assert str(document.keys["list", 1, "b"]) == "file.yaml:4:6"
    assert str(document.values["list", 1, "b"]) == "file.yaml:4:9"
    assert str(document.value_at(("list", 1, "b", "missing"))) == "file.yaml:4:6"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("1.", 1.0),
        ("on", "on"),
        ("no", "no"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("1:30", "1:30"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'2e-5'", "2e-5"),
        ('"null"', "null"),
    ],
)
def test_scalars_are_read_as_json_would(text: str, value: object) -> None:
    read = read_yaml(f"key: {text}\n", "f").data["key"]
    assert read == value
    assert type(read) is type(value)


# PyYAML itself does not give back a lone next-line or line separator.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x85\u2028\u2029"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


@given(
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_a_yaml_writer_writes_is_read_back(value: object) -> None:
    for unicode in (True, False):
        text = yaml.safe_dump({"key": value}, allow_unicode=unicode)
        assert read_yaml(text, "f").data == {"key": value}


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a: 1\n\tb: 2\n", "2:1", "a tab"),
        ("a: b: c", "1:5", "': '"),
        ("a: [1,", "1:7", "not closed"),
        ("a: 'x", "1:6", "not closed"),
        ("a:\n  b: 1\n c: 2", "3:2", "indentation"),
        ("a: @x", "1:4", "quotes"),
        ("a: &x 1\nb: *x", "1:4", "anchors"),
        ("a: !!python/name:os.system x", "1:4", "tags"),
        ("a: 1\n---\nb: 2", "2:1", "second document"),
        ("a: 1e999", "1:4", "too large"),
        ("? [a]\n: 1", "1:3", "plain word"),
        (b"ok: 1\na: \xff", "2:4", "UTF-8"),
        ("a: 1\nb: \x00", "2:4", "not allowed"),
        ('a: "\\ud800"', "1:4", "half a character"),
        ("a: " + "[" * 3000, "1:36", "levels deep"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text: str | bytes, where: str, words: str) -> None:
    with pytest.raises(YamlProblem) as caught:
        read_yaml(text, "f.yaml")
    assert str(caught.value.mark) == f"f.yaml:{where}"
    assert words in caught.value.message


def test_a_key_given_twice_is_a_problem_and_the_first_stands() -> None:
    document = read_yaml("a: {b: 1, b: 2}\na: {c: 3}\n", "f.yaml")
    assert document.data == {"a": {"b": 1}}
    assert [(str(mark), words.split(" is ")[0]) for mark, words in document.problems] == [
        ("f.yaml:1:11", "a.b"),
        ("f.yaml:2:1", "a"),
    ]


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    marks: list[Mark] = []
    try:
        marks += read_yaml(text, "f").values.values()
    except YamlProblem as problem:
        marks.append(problem.mark)
    assert marks
    assert all(mark.line >= 1 and mark.column >= 1 for mark in marks)
