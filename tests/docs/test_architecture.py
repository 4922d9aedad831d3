"""docs/architecture.md: its picture is that of the code, and every name in it is there."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import TYPE_CHECKING

import pytest

from tests.architecture.tree import ROOT

if TYPE_CHECKING:
    from types import ModuleType

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:harness|regate)(?:\.\w+)+)`", PAGE)))


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_that_of_the_imports(rooms: ModuleType) -> None:
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.draw(), "python docs/rooms.py draws it again"


def test_no_room_imports_one_above_it(rooms: ModuleType) -> None:
    order = [*rooms.rooms(), rooms.METHOD]
    upward = [
        f"{room} -> {other}"
        for room, reached in rooms.arrows().items()
        for other in reached
        if order.index(other) < order.index(room)
    ]
    assert not upward


def test_everything_in_harness_is_a_room(rooms: ModuleType) -> None:
    entries = {path.stem for path in (ROOT / "harness").iterdir() if not path.name.startswith(("__", "py.typed"))}
    assert entries == set(rooms.rooms())


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_is_there(name: str) -> None:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            value = getattr(value, attribute)
        return
    pytest.fail(f"{name} is no module")


def test_the_page_names_enough() -> None:
    """So that a change of its form does not empty the test above."""
    assert len(NAMES) > 40
