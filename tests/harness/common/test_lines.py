"""Lines in the width of a terminal: nothing lost, words whole, commands that can still be copied."""

from __future__ import annotations

import io
import shlex
import sys

import pytest

from harness.common.lines import fitted, in_width


@pytest.mark.parametrize("width", [60, 80])
def test_words_follow_below_the_text_and_none_is_broken(width: int) -> None:
    line = "  accuracy  " + "some words of a sentence that goes on " * 4 + "results/runs/a_name-0123abcd/it"
    parts = in_width(line, width)
    assert " ".join(" ".join(parts).split()) == " ".join(line.split())
    assert all(len(part) <= width or len(part.split()) == 1 for part in parts)
    assert parts[1].startswith(" " * 12)


def test_a_long_word_gets_more_room_at_the_margin() -> None:
    word = "w" * 45
    first, second = in_width(f"  a label of some letters  text {word}", 60)
    assert first == "  a label of some letters  text"
    assert second == f"      {word}"


def test_a_command_in_several_lines_is_the_same_command() -> None:
    command = "hf download some/repository --include config.json --include 'model*' --local-dir weights/it"
    parts = in_width(f"    {command}", 40)
    assert len(parts) > 2
    assert shlex.split("\n".join(parts).replace("\\\n", "")) == shlex.split(command), "as a shell reads it"
    assert all(part.endswith(" \\") for part in parts[:-1])


def test_a_comment_stays_one() -> None:
    assert all(part.startswith("    # ") for part in in_width("    # " + "words about a file " * 8, 40))


def test_lines_of_a_pipe_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert fitted(["word " * 60]) == "word " * 60
    monkeypatch.setenv("COLUMNS", "30")
    assert max(map(len, fitted(["word " * 60]).splitlines())) <= 30


def test_letters_that_the_terminal_lacks_are_counted_as_they_are_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    text = fitted(["\N{GREEK SMALL LETTER LAMDA} = 1 \N{PLUS-MINUS SIGN} " * 12])
    assert max(map(len, text.splitlines())) <= 30
    assert text.count("lambda") == 12
