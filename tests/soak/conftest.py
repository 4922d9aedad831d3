"""Runs that were stopped at a moment, and what they come to; each is made once for all tests here."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.warm import warm_python

from . import evaluated, stopped
from .readers import Opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Left:
    """A run as an attempt left it.

    Attributes:
        read: files that this attempt and those before it opened, by their path from the folder.
    """

    folder: Path
    read: set[str] = field(default_factory=set)

    def go_on(self, name: str, command: Callable[[Path], None]) -> Left:
        """A copy of it after one more attempt."""
        folder = self.folder.with_name(name)
        shutil.copytree(self.folder, folder)
        opened = Opened(folder)
        command(folder)
        return Left(folder, self.read | opened.close())


def _left(folder: Path) -> Left:
    return Left(folder, set(json.loads(stopped.read_by(folder).read_text())))


@pytest.fixture(scope="session")
def killed_in_training(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("soak") / "stopped"
    stopped.make_stopped(folder)
    return _left(folder)


@pytest.fixture(scope="session")
def trained(killed_in_training: Left) -> Left:
    return killed_in_training.go_on("trained", stopped.go_on)


@pytest.fixture(scope="session")
def warm_answers() -> Iterator[None]:
    """Evaluations of this process are answered by warm ones."""
    whole = evaluated.pipeline.evaluation.evaluate_checkpoints
    evaluated.answer_by(warm_python())
    yield
    evaluated.pipeline.evaluation.evaluate_checkpoints = whole


@pytest.fixture(scope="session")
def killed_in_evaluation(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("soak") / "killed"
    evaluated.make_killed(folder, warm_python())
    return _left(folder)


@pytest.fixture(scope="session")
def finished(killed_in_evaluation: Left, warm_answers: None) -> Left:
    return killed_in_evaluation.go_on("finished", evaluated.go_on)
