"""A copy of the repository's code that a test may add to, and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
_FOLDERS = ("harness", "regate", "recipes", "results/paper", "docs", "tests/contract", "tests/harness/worlds")
_FILES = ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/harness/__init__.py")


@dataclass(frozen=True)
class Edit:
    """A change of one file: `text` comes right before the one place that reads `before`; a new file where that is
    None."""

    file: str
    text: str
    before: str | None = None


@dataclass(frozen=True)
class TreeCopy:
    """The copy below `root`; whatever is run in it imports from there."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> TreeCopy:
        for name in _FOLDERS:
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in _FILES:
            shutil.copyfile(ROOT / name, root / name)
        copy = cls(root)
        assert copy.run("-c", "import harness; print(harness.__file__)").startswith(str(root))
        return copy

    def add(self, edit: Edit) -> None:
        path = self.root / edit.file
        if edit.before is None:
            assert not path.exists()
            path.write_text(edit.text)
            return
        text = path.read_text()
        assert text.count(edit.before) == 1, f"{edit.file}: {edit.before!r}"
        path.write_text(text.replace(edit.before, edit.text + edit.before))

    def run(self, *command: str, status: int = 0) -> str:
        """Python with these arguments; its stdout, or its stderr where it is to fail with `status`."""
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        done = subprocess.run(
            [sys.executable, *command], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr
