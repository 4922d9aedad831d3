"""No garbage is looked for while libraries are imported, and it is as before afterwards."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from harness.common.imports import uncollected

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    gc.enable()


def test_nothing_is_collected_meanwhile() -> None:
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "an inner one leaves it to the outer one"
    assert gc.isenabled()


def test_an_import_that_fails_leaves_it_as_it_was() -> None:
    with pytest.raises(ModuleNotFoundError), uncollected():
        import harness.nothing  # noqa: F401
    assert gc.isenabled()


def test_who_has_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
