"""Words and their kinds: how tokens are put together, however a tokenizer cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.choices.word_classes import CLOSED, CONTENT, KINDS, PUNCTUATION, group, spread_spans, word_class


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("the", "determiner"),
        ("That", "determiner"),
        ("it", "pronoun"),
        ("is", "auxiliary"),
        ("don\u2019t", "auxiliary"),
        ("towards", "preposition"),
        ("because", "conjunction"),
        ("not", "particle"),
        ("three", "numeral"),
        ("3.5", "numeral"),
        ("triangle", CONTENT),
        ("Dreieck", CONTENT),
        ("...", PUNCTUATION),
        ("--", PUNCTUATION),
    ],
)
def test_kind_of_a_word(word: str, kind: str) -> None:
    assert word_class(word) == kind


def test_lists_are_lower_case_and_every_kind_is_known() -> None:
    for words in CLOSED.values():
        assert all(word == word.lower() and word.strip() == word for word in words)
    assert set(CLOSED) < set(KINDS)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["The", " square", " is", " red", "."], ["The", " square", " is", " red", "."]),
        (["tri", "angle", ",", " purple"], ["triangle", ",", " purple"]),
        ([" don", "'t", " go"], [" don't", " go"]),
        ([" well", "-", "lit", "..."], [" well-lit", "..."]),
        (["a", ")", ",", " b"], ["a", "),", " b"]),
        (["one", " ", "two"], ["one ", "two"]),
        ([" -", " end"], [" -", " end"]),
    ],
)
def test_tokens_become_words(pieces: list[str], words: list[str]) -> None:
    numbers = group(pieces)
    grouped = [
        "".join(p for p, n in zip(pieces, numbers, strict=True) if n == number) for number in sorted(set(numbers))
    ]
    assert grouped == words


@given(st.lists(st.text(alphabet="ab 1.,'-\n", min_size=1, max_size=5), max_size=30))
def test_word_numbers_rise_by_one_at_most(pieces: list[str]) -> None:
    numbers = group(pieces)
    assert len(numbers) == len(pieces)
    assert all(after - before in (0, 1) for before, after in itertools.pairwise(numbers))


def test_spans_reach_every_token_of_their_words() -> None:
    text = "The square is red, it seems."
    pieces = ["the", " sq", "uare", " is", " red", ",", " it", " seems", ".", "<|end|>"]
    spans = [(4, 10, "shape"), (14, 17, "colour")]
    assert spread_spans(pieces, text, spans) == [None, "shape", "shape", None, "colour", *[None] * 5]


def test_pieces_of_another_text_are_told_apart() -> None:
    assert spread_spans(["the", " circle"], "The square", [(4, 10, "shape")]) is None
    assert spread_spans(["the"], "The square", [(4, 10, "shape")]) is None, "cut short"
