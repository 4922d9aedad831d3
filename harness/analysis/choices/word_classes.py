"""Words of an answer: which tokens make one word, and what kind of word it is.

The kinds are closed classes, listed below, and "content word" for everything else: no tagger and no model is needed,
and anybody can check a row. A word that belongs to several classes ("that", "to", "one") gets the first of them in
the order of `CLOSED`, wherever it stands. The lists are English; a word of another language is a content word.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LISTS: Final = {
    "numeral": (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
        "billion first second third fourth fifth once twice half"
    ),
    "determiner": (
        "a an the this that these those each every either neither some any no all both many much more most few "
        "fewer less least several another other such what which whose enough"
    ),
    "pronoun": (
        "i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her "
        "hers herself it its itself they them their theirs themselves who whom someone somebody something anyone "
        "anybody anything everyone everybody everything nobody nothing none there others"
    ),
    "auxiliary": (
        "am is are was were be been being do does did done doing have has had having can could will would shall "
        "should may might must ought cannot don't doesn't didn't isn't aren't wasn't weren't won't can't "
        "couldn't wouldn't shouldn't hasn't haven't hadn't"
    ),
    "conjunction": (
        "and or but nor so yet if because although though unless while whereas when whenever where wherever than "
        "whether as until since"
    ),
    "preposition": (
        "of in to for with on at from by about into over after before between under against during without within "
        "through towards toward upon across along behind beside besides below above beneath beyond near off onto "
        "out outside inside around among amongst per via up down like"
    ),
    "particle": "not n't 's 're 've 'll 'd 'm 't",
}
CLOSED: Final[Mapping[str, frozenset[str]]] = {name: frozenset(words.split()) for name, words in _LISTS.items()}
"""Closed classes, first match wins."""
CONTENT: Final = "content word"
PUNCTUATION: Final = "punctuation"
MARKER: Final = "marker"
"""An entry of the tokenizer that is no text: the end of a turn."""
KINDS: Final = (CONTENT, *CLOSED, PUNCTUATION, MARKER)
_NUMBER: Final = re.compile(r"\d[\d.,:]*")


def word_class(word: str) -> str:
    """The class of a word, in any case; "punctuation" where it has neither letter nor digit."""
    word = word.lower().replace("\u2019", "'")
    if not any(letter.isalnum() for letter in word):
        return PUNCTUATION
    if _NUMBER.fullmatch(word):
        return "numeral"
    return next((name for name, words in CLOSED.items() if word in words), CONTENT)


def group(pieces: Sequence[str]) -> list[int]:
    """The number of the word that each piece belongs to, counted from 0.

    Args:
        pieces: the tokens' texts in order, each with the white space before it.

    A new word begins at white space, and where letters meet punctuation; an apostrophe or a hyphen between letters
    belongs to the word, so "don't" and "well-lit" are one word however they are cut.
    """
    numbers: list[int] = []
    number = -1
    before = ""
    for index, piece in enumerate(pieces):
        text = piece.strip()
        after = pieces[index + 1] if index + 1 < len(pieces) else ""
        if not text:  # white space alone: it stays with the word before it, and the next one begins anew
            number, before = max(number, 0), ""
        elif not before or piece[0].isspace() or not _goes_on(before, text, after):
            number, before = number + 1, text
        else:
            before = text
        numbers.append(number)
    return numbers


def _goes_on(before: str, text: str, after: str) -> bool:
    """Whether `text` continues the word that ends with `before`; `after` is the piece behind it."""
    joins = "'\u2019-"
    if text[0].isalnum():
        return before[-1].isalnum() or before[-1] in joins
    if text[0] in joins and before[-1].isalnum():
        following = text[1:] or after
        return following[:1].isalnum()
    return not before[-1].isalnum() and not text[0].isalnum()


def spread_spans(pieces: Sequence[str], text: str, spans: Sequence[tuple[int, int, str]]) -> list[str | None] | None:
    """For each piece the class of the span of `text` that it lies in, or None.

    Args:
        pieces: the tokens' texts; behind the end of `text` there may be more (a marker).
        spans: (first character, end character, class).

    Returns:
        None where the pieces are not the text: they are compared letter by letter, white space and case left out.
    """
    places = [place for place, letter in enumerate(text) if not letter.isspace()]
    letters = "".join(text[place] for place in places).lower()
    classes: list[str | None] = []
    at = 0
    for piece in pieces:
        plain = "".join(piece.split()).lower()
        if at >= len(letters):
            classes.append(None)
            continue
        if not letters.startswith(plain, at):
            return None
        covered = places[at : at + len(plain)]
        at += len(plain)
        inside = (name for first, end, name in spans if any(first <= place < end for place in covered))
        classes.append(next(inside, None))
    return classes if at >= len(letters) else None


__all__ = ["CLOSED", "CONTENT", "KINDS", "MARKER", "PUNCTUATION", "group", "spread_spans", "word_class"]
