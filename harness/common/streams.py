"""Standard output and error that can say everything: a letter that their encoding lacks is written in others."""

from __future__ import annotations

import codecs
import io
import sys
from typing import Final

_SPELLED: Final = {
    "\N{PLUS-MINUS SIGN}": "+-",
    "\N{GREEK SMALL LETTER LAMDA}": "lambda",
    "\N{OPEN BOX}": "_",
    "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}": " ",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-",
}
"""Letters of this program -> how an encoding without them writes them; any other one is a question mark."""
_HANDLER: Final = "harness.spelled"


def spell_what_is_missing() -> None:
    """Let standard output and error write every text, whatever the terminal's encoding is."""
    codecs.register_error(_HANDLER, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_HANDLER)


def spelled(text: str, encoding: str) -> str:
    """The text as a stream of this encoding shows it."""
    codecs.register_error(_HANDLER, _spelled)
    return text.encode(encoding, errors=_HANDLER).decode(encoding)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_SPELLED.get(letter, "?") for letter in letters), error.end


__all__ = ["spell_what_is_missing", "spelled"]
