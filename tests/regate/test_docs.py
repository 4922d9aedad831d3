"""The documents of the library: their code runs, and every switch has its entry."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import regate

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_code_of_the_library_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "library.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "library.md", "exec"), {})


def test_every_public_name_is_on_the_library_page():
    text = (DOCS / "library.md").read_text()
    assert [name for name in regate.__all__ if f"`{name}" not in text and f".{name}`" not in text] == ["Elision"]


def test_every_switch_and_value_has_an_entry():
    from regate import config

    text = (DOCS / "interpretations.md").read_text()
    for key in ("candidates", "align", "combine", "ema_init", "ema_observe", "selection", "execution"):
        assert re.search(rf"^## .*`{key}`$", text, re.MULTILINE), key
        kind = {f.name: f.type for f in dataclasses.fields(regate.GateConfig)}[key]
        literal = getattr(config, kind.partition(" | ")[0])  # beside the names there may be a function of one's own
        for value in literal.__args__:
            assert f"`{value}`" in text, (key, value)
    for value in config.Placeholders.__args__:
        assert f"`{value}`" in text
