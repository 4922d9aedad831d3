"""Words that several of the paper's benchmarks share."""

from __future__ import annotations

from typing import Final

LETTER: Final = "Answer with the option's letter from the given choices directly."
WORD: Final = "Answer the question using a single word or phrase."
LETTERS: Final = ("A", "B", "C", "D")
"""The options of a question, where they are letters."""
ONE: Final = ""
"""Name of the part of a benchmark that has nothing to combine."""
