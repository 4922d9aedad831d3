"""The repository's own files, for the tests that look at them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FOLDERS = (".ci", "benchmarks", "docs", "examples", "harness", "recipes", "regate", "results", "tests")
_LEFT_OUT = frozenset({"__pycache__", "checkpoints", "difficulty"})


def tracked() -> list[Path]:
    """Files under version control; in an unpacked archive, those of the project's folders."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.iterdir() if path.is_file()]
        paths += [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*")]
    return [path for path in paths if path.is_file() and not _LEFT_OUT.intersection(path.parts)]


def sources(*folders: str) -> list[Path]:
    """Python files below the given folders."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
