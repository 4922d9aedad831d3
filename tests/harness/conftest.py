"""Worlds that several test files look at and none changes."""

from __future__ import annotations

import pytest

from tests.harness.worlds.choices import World, build_world


@pytest.fixture(scope="session")
def choice_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A gated run with its stores, before anybody looked at its choices."""
    return build_world(tmp_path_factory.mktemp("choices"))
