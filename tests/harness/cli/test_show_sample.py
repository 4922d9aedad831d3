"""The text of a shown sample is that of its turns, spaces included."""

from __future__ import annotations

from harness.cli.show_sample import _text_behind
from tests.harness.worlds import known_models


def test_tokens_in_a_row_give_the_text_that_they_are_decoded_to() -> None:
    tokenizer = known_models.processor().tokenizer
    ids = [known_models.token(known_models.processor(), word) for word in ("a", "ball", "moves", "left")]
    before = [None, *ids[:-1]]
    text = "".join(_text_behind(tokenizer, earlier, token) for earlier, token in zip(before, ids, strict=True))
    assert text == tokenizer.decode(ids) == "a ball moves left"
    assert "".join(tokenizer.decode([token]) for token in ids) != text, "alone they have no spaces"
